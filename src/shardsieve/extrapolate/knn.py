"""Nearest-neighbour extrapolation (Score Extrapolation, arXiv 2506.09010, Eq. 6)."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

WEIGHTS = ("exp", "mean", "inverse")
_BLOCK = 4096
Floats = NDArray[np.float32]


class KNN:
    """Weighted mean of the scores of the k nearest seeds, by Euclidean distance.

    Weights: `exp` is exp(-d), computed as exp(-(d - d_min)) so that far-off samples do not
    underflow; `mean` is 1; `inverse` is 1/d, where seeds at distance 0 share all the weight.
    Predictions lie within the range of the neighbours' scores.

    Attributes:
        k: Neighbours; fewer seeds than that are all used.
        weights: One of the above.
    """

    def __init__(self, k: int = 50, weights: str = "exp") -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.k, self.weights = k, weights
        self._seeds: Floats | None = None

    def fit(self, embeddings: ArrayLike, scores: ArrayLike) -> "KNN":
        """Take in the seeds.

        Args:
            embeddings: (m, d), finite, m >= 1.
            scores: (m,), finite.
        """
        seeds = _finite_rows("embeddings", embeddings)
        values = np.asarray(scores, dtype=np.float32)
        if values.shape != (len(seeds),) or len(seeds) == 0:
            raise ValueError(
                f"scores must have shape ({len(seeds)},) and m >= 1, got {values.shape}"
            )
        if not np.isfinite(values).all():
            first = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"scores must be finite, got {values[first]} for seed {first}")
        self._seeds, self._scores = seeds, values
        self._index: Any = faiss.IndexFlatL2(seeds.shape[1])
        self._index.add(seeds)
        return self

    def predict(self, embeddings: ArrayLike) -> Floats:
        """Return the predicted score of every row: float32 (n,), for embeddings (n, d)."""
        if self._seeds is None:
            raise ValueError("KNN must be fitted before it predicts; call fit")
        points = np.asarray(embeddings)
        if points.ndim != 2 or points.shape[1] != self._seeds.shape[1]:
            raise ValueError(
                f"embeddings must have shape (n, {self._seeds.shape[1]}), got {points.shape}"
            )
        predicted = np.empty(len(points), dtype=np.float32)
        for start in range(0, len(points), _BLOCK):
            block = _finite_rows("embeddings", points[start : start + _BLOCK])
            predicted[start : start + len(block)] = self._block(block)
        return predicted

    def _block(self, block: Floats) -> Floats:
        assert self._seeds is not None
        _, rows = self._index.search(block, min(self.k, len(self._seeds)))
        # faiss' expanded form loses digits near zero: the found neighbours are measured again.
        distances = np.linalg.norm(block[:, None].astype(np.float64) - self._seeds[rows], axis=-1)
        weights = self._weigh(distances)
        scores = self._scores[rows].astype(np.float64)
        mean = (weights * scores).sum(axis=1) / weights.sum(axis=1)
        # Rounding must not push a mean out of its neighbours' range.
        clipped: Floats = np.clip(mean, scores.min(axis=1), scores.max(axis=1)).astype(np.float32)
        return clipped

    def _weigh(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.weights == "mean":
            return np.ones_like(distances)
        if self.weights == "exp":
            nearest: NDArray[np.float64] = distances.min(axis=1, keepdims=True)
            return np.asarray(np.exp(nearest - distances))
        same = distances == 0
        inverse = 1 / np.where(same, 1, distances)
        return np.where(same.any(axis=1, keepdims=True), same, inverse)


def _finite_rows(name: str, values: ArrayLike) -> Floats:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(f"{name} must be finite, row {bad[0]} is not; embed the data set again")
    return array
