"""How well predicted scores agree with measured ones."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.order import permutation
from shardsieve.selection import keep_top


class Extrapolator(Protocol):
    """Predicts scores from embeddings; `predict` of a seed need not return its own score."""

    def fit(self, embeddings: ArrayLike, scores: ArrayLike) -> Any:
        """Take in the seeds' embeddings (m, d) and scores (m,)."""
        ...

    def predict(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """Return the scores (n,) of embeddings (n, d)."""
        ...


@dataclass(frozen=True)
class Quality:
    """Agreement of held-out predictions with measured scores.

    Attributes:
        pearson: Correlation of the values, in `[-1, 1]`; 0 when either is constant.
        spearman: Correlation of the ranks, ties averaged.
        agreement: Keep fraction -> share of the measured top keep set in the predicted one.
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
    true: ArrayLike, predicted: ArrayLike, fractions: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> Quality:
    """Compare predicted with measured scores, both (n,)."""
    want, got = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    agreement = {str(f): keep_agreement(want, got, f) for f in fractions}
    return Quality(pearson(want, got), spearman(want, got), agreement, len(want))


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """Return Pearson's correlation; 0 when either side is constant.

    >>> round(pearson([1, 2, 3], [2, 4, 6]), 6)
    1.0
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Return the correlation of ranks, ties taking their mean rank."""
    return pearson(_ranks(np.asarray(a)), _ranks(np.asarray(b)))


def keep_agreement(true: ArrayLike, predicted: ArrayLike, keep_fraction: float) -> float:
    """Return the share of the measured top keep set that the predicted one holds."""
    want, got = keep_top(true, keep_fraction), keep_top(predicted, keep_fraction)
    return len(np.intersect1d(want, got)) / max(len(want), 1)


def cross_validate(
    make: Callable[[], Extrapolator],
    embeddings: ArrayLike,
    scores: ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Quality:
    """Return the held-out quality over the seeds: every seed is predicted once from the others.

    Args:
        make: Gives a fresh extrapolator.
        embeddings: (m, d).
        scores: (m,).
        folds: In `[2, m]`.
        seed: Of the folds.
    """
    points, values = np.asarray(embeddings), np.asarray(scores, np.float32)
    if not 2 <= folds <= len(values):
        raise ValueError(f"folds must lie in [2, {len(values)}], got {folds}; score more seeds")
    fold = np.empty(len(values), dtype=np.int64)
    fold[permutation(len(values), seed, folds)] = np.arange(len(values)) % folds
    predicted = np.empty(len(values), dtype=np.float32)
    for one in range(folds):
        held = fold == one
        model = make()
        model.fit(points[~held], values[~held])
        predicted[held] = model.predict(points[held])
    return measure(values, predicted)


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)
