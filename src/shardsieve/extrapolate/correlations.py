"""Agreement of two scores of the same samples: correlations and kept sets."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import real
from shardsieve.selection import num_kept

Doubles = NDArray[np.float64]


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Return Pearson's correlation, in `[-1, 1]`; 0 when either side is constant.

    Args:
        a: (n,), finite, n at least 1.
        b: (n,), likewise.

    Raises:
        ValueError: If the lengths differ, or a value is not finite.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6)
    1.0
    """
    x, y = checked_pair(a, b)
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float(np.clip(_unit(x) @ _unit(y), -1, 1))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return the correlation of ranks, ties taking their mean rank; 0 when a side is constant.

    Args:
        a: (n,), finite, n at least 1.
        b: (n,), likewise.

    Raises:
        ValueError: If the lengths differ, or a value is not finite.

    >>> round(spearman([1, 2, 3], [1, 10, 100]), 6)
    1.0
    """
    x, y = checked_pair(a, b)
    return pearson(mean_ranks(x), mean_ranks(y))


def keep_agreement(true: ArrayLike, predicted: ArrayLike, keep_fraction: float) -> float:
    """Return the share, in `[0, 1]`, of the true top keep set that the predicted one holds.

    Where equal scores meet the border it is the mean over draws among them. By row both sides would
    choose alike there, and agree where they know nothing.

    Args:
        true: (n,), finite.
        predicted: (n,), likewise.
        keep_fraction: In `(0, 1]`, keeping at least one of n.

    Raises:
        ValueError: If the lengths differ, a value is not finite, or nothing would be kept.

    >>> keep_agreement([4, 3, 2, 1], [4, 1, 3, 2], keep_fraction=0.5)
    0.5
    >>> keep_agreement([0, 0, 0, 0], [0, 0, 0, 0], keep_fraction=0.5)
    0.5
    """
    want, got = checked_pair(true, predicted)
    check_keeps(len(want), keep_fraction)
    count, once = num_kept(len(want), keep_fraction), np.ones(len(want), dtype=np.int64)
    kept, kept_predicted = (
        kept_shares(np.unique(values, return_inverse=True)[1], once, count)
        for values in (want, got)
    )
    return float(kept @ kept_predicted) / count


def kept_shares(levels: NDArray[np.int64], copies: NDArray[np.int64], count: int) -> Doubles:
    """Return which share of its copies the top `count` hold of each sample: (n,), in `[0, 1]`.

    Args:
        levels: (n,), the place of each score among the distinct ones, ascending.
        copies: (n,), of each sample.
        count: At most all copies.
    """
    sizes = np.bincount(levels, weights=copies)
    left = count - (np.cumsum(sizes[::-1])[::-1] - sizes)  # for a level and those below it
    shares = np.clip(left, 0, sizes) / np.maximum(sizes, 1)
    return np.asarray(shares[levels], dtype=np.float64)


def check_keeps(num_samples: int, keep_fraction: float) -> None:
    """Refuse a keep fraction that would keep none of so many samples."""
    if num_kept(num_samples, keep_fraction) < 1:
        raise ValueError(
            f"keep_fraction must keep at least 1 of {num_samples} samples, got {keep_fraction}; "
            "compare at a larger fraction"
        )


def checked_pair(a: ArrayLike, b: ArrayLike) -> tuple[Doubles, Doubles]:
    """Return both as finite float64 of one shape (n,), n at least 1, or raise ValueError."""
    x, y = (np.asarray(real("scores", values), dtype=np.float64) for values in (a, b))
    if x.shape != y.shape or x.ndim != 1 or len(x) == 0:
        raise ValueError(
            f"scores must have one shape (n,) with n >= 1, got {x.shape} and {y.shape}; "
            "compare the same samples"
        )
    for values in (x, y):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"scores must be finite, got {values[bad[0]]} for row {bad[0]}; "
                "compare samples that have both scores"
            )
    return x, y


def mean_ranks(values: Doubles) -> Doubles:
    """Return ranks (n,) from 1, ties taking their mean rank.

    >>> mean_ranks(np.array([5.0, 2.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _unit(values: Doubles) -> Doubles:
    # Scaled before and after centring: squares of 1e200 or 1e-200 leave float64. Values that are
    # not all equal stay so: only the largest become 1.
    centred = values / np.abs(values).max()
    centred = centred - centred.mean()
    centred = centred / np.abs(centred).max()
    return np.asarray(centred / np.linalg.norm(centred))
