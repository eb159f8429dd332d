"""Approximate nearest neighbours, set up to reach a recall that is measured."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._faiss import faiss
from shardsieve.extrapolate.protocol import Floats, Rows, blocks
from shardsieve.extrapolate.search import (
    Doubles,
    Ids,
    Part,
    distances_to,
    in_order,
    searches_on_gpu,
)
from shardsieve.scores.inputs import plain

SEARCHES = ("auto", "exact", "scan", "ivf", "hnsw")
SAMPLE = 1024
# With fewer pairs of seed and query an exact search is a matter of a minute on two cores.
_EXACT_PAIRS = 2**31
# Beyond so many seeds a look at the code of every one costs more than lists of them.
_MANY_SEEDS = 2**19
# Fewer seeds than that do not fill the tables that codes refer to.
_FEW_SEEDS, _PER_LIST = 1000, 39
_DIMS, _WIDEST, _SPARE, _TRAINING, _BLOCK = (128, 256), 1024, 4, 65_536, 16_384


@dataclass(frozen=True)
class Chosen:
    """A search, and the share of the true neighbours that it finds.

    Attributes:
        search: `exact`, `scan`, `ivf` or `hnsw`.
        recall: Share of the k nearest found, in `[0, 1]`, on queries that chose nothing; of two
            at the same distance either counts. 1 for `exact`.
        wanted: The recall asked for.
        queries: How many it was measured on; 0 for `exact`.
        settings: What was chosen: `dims` coded, `width` candidates measured again, and `effort`,
            the lists (`ivf`) or nodes (`hnsw`) visited.
    """

    search: str
    recall: float
    wanted: float
    queries: int
    settings: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return it, JSON-ready."""
        return asdict(self)


def kind_for(search: str, num_seeds: int, num_queries: int, dim: int, device: str = "cpu") -> str:
    """Return the kind of search that `auto` means here; another choice is kept.

    >>> kind_for("auto", 10_000, 40_000, 512), kind_for("auto", 128_000, 1_152_000, 512)
    ('exact', 'scan')
    """
    if dim < 8 or num_seeds < _FEW_SEEDS:
        return "exact"
    if search == "auto":
        few = num_seeds * num_queries < _EXACT_PAIRS
        if few or searches_on_gpu(num_seeds, dim, device):
            return "exact"
        return "scan" if num_seeds < _MANY_SEEDS else "ivf"
    return search


def spread_rows(rows: Rows, count: int = SAMPLE, run: int = 16) -> Floats:
    """Return about `count` rows from all over, in runs so that few chunks are read; or all."""
    total = rows.shape[0]
    if total <= count:
        return np.concatenate([block for _, block in blocks(rows, count)])
    starts = np.linspace(0, total - run, count // run).astype(np.int64)
    return np.concatenate([block for s in starts.tolist() for _, block in _run(rows, s, run)])


def _run(rows: Rows, start: int, size: int) -> Iterator[tuple[int, Floats]]:
    yield from blocks(np.asarray(plain(rows[start : start + size])), size)


def choose_search(
    seeds: NDArray[Any], queries: Floats, k: int, *, kind: str, recall: float
) -> "CodedSearch | None":
    """Return the cheapest search of its kind that finds enough of the queries' true neighbours.

    Half of the queries choose, with two standard errors to spare, and the other half measure.

    Args:
        seeds: (m, d), float16 or float32, finite.
        queries: (q, d), finite, q at least 2: such as will be asked.
        k: Neighbours, at least 1.
        kind: `scan`, `ivf` or `hnsw`.
        recall: To reach, in `(0, 1]`.

    Returns:
        The search, or None where none reaches it: search exactly then.
    """
    k = min(k, len(seeds))
    true_ids, true = true_neighbours(seeds, queries, k)
    trial, proof = slice(0, None, 2), slice(1, None, 2)
    for dims in sorted({min(most, seeds.shape[1] // 2 * 2) for most in _DIMS}):
        search = CodedSearch(seeds, kind, dims)
        if search.tune(queries[trial], true_ids[trial], k, recall):
            found = search.measure(queries[proof], k)[1]
            # Rounding must not make a tie a miss.
            share = float((found <= true[proof, -1:] * (1 + 1e-6)).mean())
            settings = {"dims": dims, "width": search.width, "effort": search.effort}
            search.chosen = Chosen(kind, share, recall, len(found), settings)
            return search
    return None


def true_neighbours(seeds: NDArray[Any], queries: Floats, k: int) -> tuple[Ids, Doubles]:
    """Return the k nearest seeds of a few queries and their distances, block by block."""
    mean = _mean(seeds)
    centred, near = queries - mean, []
    for start in range(0, len(seeds), _TRAINING):
        block = np.asarray(seeds[start : start + _TRAINING], dtype=np.float32) - mean
        near.append(faiss.knn(centred, block, min(k + _SPARE, len(block)))[1] + start)
    candidates = np.concatenate(near, axis=1)
    ids, distances = in_order(candidates, distances_to(seeds, queries, candidates))
    return ids[:, :k], distances[:, :k]


class CodedSearch:
    """Neighbours by short codes of the seeds, of which the best are measured again.

    Seeds are turned to their principal axes, cut to `dims` numbers and coded: 4 bits for each two
    (`scan`, all codes are looked at; `ivf`, those in the nearest lists) or 8 bits for each in a
    graph (`hnsw`). The `width` nearest by code are measured on the whole vectors, with 2 bytes a
    number, and the best of these exactly. `scan` and `ivf` repeat themselves on one machine; a
    graph is built by all threads at once, and does not.

    Attributes:
        width: Candidates measured again.
        effort: Lists or nodes visited; 0 for `scan`.
        chosen: How it was chosen, once it was.
    """

    def __init__(self, seeds: NDArray[Any], kind: str, dims: int) -> None:
        self.seeds, self.kind, self.width, self.effort = seeds, kind, _WIDEST, 0
        self.chosen: Chosen | None = None
        self._mean = _mean(seeds)
        parts = range(0, len(seeds), _BLOCK)
        largest = [np.abs(self._centred(seeds[s : s + _BLOCK])).max() for s in parts]
        # Half precision has few digits below 1e-4 and none beyond 65,504.
        self._scale = np.float32(max(largest) or 1)
        self._coded: Any = faiss.index_factory(seeds.shape[1], _spec(kind, dims, len(seeds)))
        if kind == "hnsw":
            turned: Any = self._coded
            graph: Any = faiss.downcast_index(turned.index)
            graph.hnsw.efConstruction = 100
        self._coded.train(self._scaled(seeds[:: -(-len(seeds) // _TRAINING)]))
        self._whole: Any = faiss.IndexScalarQuantizer(seeds.shape[1], faiss.ScalarQuantizer.QT_fp16)
        for start in parts:
            block = self._scaled(seeds[start : start + _BLOCK])
            self._coded.add(block)
            self._whole.add(block)
        self._both: Any = faiss.IndexRefine(self._coded, self._whole)

    def __call__(self, block: Floats, k: int) -> Iterator[Part]:
        """Yield (rows of the block, seed ids, distances), by distance and then id, k columns."""
        k = min(k, len(self.seeds))
        ids, distances = self.measure(block, k)
        lacking = np.isinf(distances[:, k - 1])
        if lacking.any():
            ids[lacking], distances[lacking] = true_neighbours(self.seeds, block[lacking], k)
        yield np.arange(len(block)), ids, distances

    def measure(self, block: Floats, k: int) -> tuple[Ids, Doubles]:
        """Return the ids and distances (n, k) of those found, infinite where there are fewer."""
        wanted = min(k + _SPARE, len(self.seeds))
        self._both.k_factor = max(self.width / wanted, 1)
        _, ids = self._both.search(self._scaled(block), wanted)
        distances = distances_to(self.seeds, block, np.maximum(ids, 0))
        ids, distances = in_order(ids, np.where(ids < 0, np.inf, distances))
        return ids[:, :k], distances[:, :k]

    def tune(self, queries: Floats, true_ids: Ids, k: int, recall: float) -> bool:
        """Set the least effort and width that find enough, and return whether any does."""
        for effort in _efforts(self.kind, len(self.seeds)):
            self.effort = effort
            if effort:
                name = "nprobe" if self.kind == "ivf" else "efSearch"
                faiss.ParameterSpace().set_index_parameter(self._coded, name, effort)
            widest = min(max(_WIDEST, 2 * (k + _SPARE)), len(self.seeds))
            widest = min(widest, effort) if self.kind == "hnsw" else widest
            _, found = self._coded.search(self._scaled(queries), widest)
            for width in _widths(k + _SPARE, widest):
                shares = [
                    np.isin(want, got).mean()
                    for want, got in zip(true_ids, found[:, :width], strict=True)
                ]
                spare = 2 * float(np.std(shares)) / math.sqrt(len(shares))
                if float(np.mean(shares)) - spare >= recall:
                    self.width = width
                    return True
        return False

    def _centred(self, block: NDArray[Any]) -> Floats:
        return np.asarray(block, dtype=np.float32) - self._mean

    def _scaled(self, block: NDArray[Any]) -> Floats:
        return np.asarray(self._centred(block) / self._scale)


def _mean(seeds: NDArray[Any]) -> Floats:
    return np.asarray(seeds.mean(axis=0, dtype=np.float64), dtype=np.float32)


def _spec(kind: str, dims: int, num_seeds: int) -> str:
    # The random turn after the principal axes (PCAR) gives every pair of numbers its fair share
    # of the variance, and so of the bits.
    codes = f"PQ{dims // 2}x4fs"
    return {
        "scan": f"PCAR{dims},{codes}",
        "ivf": f"PCAR{dims},IVF{_lists(num_seeds)},{codes}",
        "hnsw": f"PCAR{dims},HNSW32_SQ8",
    }[kind]


def _lists(num_seeds: int) -> int:
    return min(4 * math.isqrt(num_seeds), num_seeds // _PER_LIST)


def _efforts(kind: str, num_seeds: int) -> list[int]:
    if kind == "scan":
        return [0]
    most = _lists(num_seeds) if kind == "ivf" else 2048
    return [e for e in (16, 32, 64, 128, 256, 512, 1024, 2048) if e <= most]


def _widths(least: int, widest: int) -> list[int]:
    grown = [math.ceil(least * 1.25**n) for n in range(40)]
    return [w for w in grown if w < widest] + ([widest] if widest >= least else [])
