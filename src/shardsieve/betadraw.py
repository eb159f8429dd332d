"""DUAL's draw: as little is kept, easier samples are drawn more often."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.order import uniform
from shardsieve.selection import Ids, finite_scores, num_kept

_DRAW, _HIGHEST = 0xBE7A, 10
# Confidence is the mean of float32 probabilities: 0 and 1 are as far as they can tell.
_EDGE = 2.0**-24


def keep_beta(
    scores: ArrayLike,
    confidence: ArrayLike,
    keep_fraction: float,
    *,
    exponent: float = 4.0,
    seed: int = 0,
) -> Ids:
    """Return a weighted draw without replacement that moves to easy samples, ascending.

    Cho et al., ICML 2025, arXiv 2502.06905, for the DUAL score, after the code: a row is drawn with
    weight score times the density of Beta(a, b) at its confidence, b = 15 (1 - m)(1 - p^exponent),
    a = 16 - b, p the share removed and m the mean confidence of the ten highest scores. The density
    lies near m when little is removed, and on easy samples when much is. The total is exact.

    Args:
        scores: Shape (n,), finite, at least 0, such as `scores.dual`. Rows of score 0 are drawn
            last.
        confidence: Shape (n,), in `[0, 1]`, as of `scores.confidence`.
        keep_fraction: In `(0, 1]`.
        exponent: Above 0: c_D of the paper's code, 4 for CIFAR-100, 11 its default for ImageNet.
        seed: Of the draw.

    Raises:
        MissingScoreError: If a value is NaN or infinite.
        ValueError: If shapes disagree or a value is out of range.

    >>> keep_beta([0.3, 0.2, 0.0, 0.1], [0.5, 0.6, 0.9, 0.7], 0.75)
    array([0, 1, 3])
    """
    values, sure = finite_scores(scores), finite_scores(confidence, "confidence")
    if sure.shape != values.shape:
        raise ValueError(
            f"confidence must have the shape of scores, {values.shape}, got {sure.shape}"
        )
    return beta_rows(
        values, sure, num_kept(len(values), keep_fraction), exponent=exponent, seed=seed
    )


def beta_rows(
    values: NDArray[np.float64],
    confidence: NDArray[np.float64],
    count: int,
    *,
    exponent: float = 4.0,
    seed: int = 0,
) -> Ids:
    """Return `count` rows; see `keep_beta`."""
    for name, array, high in (("scores", values, np.inf), ("confidence", confidence, 1.0)):
        outside = array[(array < 0) | (array > high)]
        if len(outside):
            raise ValueError(
                f"{name} must lie in [0, {high:g}], got {outside[0]:g}; draw by the DUAL score and "
                "the mean probability of the label"
            )
    if not exponent > 0:
        raise ValueError(f"exponent must be above 0, got {exponent}; 4 is usual")
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    hardest = np.argsort(-values, kind="stable")[:_HIGHEST]
    removed = 1 - count / len(values)
    b = 15 * (1 - confidence[hardest].mean()) * (1 - removed**exponent)
    sure = np.clip(confidence, _EDGE, 1 - _EDGE)
    with np.errstate(divide="ignore"):
        weights = np.log(values) + (15 - b) * np.log(sure) + (b - 1) * np.log1p(-sure)
    # The smallest of exponential lots over weights are successive weighted draws (Efraimidis and
    # Spirakis, 2006); in logarithms no density underflows.
    lots = uniform(len(values), seed, _DRAW) + 2.0**-54  # none is 0
    order = np.argsort(np.log(-np.log(lots)) - weights, kind="stable")
    return np.sort(order[:count]).astype(np.int64)
