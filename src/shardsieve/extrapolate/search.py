"""Exact nearest neighbours: float32 proposes, float64 measures again and proves completeness."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardsieve._faiss import faiss
from shardsieve.extrapolate.protocol import Floats

# Candidates beyond k, so that the first search nearly always proves itself complete.
_SPARE = 16
# Numbers in a temporary array, 32 MiB of float64.
_BUDGET = 2**22
# Most neighbours that faiss finds on a GPU.
_GPU_WIDTH = 2048

Ids = NDArray[np.int64]
Doubles = NDArray[np.float64]
Part = tuple[Ids, Ids, Doubles]


def has_gpu() -> bool:
    """Return whether this faiss can search on a GPU."""
    return bool(faiss.get_num_gpus())


def searches_on_gpu(num_seeds: int, dim: int, device: str) -> bool:
    """Return whether an exact search is made on a GPU: by faiss, or on torch's device if they fit.

    >>> searches_on_gpu(1000, 512, "cpu")
    False
    """
    return has_gpu() or _fit(num_seeds, dim, device)


def _fit(num_seeds: int, dim: int, device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    from shardsieve.extrapolate.on_gpu import bytes_of, free_bytes  # torch takes seconds to import

    return bytes_of(num_seeds, dim) <= free_bytes(device)


class ExactSearch:
    """Exact neighbours: proposed in float32, measured again in float64, none of them missing.

    |x|² + |y|² - 2xy in float32 loses the digits of small distances. A GPU proposes where faiss has
    one, else where torch's `device` is one and has room, which measures, too. What is returned is
    the same, up to the order in which float64 sums.
    """

    def __init__(self, seeds: Floats, device: str = "cpu") -> None:
        self.seeds = seeds
        # Distances stay the same about the mean, and the shorter vectors lose fewer digits.
        self._mean = seeds.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._held: _Held
        if not has_gpu() and _fit(len(seeds), seeds.shape[1], device):
            from shardsieve.extrapolate.on_gpu import SeedsOnGpu

            self._held = SeedsOnGpu(seeds, self._mean, device)
        else:
            self._held = _SeedsInFaiss(seeds, self._mean)

    def __call__(self, block: Floats, k: int) -> Iterator[Part]:
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
            squared, ids = self._held.propose(block, width)
            # A padded row, with id -1 where distances overflow, is no proof of anything.
            least = np.where((ids >= 0).all(axis=1), squared[:, -1].astype(np.float64), -np.inf)
        ids, distances = in_order(ids, self._held.distances(block, ids))
        # The d² of any other seed y is at least `least` less float32's error, which is at most
        # e(|x|² + |y|²), and |y|² <= 2|x|² + 2d².
        e = 2 * (block.shape[1] + 8) * 2.0**-24
        lengths = np.square(block.astype(np.float64) - self._mean).sum(axis=1)
        return ids, distances, distances[:, k - 1] ** 2 * (1 + 2 * e) < least - 3 * e * lengths


class _Held(Protocol):
    """Seeds where they are searched."""

    def propose(self, block: Floats, width: int) -> tuple[Floats, Ids]:
        """Return squared distances, ascending, and ids of the nearest by float32, (n, width).

        Ids are -1 where distances overflow.
        """

    def distances(self, block: Floats, ids: Ids) -> Doubles:
        """Return the distances (n, c) of each row of a block (n, d) to its candidates (n, c)."""


class _SeedsInFaiss:
    """Seeds in an index of faiss, on its GPUs too where it has any."""

    def __init__(self, seeds: Floats, mean: Floats) -> None:
        self._seeds, self._mean = seeds, mean
        self._index: Any = faiss.IndexFlatL2(seeds.shape[1])
        self._index.add(self._centred(seeds))
        self._fast: Any = faiss.index_cpu_to_all_gpus(self._index) if has_gpu() else self._index

    def propose(self, block: Floats, width: int) -> tuple[Floats, Ids]:
        index = self._fast if width <= _GPU_WIDTH else self._index
        squared, ids = index.search(self._centred(block), width)
        return squared, ids

    def distances(self, block: Floats, ids: Ids) -> Doubles:
        return distances_to(self._seeds, block, ids)

    def _centred(self, block: Floats) -> Floats:
        with np.errstate(over="ignore"):  # an infinity is never near, and leaves the row unproven
            return np.asarray(block - self._mean)


def distances_to(seeds: NDArray[Any], block: Floats, ids: Ids) -> Doubles:
    """Return the distances (n, c) of each row of a block (n, d) to its candidates (n, c)."""
    distances = np.empty(ids.shape)
    step = max(1, _BUDGET // (ids.shape[1] * block.shape[1]))
    for start in range(0, len(block), step):
        part = slice(start, start + step)
        apart = np.subtract(seeds[ids[part]], block[part, None], dtype=np.float64)
        distances[part] = np.sqrt(np.einsum("nkd,nkd->nk", apart, apart))
    return distances


def in_order(ids: Ids, distances: Doubles) -> tuple[Ids, Doubles]:
    """Return candidates sorted within each row by distance and then id."""
    order = np.lexsort((ids, distances))
    distances = np.take_along_axis(distances, order, axis=1)
    return np.take_along_axis(ids, order, axis=1).astype(np.int64), distances
