"""Nearest-neighbour extrapolation (Score Extrapolation, arXiv 2506.09010, Eq. 6)."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.approximate import (
    SEARCHES,
    Chosen,
    CodedSearch,
    choose_search,
    kind_for,
    spread_rows,
)
from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, blocks, checked_seeds
from shardsieve.extrapolate.search import Doubles, ExactSearch, Ids
from shardsieve.scores.inputs import one_of, whole_number

WEIGHTS = ("exp", "mean", "inverse")
METRICS = ("euclidean", "cosine")
Finder = ExactSearch | CodedSearch
# Normalising to float32 moves a vector by 1e-7: parallel vectors count as one below this.
_SAME_DIRECTION = 1e-6


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
        search: `exact`; `scan`, `ivf` or `hnsw`, faster searches set up to find `min_recall` of
            the neighbours, measured on a sample of the queries (see `CodedSearch`), or exact where
            none does; `auto`: exact while that is a matter of a minute, or on a GPU.
        min_recall: In `(0, 1]`.
        device: Torch's; on a `cuda` one exact searches run there. Another one changes nothing.
        chosen: The search used last and its measured recall; None before.
        block_rows: Rows read and predicted at a time; bounds the memory, changes no prediction.
    """

    def __init__(
        self,
        k: int = 50,
        weights: str = "exp",
        metric: str = "euclidean",
        *,
        search: str = "auto",
        min_recall: float = 0.99,
        device: str = "cpu",
        block_rows: int = 4096,
    ) -> None:
        whole_number("k", k, 1)
        whole_number("block_rows", block_rows, 1)
        one_of("weights", weights, WEIGHTS)
        one_of("metric", metric, METRICS)
        _check_search(search, min_recall)
        self.k, self.weights, self.metric, self.block_rows = k, weights, metric, block_rows
        self.search, self.min_recall, self.device = search, min_recall, device
        self.chosen: Chosen | None = None
        self._seeds: Floats | None = None

    def fit(self, embeddings: Rows | ArrayLike, scores: ArrayLike) -> Self:
        """Take in the seeds; those of an earlier fit are forgotten.

        Args:
            embeddings: (m, d), float16 or float32, finite, m at least 1.
            scores: (m,), finite.

        Raises:
            ValueError: If shapes disagree or a number is not finite, naming the first such row.
        """
        seeds, values = checked_seeds(embeddings, scores)
        self._seeds, self._scores, self.chosen = self._scaled(seeds, 0), values, None
        self._exact: ExactSearch | None = None
        self._settled: Finder | None = None
        return self

    def choose(self, queries: Rows | ArrayLike, num_queries: int | None = None) -> Chosen:
        """Choose the search once for all later predictions, and return it with its recall.

        Without it `predict` chooses, from rows of its own call, where an exact search is too slow.

        Args:
            queries: (q, d), finite: such as will be predicted, of which some are looked up.
            num_queries: How many will be predicted; q if left out.
        """
        rows = self._checked(queries)
        self._settled = self._searching(rows, self.k, num_queries or rows.shape[0])
        assert self.chosen is not None
        return self.chosen

    def predict(self, embeddings: Rows | ArrayLike) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        Args:
            embeddings: (n, d), finite, anything sliceable by rows; read block by block.

        Raises:
            ValueError: If nothing was fitted, d differs from the seeds', or a row is not finite.
        """
        return np.asarray(self.predict_each(embeddings, (self.k,))[0])

    def predict_each(self, embeddings: Rows | ArrayLike, ks: Sequence[int]) -> Floats:
        """Return what `predict` would for several k, from one search: float32 (len(ks), n)."""
        rows = self._checked(embeddings)
        search = self._settled or self._searching(rows, max(ks), rows.shape[0])
        predicted = np.empty((len(ks), rows.shape[0]), dtype=np.float32)
        for start, block in blocks(rows, self.block_rows):
            for places, ids, distances in search(self._scaled(block, start), max(ks)):
                for row, k in zip(predicted, ks, strict=True):
                    row[start + places] = self._combine(ids, distances, k)
        return predicted

    def _checked(self, embeddings: Rows | ArrayLike) -> Rows:
        if self._seeds is None:
            raise ValueError("KNN must be fitted before it predicts, got no seeds; call fit")
        return as_rows(embeddings, self._seeds.shape[1])

    def _searching(self, rows: Rows, k: int, num_queries: int) -> Finder:
        assert self._seeds is not None
        shape = self._seeds.shape
        kind = kind_for(self.search, shape[0], num_queries, shape[1], self.device)
        if kind != "exact" and rows.shape[0] > 1:
            sample = self._scaled(spread_rows(rows), 0)
            found = choose_search(self._seeds, sample, k, kind=kind, recall=self.min_recall)
            if found is not None:
                self.chosen, self._settled = found.chosen, found
                return found
        self._exact = self._exact or ExactSearch(self._seeds, self.device)
        self.chosen = chosen_of(self._exact, self.min_recall)
        return self._exact

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

    def _combine(self, ids: Ids, distances: Doubles, k: int) -> Floats:
        if self.metric == "cosine":
            distances = np.where(distances < _SAME_DIRECTION, 0.0, distances)
        shares = _shares(distances, min(k, len(self._scores)))
        weights = shares * self._weigh(distances)
        scores = self._scores[ids].astype(np.float64)
        # float64 errs too little to leave the range of float32 scores.
        means = (weights * scores).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(means, dtype=np.float32)

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
    seed_embeddings: Rows | ArrayLike,
    query_embeddings: Rows | ArrayLike,
    k: int,
    *,
    search: str = "exact",
    min_recall: float = 0.99,
    device: str = "cpu",
    part: slice = slice(None),
) -> tuple[Ids, Doubles]:
    """Return the nearest seeds of every query and their Euclidean distances, nearest first.

    Ties go to the lower id, and equal vectors are at distance exactly 0.

    Args:
        seed_embeddings: (m, d), finite, m at least 1.
        query_embeddings: (n, d), finite, anything sliceable by rows.
        k: At least 1; fewer seeds than that are all returned.
        search: As in `KNN`.
        min_recall: Likewise.
        device: Likewise.
        part: The queries to look up, in steps of 1; the search is chosen for all of them.

    Returns:
        Ids in `[0, m)`, int64, and distances, float64, both (n, min(k, m)), n those looked up.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or an argument is out of range.
    """
    whole_number("k", k, 1)
    _check_search(search, min_recall)
    given = as_rows(seed_embeddings)
    rows = as_rows(query_embeddings, given.shape[1])
    kind = kind_for(search, given.shape[0], rows.shape[0], given.shape[1], device)
    seeds, _ = checked_seeds(given, np.zeros(given.shape[0]), halves=kind != "exact")
    finder = finder_for(seeds, rows, k, kind=kind, recall=min_recall, device=device)
    return looked_up(finder, rows, k, part)


def finder_for(
    seeds: NDArray[Any],
    queries: Rows,
    k: int,
    *,
    kind: str,
    recall: float = 0.99,
    device: str = "cpu",
) -> Finder:
    """Return a search of a kind, chosen on some of the queries; exact where none of it is enough.

    Args:
        seeds: (m, d), finite, float32, or float16 where the kind is not `exact`.
        queries: (n, d), finite.
        k: At least 1.
        kind: `exact`, `scan`, `ivf` or `hnsw`.
        recall: In `(0, 1]`.
        device: As in `KNN`.
    """
    coded = None
    if kind != "exact" and queries.shape[0] > 1:
        coded = choose_search(seeds, spread_rows(queries), k, kind=kind, recall=recall)
    return coded or ExactSearch(seeds, device)


def chosen_of(finder: Finder, recall: float = 0.99) -> Chosen:
    """Return how a search was chosen."""
    chosen = finder.chosen if isinstance(finder, CodedSearch) else None
    return chosen or Chosen("exact", 1.0, recall, 0, {})


def looked_up(
    finder: Finder, queries: Rows, k: int, part: slice = slice(None)
) -> tuple[Ids, Doubles]:
    """Return what `neighbours` does, by a search that was chosen before."""
    first, stop, _ = part.indices(queries.shape[0])
    shape = (stop - first, min(k, len(finder.seeds)))
    found, distances = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float64)
    for start, block in blocks(queries, 4096, part):
        for places, ids, exact in finder(block, k):
            found[start - first + places] = ids[:, : shape[1]]
            distances[start - first + places] = exact[:, : shape[1]]
    return found, distances


def others(ids: Ids, own: Ids) -> NDArray[np.bool_]:
    """Return which neighbours (n, c) to take so that no row is its own: all but one of every row.

    Args:
        ids: (n, c), c one more than are wanted.
        own: (n,), the id of every row itself.
    """
    itself = ids == own[:, None]
    # Among more than k equal points a row may not find itself: drop the last instead.
    itself[~itself.any(axis=1), -1] = True
    return np.asarray(~itself)


def _check_search(search: str, recall: float) -> None:
    one_of("search", search, SEARCHES)
    if not 0 < recall <= 1:
        raise ValueError(f"min_recall must lie in (0, 1], got {recall}; 0.99 is usual")


def _shares(distances: Doubles, k: int) -> Doubles:
    """Return how much of a place each candidate holds, in `[0, 1]`; every row sums to k."""
    last = distances[:, k - 1 : k]
    nearer, tied = distances < last, distances == last
    left = k - nearer.sum(axis=1, keepdims=True)
    return np.asarray(nearer + tied * (left / tied.sum(axis=1, keepdims=True)))
