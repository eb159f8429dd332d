"""More scores while training runs: DUAL, and means and spreads over epochs."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, batch_values, positions_within, whole_number
from shardsieve.scores.ring import Ring, StreamingScorer, require
from shardsieve.scores.windows import dual_window


class StreamingDUAL(StreamingScorer):
    """DUAL (arXiv 2502.06905) in J + 2 numbers per sample, however many epochs.

    `score()` equals `dual` of the values of each sample, to the bit.
    `load_state_dict(state_dict())` changes nothing.
    """

    def __init__(self, num_samples: int, window: int = 10) -> None:
        whole_number("window", window, 2)
        super().__init__("dual", num_samples, window=window)
        self._window = window
        self._ring = Ring(window, num_samples)
        self._total = np.zeros(num_samples)

    def update(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Add the label's probability, in `[0, 1]`, of some samples, (b,).

        Raises:
            ValueError: If a position is out of range or comes twice, or a value is out of range;
                nothing is added then.
        """
        where = positions_within(positions, self._num_samples)
        self._ring.push(where, batch_values(values, where, 1.0))
        full = self._ring.full(where)
        self._total[full] += dual_window(self._ring.window(full))

    def score(self) -> Floats:
        """Return the score of all samples so far, float64 (n,).

        Raises:
            ValueError: If a sample has had too few values, naming the first.
        """
        require(self._ring.count, self._window, f"at least window={self._window} values")
        return self._total / (self._ring.count - self._window + 1)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"ring": self._ring.values, "count": self._ring.count, "total": self._total}


class StreamingMoments(StreamingScorer):
    """Mean and standard deviation of each sample's values, in 4 numbers per sample.

    `mean()` of label probabilities is `confidence`, of margins of logits `aum`, of error norms
    `el2n`, each to the bit; `spread()` of label probabilities is `variability` up to rounding
    (Welford, Technometrics 1962). `load_state_dict(state_dict())` changes nothing.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__("moments", num_samples)
        self._count = np.zeros(num_samples, dtype=np.int64)
        self._total = np.zeros(num_samples)
        self._centre = np.zeros(num_samples)
        self._scatter = np.zeros(num_samples)

    def update(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Add one finite value to each of some samples, (b,).

        Raises:
            ValueError: If a position is out of range or comes twice, or a value is not finite;
                nothing is added then.
        """
        where = positions_within(positions, self._num_samples)
        new = batch_values(values, where, np.inf, -np.inf)
        self._total[where] += new
        self._count[where] += 1
        off = new - self._centre[where]
        self._centre[where] += off / self._count[where]
        self._scatter[where] += off * (new - self._centre[where])

    def mean(self) -> Floats:
        """Return the mean of each sample's values, float64 (n,); one without any is refused."""
        require(self._count, 1, "at least 1 value")
        return self._total / self._count

    def spread(self) -> Floats:
        """Return the population standard deviation, float64 (n,); see `mean`."""
        require(self._count, 1, "at least 1 value")
        spread: Floats = np.sqrt(self._scatter / self._count)
        return spread

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "count": self._count,
            "total": self._total,
            "centre": self._centre,
            "scatter": self._scatter,
        }
