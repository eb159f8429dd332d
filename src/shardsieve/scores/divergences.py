"""TDDS: how much the change of the whole prediction from epoch to epoch fluctuates."""

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.scores.inputs import (
    Floats,
    enough_epochs,
    finite,
    probabilities,
    whole_number,
)
from shardsieve.scores.windows import fluctuation

# Keeps the logs finite; the value is the official code's and shows in the score.
_TINY = 1e-8


def divergence(p_next: ArrayLike, p_before: ArrayLike, *, kl: bool = False) -> Floats:
    """Return how far the prediction moved between two epochs, TDDS' d_t, float64 (n,), at least 0.

    Σ_c |P'[c]·(log P'[c] - log P[c])| as in the official code of arXiv 2311.13613, with 1e-8 added
    inside the logs. It is not a Kullback-Leibler divergence: the bars stand inside the sum.

    Args:
        p_next: (n, C), probabilities of the later epoch.
        p_before: (n, C), those of the earlier one.
        kl: Put the bars outside the sum.

    Raises:
        ValueError: If the shapes differ, or a value is NaN or outside `[0, 1]`.

    >>> divergence([[0.5, 0.5]], [[0.25, 0.75]]).round(4).tolist()
    [0.5493]
    """
    after = probabilities("p_next", p_next, "n C")
    before = probabilities("p_before", p_before, "n C")
    if after.shape != before.shape:
        raise ValueError(
            f"p_before must have the shape of p_next, {after.shape}, got {before.shape}; "
            "pass the same samples and classes"
        )
    return _moved(after, before, kl=kl)


def tdds(
    probs: ArrayLike,
    window: int = 10,
    decay: float = 0.9,
    *,
    kl: bool = False,
    squared: bool = False,
) -> Floats:
    """Return a moving average of how much the epoch-to-epoch divergence fluctuates, float64 (n,).

    TDDS, Zhang et al., CVPR 2024, arXiv 2311.13613, as in the official code; high is kept first.
    Only the last two or three windows matter, so which T epochs are passed decides the score.

    Args:
        probs: (T, n, C), in `[0, 1]`; T >= window.
        window: J epochs, so J - 1 divergences; at least 3.
        decay: Weight of the newest window, in `(0, 1]`.
        kl: See `divergence`.
        squared: See `tdds_from_divergence`.

    Raises:
        ValueError: If there are too few epochs, or a value is NaN or outside `[0, 1]`.

    >>> tdds([[[0.5, 0.5]], [[0.25, 0.75]], [[0.5, 0.5]]], window=3).round(4).tolist()
    [0.0458]
    """
    p = probabilities("probs", probs, "T n C")
    whole_number("window", window, 3)
    enough_epochs("probs", len(p), window, more=False)
    moved = np.stack([_moved(after, before, kl=kl) for before, after in pairwise(p)])
    return tdds_from_divergence(moved, window, decay, squared=squared)


def tdds_from_divergence(
    divergence: ArrayLike, window: int = 10, decay: float = 0.9, *, squared: bool = False
) -> Floats:
    """Return TDDS from recorded divergences, which need far less room than probabilities.

    Args:
        divergence: (T-1, n), row t as returned by `divergence` for epochs t + 1 and t.
        window: J epochs, so J - 1 rows; at least 3, as a single divergence does not fluctuate.
        decay: Weight of the newest window, in `(0, 1]`.
        squared: Take the squared norm of each window's deviations.

    Raises:
        ValueError: If there are too few rows, or a value is NaN or infinite.

    >>> tdds_from_divergence([[0.0], [2.0]], window=3).round(4).tolist()
    [1.2728]
    """
    d = finite("divergence", divergence, "T n")
    whole_number("window", window, 3)
    within_decay(decay)
    if len(d) < window - 1:
        raise ValueError(
            f"divergence must have at least window - 1 = {window - 1} rows, got {len(d)}; "
            "train longer or pass a smaller window"
        )
    average = np.zeros(d.shape[1])
    for start in range(len(d) - window + 2):
        norm = fluctuation(d[start : start + window - 1])
        average = (1 - decay) * average + decay * (norm**2 if squared else norm)
    return average


def within_decay(decay: float) -> None:
    """Refuse a weight of the newest window outside `(0, 1]`."""
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}; the paper uses 0.9")


def _moved(after: Floats, before: Floats, *, kl: bool) -> Floats:
    terms = after * (np.log(after + _TINY) - np.log(before + _TINY))
    moved: Floats = np.abs(terms.sum(axis=-1)) if kl else np.abs(terms).sum(axis=-1)
    return moved
