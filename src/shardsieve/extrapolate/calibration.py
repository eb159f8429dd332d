"""The spread of predicted scores against that of measured ones, and its correction."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.extrapolate.correlations import checked_pair, mean_ranks
from shardsieve.extrapolate.protocol import Floats
from shardsieve.scores.inputs import finite

PERCENTILES = (5, 25, 50, 75, 95)
_HAIR = 1e-3


@dataclass(frozen=True)
class Spread:
    """How widely predictions and measured scores lie; averages of neighbours lie too close.

    Attributes:
        measured_std: Standard deviation of the measured scores.
        predicted_std: Of the predictions.
        ratio: Predicted over measured, 1 when as wide; 0 when the measured ones are constant.
        slope: Of the line that fits measured over predicted scores best, 1 when a difference of
            predictions means as large a difference of scores; 0 when predictions are constant.
        measured: Percentiles 5, 25, 50, 75, 95.
        predicted: Likewise.
    """

    measured_std: float
    predicted_std: float
    ratio: float
    slope: float
    measured: list[float]
    predicted: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        return asdict(self)


def spread(true: ArrayLike, predicted: ArrayLike) -> Spread:
    """Return the spreads of measured (n,) and predicted scores (n,) of the same samples.

    >>> spread([0, 2, 4], [1, 2, 3]).ratio
    0.5
    """
    want, got = checked_pair(true, predicted)
    # The mean of seven times 0.1 is another number, from which all deviate.
    wide, narrow = (float(side.std()) if np.ptp(side) else 0.0 for side in (want, got))
    covariance = float(np.mean((want - want.mean()) * (got - got.mean())))
    return Spread(
        measured_std=wide,
        predicted_std=narrow,
        ratio=narrow / wide if wide > 0 else 0.0,
        slope=covariance / narrow**2 if narrow > 0 else 0.0,
        measured=np.percentile(want, PERCENTILES).tolist(),
        predicted=np.percentile(got, PERCENTILES).tolist(),
    )


def match_quantiles(predicted: ArrayLike, measured: ArrayLike) -> Floats:
    """Return the predictions moved so that they are distributed as the measured scores are.

    Order and ties stay; a single prediction becomes the median. It is right when both are of random
    draws from one population, as seeds and rest are; correlations of values may fall by it, those
    of ranks do not change. Where measured scores are tied, as forgetting events are, predictions
    keep their order within a thousandth of the way to the next score.

    Args:
        predicted: (n,), finite.
        measured: (m,), finite, m at least 1.

    Returns:
        float32 (n,), each within the range of the measured scores.

    Raises:
        ValueError: If a number is not finite, or nothing was measured.

    >>> match_quantiles([0.4, 0.5, 0.6], [0.0, 1.0, 5.0]).tolist()
    [0.0, 1.0, 5.0]
    >>> match_quantiles([0.3, 0.4, 0.5, 0.6, 0.7], [0, 0, 0, 1, 1]).astype(str).tolist()
    ['0.0', '0.0005', '0.001', '0.999', '1.0']
    """
    got = finite("predicted", predicted, "n", cure="predict those samples again")
    want = finite("measured", measured, "n", cure="give scored samples only")
    if not len(want):
        raise ValueError("measured must hold at least 1 score, got 0; score some samples first")
    if not len(got):
        return got.astype(np.float32)
    places = (mean_ranks(got) - 1) / (len(got) - 1) if len(got) > 1 else np.full(1, 0.5)
    levels, counts = np.unique(want, return_counts=True)
    last = np.cumsum(counts) - 1
    ends = np.stack([last - counts + 1, last], axis=1).ravel() / max(len(want) - 1, 1)
    # Alike, predictions would be kept by their rows; and seeds of that score stand among them.
    room = np.pad(np.diff(levels), 1) * _HAIR
    tied = counts > 1
    values = np.stack([levels - room[:-1] * tied, levels + room[1:] * tied], axis=1).ravel()
    return np.interp(places, ends, values).astype(np.float32)
