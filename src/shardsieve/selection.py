"""From scores to a keep set: counts, ties, quotas. Pure functions over arrays."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.order import permutation

Ids = NDArray[np.int64]


def num_kept(num_samples: int, keep_fraction: float) -> int:
    """Return how many of `num_samples` survive pruning, rounding half up.

    The one place where a fraction becomes a count. `int((1 - 0.9) * 50_000)` is 4999.

    Args:
        num_samples: At least 0.
        keep_fraction: In `(0, 1]`. The pruning rate is one minus this.

    Raises:
        ValueError: If the fraction lies outside `(0, 1]`.

    >>> num_kept(50_000, 1 - 0.9)
    5000
    """
    if not 0 < keep_fraction <= 1:
        raise ValueError(
            f"keep_fraction must lie in (0, 1], got {keep_fraction}; 0.5 keeps half of the samples"
        )
    return math.floor(num_samples * keep_fraction + 0.5)


def keep_top(scores: ArrayLike, keep_fraction: float) -> Ids:
    """Return the rows of the highest scores, ascending.

    Ties go to the lower row, so the result depends on the scores alone, and keep sets of smaller
    fractions are subsets of those of larger ones.

    Args:
        scores: Shape (n,), higher is kept first; finite.
        keep_fraction: In `(0, 1]`.

    Raises:
        MissingScoreError: If a score is NaN or infinite, naming the first such row.

    >>> keep_top([0.1, 0.9, 0.4, 0.9], keep_fraction=0.5)
    array([1, 3])
    """
    values = _finite(scores)
    return _top(values, num_kept(len(values), keep_fraction))


def keep_random(num_samples: int, keep_fraction: float, *, seed: int = 0) -> Ids:
    """Return a uniform draw without replacement, ascending; smaller fractions are nested.

    >>> len(keep_random(10, 0.3, seed=1))
    3
    """
    count = num_kept(num_samples, keep_fraction)
    return np.sort(permutation(num_samples, seed, 0x5EED)[:count])


def keep_stratified(scores: ArrayLike, labels: ArrayLike, keep_fraction: float) -> Ids:
    """Return the highest-scoring rows of every class, ascending (class-balanced top-K).

    Each class gets its share of the total: floors first, then the largest remainders, ties to the
    lower class, so that the total is exactly `num_kept(n, keep_fraction)`.

    Args:
        scores: Shape (n,), finite.
        labels: Shape (n,), integers; a negative label means missing and is refused.
        keep_fraction: In `(0, 1]`.

    >>> keep_stratified([9, 8, 7, 1, 0, 2], [0, 0, 0, 0, 1, 1], 0.5)
    array([0, 1, 5])
    """
    values, classes = _finite(scores), np.asarray(labels)
    _check_labels(classes, len(values))
    names, rows_class, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    quotas = class_quotas(sizes, num_kept(len(values), keep_fraction))
    kept = [
        rows[_top(values[rows], int(quotas[c]))]
        for c in range(len(names))
        for rows in [np.flatnonzero(rows_class == c)]
    ]
    return np.sort(np.concatenate(kept)).astype(np.int64) if kept else np.zeros(0, np.int64)


def class_quotas(sizes: ArrayLike, total: int) -> Ids:
    """Return how many each class keeps: proportional, floors, then the largest remainders.

    Exact integer arithmetic: `total * size` never goes through a float.

    >>> class_quotas([4, 2], 3)
    array([2, 1])
    """
    counts = np.asarray(sizes, dtype=np.int64)
    n = max(int(counts.sum()), 1)
    quotas, remainders = counts * total // n, counts * total % n
    missing = total - int(quotas.sum())
    # A stable sort of the negated remainders puts the lower class first among equals.
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas


def keep_moderate(embeddings: ArrayLike, labels: ArrayLike, keep_fraction: float) -> Ids:
    """Return the rows whose distance to their class median is closest to the middle rank.

    Moderate-DS (Xia et al., ICLR 2023): distances to the coordinate-wise median of the own class,
    one global ranking, ranks `[round(n(0.5-f/2)), round(n(0.5+f/2)))` with the count made exact.

    Args:
        embeddings: Shape (n, d), finite.
        labels: Shape (n,), integers at least 0.
        keep_fraction: In `(0, 1]`.
    """
    points, classes = np.asarray(embeddings, dtype=np.float64), np.asarray(labels)
    if not np.isfinite(points).all():
        raise ValueError("embeddings must be finite; embed the data set again")
    _check_labels(classes, len(points))
    distances = np.empty(len(points))
    for name in np.unique(classes):
        rows = classes == name
        distances[rows] = np.linalg.norm(points[rows] - np.median(points[rows], axis=0), axis=1)
    count = num_kept(len(points), keep_fraction)
    start = min(math.floor(len(points) * (0.5 - keep_fraction / 2) + 0.5), len(points) - count)
    return np.sort(np.argsort(distances, kind="stable")[start : start + count]).astype(np.int64)


def _top(values: NDArray[np.float64], count: int) -> Ids:
    return np.sort(np.argsort(-values, kind="stable")[:count]).astype(np.int64)


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise MissingScoreError(
            f"scores must be finite, got {values[bad[0]]} for row {bad[0]} ({len(bad)} of "
            f"{len(values)} are not finite); extrapolate the missing scores before selecting"
        )
    return values


def _check_labels(labels: NDArray[np.generic], n: int) -> None:
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), got {labels.shape}")
    bad = np.flatnonzero(labels.astype(np.int64) < 0)
    if len(bad):
        raise MissingScoreError(
            f"labels must be known for every sample, got none for row {bad[0]} ({len(bad)} are "
            "missing); use rule='top', or index shards whose samples have a `cls` member"
        )
