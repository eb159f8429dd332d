"""How well predicted scores agree with measured ones."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.protocol import Extrapolator, Rows, checked_seeds
from shardsieve.order import permutation
from shardsieve.selection import keep_top, num_kept

FRACTIONS = (0.3, 0.5, 0.7)
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """Agreement of predictions with measured scores.

    A random prediction has correlations near 0 and an agreement near the keep fraction itself. A
    second measurement is the ceiling: two runs of one score correlate below 1 as well.

    Attributes:
        pearson: Correlation of the values, in `[-1, 1]`; 0 when either side is constant.
        spearman: Correlation of the ranks, ties averaged, in `[-1, 1]`; 0 likewise.
        agreement: Keep fraction, as a string for JSON's sake -> share, in `[0, 1]`, of the measured
            top keep set that the predicted one holds.
        num_held_out: Samples compared.
    """

    pearson: float
    spearman: float
    agreement: dict[str, float]
    num_held_out: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        return asdict(self)


def measure(
    true: ArrayLike, predicted: ArrayLike, fractions: tuple[float, ...] = FRACTIONS
) -> Quality:
    """Return how well predicted scores (n,) agree with measured ones (n,).

    Args:
        true: Measured, finite.
        predicted: Of the same samples, finite.
        fractions: Keep fractions to compare at, in `(0, 1]`, each keeping at least one sample.
    """
    want, got = _pair(true, predicted)
    agreement = {str(f): keep_agreement(want, got, f) for f in fractions}
    return Quality(pearson(want, got), spearman(want, got), agreement, len(want))


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
    x, y = _pair(a, b)
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
    x, y = _pair(a, b)
    return pearson(_ranks(x), _ranks(y))


def keep_agreement(true: ArrayLike, predicted: ArrayLike, keep_fraction: float) -> float:
    """Return the share, in `[0, 1]`, of the true top keep set that the predicted one holds.

    Args:
        true: (n,), finite; ties go to the lower row.
        predicted: (n,), likewise.
        keep_fraction: In `(0, 1]`, keeping at least one of n.

    Raises:
        ValueError: If the lengths differ, a value is not finite, or nothing would be kept.

    >>> keep_agreement([4, 3, 2, 1], [4, 1, 3, 2], keep_fraction=0.5)
    0.5
    """
    want, got = _pair(true, predicted)
    _check_keeps(len(want), keep_fraction)
    kept = keep_top(want, keep_fraction)
    return len(np.intersect1d(kept, keep_top(got, keep_fraction))) / len(kept)


def cross_validate(
    make_extrapolator: Callable[[], Extrapolator],
    embeddings: Rows | ArrayLike,
    scores: ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    fractions: tuple[float, ...] = FRACTIONS,
) -> Quality:
    """Return the held-out quality over the seeds: each is predicted once, from the other folds.

    The predictions of all folds are pooled and then measured. The folds depend on the number of
    seeds, `folds` and `seed` alone, on every machine and in every release.

    Args:
        make_extrapolator: Gives a fresh extrapolator for each fold.
        embeddings: (m, d), finite.
        scores: (m,), finite.
        folds: In `[2, m]`.
        seed: Decides the folds.
        fractions: Keep fractions to compare at.

    Raises:
        ValueError: If there are fewer seeds than folds, or the inputs are not as above.
    """
    points, values = checked_seeds(embeddings, scores)
    if not 2 <= folds <= len(values):
        raise ValueError(
            f"folds must lie in [2, {len(values)}] for {len(values)} seeds, got {folds}; "
            "score more seeds or ask for fewer folds"
        )
    for fraction in fractions:  # before the work, not after it
        _check_keeps(len(values), fraction)
    fold = np.empty(len(values), dtype=np.int64)
    fold[permutation(len(values), seed, folds)] = np.arange(len(values)) % folds
    predicted = np.empty(len(values), dtype=np.float32)
    for one in range(folds):
        held_out = fold == one
        model = make_extrapolator()
        model.fit(points[~held_out], values[~held_out])
        predicted[held_out] = model.predict(points[held_out])
    return measure(values, predicted, fractions)


def _check_keeps(num_samples: int, keep_fraction: float) -> None:
    if num_kept(num_samples, keep_fraction) < 1:
        raise ValueError(
            f"keep_fraction must keep at least 1 of {num_samples} samples, got {keep_fraction}; "
            "compare at a larger fraction"
        )


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Doubles, Doubles]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
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


def _unit(values: Doubles) -> Doubles:
    # Scaled before and after centring: squares of 1e200 or 1e-200 leave float64.
    centred = values / np.abs(values).max()
    centred = centred - centred.mean()
    largest = np.abs(centred).max()
    if largest == 0:  # values apart by the last digit alone
        return np.asarray(centred)
    centred = centred / largest
    return np.asarray(centred / np.linalg.norm(centred))


def _ranks(values: Doubles) -> Doubles:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
