"""From scores to a keep set: counts, ties, quotas. Pure functions over arrays."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.order import is_whole, permutation
from shardsieve.scores.embedded import moderate_distance
from shardsieve.scores.inputs import integers, plain, real

Ids = NDArray[np.int64]


def num_kept(num_samples: int, keep_fraction: float) -> int:
    """Return how many of `num_samples` survive pruning, rounding half up.

    The one place where a fraction becomes a count. `int((1 - 0.9) * 50_000)` is 4999. Half a sample
    is what decimals make of it: five times 1 - 0.9 lies a hair below, and rounds up.

    Args:
        num_samples: At least 0.
        keep_fraction: In `(0, 1]`. The pruning rate is one minus this.

    Raises:
        ValueError: If the fraction lies outside `(0, 1]`, or the number is no count.

    >>> num_kept(50_000, 1 - 0.9)
    5000
    """
    check_fraction(keep_fraction)
    if not is_whole(num_samples) or num_samples < 0:
        raise ValueError(f"num_samples must be a whole number, at least 0, got {num_samples!r}")
    hair = num_samples * 2.0**-52  # by which 1 - 0.9, and a product, may fall short
    return math.floor(num_samples * keep_fraction + 0.5 + hair)


def check_fraction(keep_fraction: Any) -> None:
    """Refuse what is no number in `(0, 1]`."""
    try:
        is_one = not isinstance(keep_fraction, (bool, str)) and bool(0 < keep_fraction <= 1)
    except (TypeError, ValueError):  # no number, or several
        is_one = False
    if not is_one:
        raise ValueError(
            f"keep_fraction must lie in (0, 1], got {keep_fraction!r}; "
            "0.5 keeps half of the samples"
        )


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
    values = finite_scores(scores)
    return top_rows(values, num_kept(len(values), keep_fraction))


def keep_random(num_samples: int, keep_fraction: float, *, seed: int = 0) -> Ids:
    """Return a uniform draw without replacement, ascending; smaller fractions are nested.

    >>> len(keep_random(10, 0.3, seed=1))
    3
    """
    return random_rows(num_samples, num_kept(num_samples, keep_fraction), seed)


def random_rows(num_samples: int, count: int, seed: int) -> Ids:
    """Return a uniform draw of `count` rows without replacement; see `keep_random`."""
    return np.sort(permutation(num_samples, seed, 0x5EED)[:count])


def class_quotas(sizes: ArrayLike, total: int, floor: int = 0) -> Ids:
    """Return how many each class keeps: proportional, floors, then the largest remainders.

    Exact integer arithmetic: `total * size` never goes through a float. Ties of remainders go to
    the lower class. A class whose share is below `floor` gets that many, or all it has, and the
    other classes share what is left in the same way.

    Args:
        sizes: Samples per class.
        total: To keep, at most their sum.
        floor: The fewest of each class, at least 0.

    Raises:
        ValueError: If the floors add up to more than the total.

    >>> class_quotas([4, 2], 3)
    array([2, 1])
    >>> class_quotas([90, 8, 2], 10, floor=2)
    array([6, 2, 2])
    """
    counts = np.asarray(sizes, dtype=np.int64)
    check_floor(floor)
    least = np.minimum(counts, min(floor, int(counts.max(initial=0))))
    if least.sum() > total:
        raise ValueError(
            f"class_floor must leave its share to every class, got {floor} for {len(counts)} "
            f"classes ({least.sum()} samples) of {total} to keep; keep more or lower the floor"
        )
    quotas, free = least.copy(), np.ones(len(counts), dtype=np.bool_)
    while free.any():
        share = _shares(counts[free], total - int(quotas[~free].sum()))
        short = share < least[free]
        if not short.any():
            quotas[free] = share
            break
        free[np.flatnonzero(free)[short]] = False
    return quotas


def check_floor(floor: int) -> None:
    """Refuse what is no number of samples that every class keeps."""
    if not is_whole(floor) or floor < 0:
        raise ValueError(f"class_floor must be at least 0, got {floor!r}; give a whole number")


def _shares(counts: Ids, total: int) -> Ids:
    n = max(int(counts.sum()), 1)
    shares, remainders = counts * total // n, counts * total % n
    missing = total - int(shares.sum())
    # A stable sort of the negated remainders puts the lower class first among equals.
    shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return shares


def keep_moderate(embeddings: ArrayLike, labels: ArrayLike, keep_fraction: float) -> Ids:
    """Return the rows whose distance to their class median is closest to the middle rank.

    Moderate-DS (Xia et al., ICLR 2023): distances to the coordinate-wise median of the own class,
    one global ranking, ranks `[round(n(0.5-f/2)), round(n(0.5+f/2)))` with the count made exact.

    Args:
        embeddings: Shape (n, d), finite.
        labels: Shape (n,), integers at least 0.
        keep_fraction: In `(0, 1]`.
    """
    points = real("embeddings", embeddings)
    distances = moderate_distance(points, known_labels(labels, len(points)))
    return middle_rows(distances, num_kept(len(points), keep_fraction))


def keep_threshold(scores: ArrayLike, threshold: float) -> Ids:
    """Return the rows whose score is at or above the threshold, ascending; ties stay together.

    Args:
        scores: Shape (n,), finite.
        threshold: Any number, of any sign; infinities keep all or nothing. To scores of fewer than
            64 bits it is what they hold of it, so that equals stay together there, too.

    Raises:
        MissingScoreError: If a score is NaN or infinite.
        ValueError: If the threshold is NaN.

    >>> keep_threshold([-0.5, 0.5, -0.25], -0.25)
    array([1, 2])
    """
    given = real("scores", scores)
    return rows_above(finite_scores(given), in_precision(threshold, given.dtype))


def in_precision(threshold: float, kind: np.dtype[Any]) -> float:
    """Return the threshold as scores of that kind hold it: 0.7 as float32 is less than 0.7.

    >>> in_precision(0.7, np.dtype(np.float32)) < 0.7
    True
    """
    check_threshold(threshold)
    if kind.kind != "f":
        return threshold
    with np.errstate(over="ignore"):  # beyond every score of the kind
        return float(np.float64(threshold).astype(kind))


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that is no number."""
    if isinstance(threshold, (bool, str)) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number, got {threshold!r}")


def rows_above(values: NDArray[np.float64], threshold: float) -> Ids:
    """Return the rows at or above the threshold; see `keep_threshold`."""
    check_threshold(threshold)
    return np.flatnonzero(values >= threshold).astype(np.int64)


def middle_rows(distances: NDArray[np.float64], count: int) -> Ids:
    """Return `count` rows around the middle of the ranking, ascending; see `keep_moderate`."""
    # Rounds (n - count) / 2 half up: n(0.5 - f/2) as a float can fall a hair short of a half.
    start = (len(distances) - count + 1) // 2
    return np.sort(np.argsort(distances, kind="stable")[start : start + count]).astype(np.int64)


def top_rows(values: NDArray[np.float64], count: int) -> Ids:
    """Return the rows of the `count` highest values, ascending; ties go to the lower row."""
    return np.sort(np.argsort(-values, kind="stable")[:count]).astype(np.int64)


def finite_scores(scores: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """Return the scores as float64 (n,), all of them finite; negative ones are as good as any."""
    values = np.asarray(real(name, scores), dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {values.shape}; one number per sample")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise MissingScoreError(
            f"{name} must be finite, got {values[bad[0]]} for row {bad[0]} ({len(bad)} of "
            f"{len(values)} are not finite); extrapolate the missing scores before selecting"
        )
    return values


def known_labels(labels: ArrayLike, n: int) -> Ids:
    """Return the labels as int64 (n,), all of them at least 0."""
    if np.shape(plain(labels)) != (n,):
        raise ValueError(f"labels must have shape ({n},), got {np.shape(plain(labels))}")
    classes = integers("labels", labels)
    bad = np.flatnonzero(classes < 0)
    if len(bad):
        raise MissingScoreError(
            f"labels must be known for every sample, got none for row {bad[0]} ({len(bad)} are "
            "missing); use rule='top', or index shards whose samples have a `cls` member"
        )
    return classes
