"""Nearest-neighbour extrapolation (Score Extrapolation, arXiv 2506.09010, Eq. 6)."""

from collections.abc import Iterator
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, blocks, checked_seeds

WEIGHTS = ("exp", "mean", "inverse")
METRICS = ("euclidean", "cosine")
# Normalising to float32 moves a vector by 1e-7: parallel vectors count as one below this.
_SAME_DIRECTION = 1e-6
# Candidates beyond k, so that the first search nearly always proves itself complete.
_SPARE = 16
# Numbers in a temporary array, 32 MiB of float64.
_BUDGET = 2**22

Ids = NDArray[np.int64]
Doubles = NDArray[np.float64]


class KNN:
    """Weighted mean of the scores of the k nearest seeds.

    Weights by distance d (never squared): `exp` is exp(-d), computed as exp(-(d - d_min)) so that
    far-off samples do not underflow; `mean` is 1; `inverse` is 1/d, where seeds at distance 0 share
    all the weight. Seeds tied at the k-th distance share the places that are left, so the order of
    the seeds decides nothing. Predictions lie within the range of their neighbours' scores.

    Attributes:
        k: Neighbours, at least 1; fewer seeds than that are all used.
        weights: `exp`, `mean` or `inverse`.
        metric: `euclidean`, or `cosine`: the Euclidean distance of vectors scaled to length 1, in
            `[0, 2]`, for the choice of neighbours and for their weights alike.
        block_rows: Rows read and predicted at a time; bounds the memory, changes no prediction.
    """

    def __init__(
        self,
        k: int = 50,
        weights: str = "exp",
        metric: str = "euclidean",
        *,
        block_rows: int = 4096,
    ) -> None:
        for name, number in (("k", k), ("block_rows", block_rows)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}; 50 and 4096 are usual")
        for name, choice, known in (("weights", weights, WEIGHTS), ("metric", metric, METRICS)):
            if choice not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {choice!r}; see KNN"
                )
        self.k, self.weights, self.metric, self.block_rows = k, weights, metric, block_rows
        self._search: _Search | None = None

    def fit(self, embeddings: Rows | ArrayLike, scores: ArrayLike) -> Self:
        """Take in the seeds; those of an earlier fit are forgotten.

        Args:
            embeddings: (m, d), float16 or float32, finite, m at least 1.
            scores: (m,), finite.

        Raises:
            ValueError: If shapes disagree or a number is not finite, naming the first such row.
        """
        seeds, values = checked_seeds(embeddings, scores)
        self._search = _Search(self._scaled(seeds, 0))
        self._scores = values
        return self

    def predict(self, embeddings: Rows | ArrayLike) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        Args:
            embeddings: (n, d), finite, anything sliceable by rows; read block by block.

        Raises:
            ValueError: If nothing was fitted, d differs from the seeds', or a row is not finite.
        """
        if self._search is None:
            raise ValueError("KNN must be fitted before it predicts, got no seeds; call fit")
        rows = as_rows(embeddings, self._search.seeds.shape[1])
        predicted = np.empty(rows.shape[0], dtype=np.float32)
        for start, block in blocks(rows, self.block_rows):
            for places, ids, distances in self._search(self._scaled(block, start), self.k):
                predicted[start + places] = self._combine(ids, distances)
        return predicted

    def _scaled(self, block: Floats, start: int) -> Floats:
        if self.metric == "euclidean":
            return block
        exact = block.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        if (lengths == 0).any():
            raise ValueError(
                "embeddings must have a direction for the cosine metric, got a zero vector in row "
                f"{start + int(np.argmin(lengths))}; use metric='euclidean'"
            )
        return np.asarray(exact / lengths, dtype=np.float32)

    def _combine(self, ids: Ids, distances: Doubles) -> Floats:
        if self.metric == "cosine":
            distances = np.where(distances < _SAME_DIRECTION, 0.0, distances)
        shares = _shares(distances, min(self.k, len(self._scores)))
        weights = shares * self._weigh(distances)
        scores = self._scores[ids].astype(np.float64)
        means = (weights * scores).sum(axis=1) / weights.sum(axis=1)
        # Rounding must not push a mean out of its neighbours' range.
        low = np.where(shares > 0, scores, np.inf).min(axis=1)
        high = np.where(shares > 0, scores, -np.inf).max(axis=1)
        return np.asarray(np.clip(means, low, high), dtype=np.float32)

    def _weigh(self, distances: Doubles) -> Doubles:
        nearest = distances[:, :1]
        if self.weights == "mean":
            return np.ones_like(distances)
        if self.weights == "exp":
            return np.asarray(np.exp(nearest - distances))
        same = distances == 0
        # Only ratios of weights matter: d_min / d lies in [0, 1] where 1 / d may overflow.
        inverse = nearest / np.where(same, 1, distances)
        return np.where(same.any(axis=1, keepdims=True), same, inverse)


def neighbours(
    seed_embeddings: Rows | ArrayLike, query_embeddings: Rows | ArrayLike, k: int
) -> tuple[Ids, Doubles]:
    """Return the nearest seeds of every query and their Euclidean distances, nearest first.

    The search is exact, ties go to the lower id, and equal vectors are at distance exactly 0.

    Args:
        seed_embeddings: (m, d), finite, m at least 1.
        query_embeddings: (n, d), finite, anything sliceable by rows.
        k: At least 1; fewer seeds than that are all returned.

    Returns:
        Ids in `[0, m)`, int64, and distances, float64, both (n, min(k, m)).

    Raises:
        ValueError: If shapes disagree, a number is not finite, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; 50 is usual")
    seeds, _ = checked_seeds(seed_embeddings, np.zeros(as_rows(seed_embeddings).shape[0]))
    rows = as_rows(query_embeddings, seeds.shape[1])
    shape = (rows.shape[0], min(k, len(seeds)))
    found, distances = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float64)
    search = _Search(seeds)
    for start, block in blocks(rows, 4096):
        for places, ids, exact in search(block, k):
            found[start + places] = ids[:, : shape[1]]
            distances[start + places] = exact[:, : shape[1]]
    return found, distances


class _Search:
    """Exact neighbours: faiss proposes, float64 measures again and checks that none is missing.

    faiss computes |x|² + |y|² - 2xy in float32, which loses the digits of small distances.
    """

    def __init__(self, seeds: Floats) -> None:
        self.seeds = seeds
        # Distances stay the same about the mean, and the shorter vectors lose fewer digits.
        self._mean = seeds.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._index: Any = faiss.IndexFlatL2(seeds.shape[1])
        self._index.add(self._centred(seeds))

    def __call__(self, block: Floats, k: int) -> Iterator[tuple[Ids, Ids, Doubles]]:
        """Yield (rows of the block, seed ids, distances), by distance and then id.

        Each row comes once, with k columns or more that hold every seed tied at the k-th distance.
        """
        count, rows = len(self.seeds), np.arange(len(block))
        k = min(k, count)
        width = min(count, k + _SPARE)
        while len(rows):
            step = max(1, _BUDGET // width)
            unsure = []
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                ids, distances, sure = self._measure(block[part], k, width)
                yield part[sure], ids[sure], distances[sure]
                unsure.append(part[~sure])
            rows, width = np.concatenate(unsure), min(count, 4 * width)

    def _measure(self, block: Floats, k: int, width: int) -> tuple[Ids, Doubles, NDArray[np.bool_]]:
        if width == len(self.seeds):
            ids = np.broadcast_to(np.arange(width), (len(block), width))
            least = np.full(len(block), np.inf)
        else:
            squared, ids = self._index.search(self._centred(block), width)
            # A padded row, with id -1 where distances overflow, is no proof of anything.
            least = np.where((ids >= 0).all(axis=1), squared[:, -1].astype(np.float64), -np.inf)
        distances = self._distances(block, ids)
        order = np.lexsort((ids, distances))
        distances = np.take_along_axis(distances, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1).astype(np.int64)
        # The d² of any other seed y is at least `least` less faiss' error, which is at most
        # e(|x|² + |y|²), and |y|² <= 2|x|² + 2d².
        e = 2 * (block.shape[1] + 8) * 2.0**-24
        lengths = np.square(block.astype(np.float64) - self._mean).sum(axis=1)
        return ids, distances, distances[:, k - 1] ** 2 * (1 + 2 * e) < least - 3 * e * lengths

    def _distances(self, block: Floats, ids: Ids) -> Doubles:
        distances = np.empty(ids.shape)
        step = max(1, _BUDGET // (ids.shape[1] * block.shape[1]))
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            apart = np.subtract(self.seeds[ids[part]], block[part, None], dtype=np.float64)
            distances[part] = np.sqrt(np.einsum("nkd,nkd->nk", apart, apart))
        return distances

    def _centred(self, block: Floats) -> Floats:
        with np.errstate(over="ignore"):  # an infinity is never near, and leaves the row unproven
            return np.asarray(block - self._mean)


def _shares(distances: Doubles, k: int) -> Doubles:
    """Return how much of a place each candidate holds, in `[0, 1]`; every row sums to k."""
    last = distances[:, k - 1 : k]
    nearer, tied = distances < last, distances == last
    left = k - nearer.sum(axis=1, keepdims=True)
    return np.asarray(nearer + tied * (left / tied.sum(axis=1, keepdims=True)))
