"""A per-sample array as rows in id order, read shard by shard."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from shardsieve.store.damage import read_part

Half = NDArray[np.float16]


class StoredRows:
    """The (n, d) rows of an (S, L, d) array; a slice reads the shards it touches.

    The shard read last is kept, so that going through the rows in order reads each shard once.
    """

    def __init__(self, array: zarr.Array[Any], samples: NDArray[np.int64]) -> None:
        self._array, self._samples = array, samples
        self._first = np.concatenate([[0], np.cumsum(samples)])
        self._kept: tuple[int, Half] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, then dimensions."""
        return int(self._first[-1]), int(self._array.shape[2])

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        return self._array.dtype

    def shard(self, number: int) -> Half:
        """Return the rows of one shard."""
        if self._kept is None or self._kept[0] != number:
            block = read_part(self._array, (number, slice(int(self._samples[number]))))
            self._kept = number, block
        return self._kept[1]

    def part(self, number: int) -> slice:
        """Return where the rows of a shard stand."""
        return slice(int(self._first[number]), int(self._first[number + 1]))

    def __getitem__(self, rows: slice) -> Half:
        start, stop, step = rows.indices(self.shape[0])
        return self.take(np.arange(start, stop, step))

    def take(self, rows: NDArray[np.int64]) -> Half:
        """Return these rows, ascending; each shard is read once."""
        taken = np.empty((len(rows), self.shape[1]), dtype=self.dtype)
        ends = np.searchsorted(rows, self._first)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            here = slice(ends[number], ends[number + 1])
            taken[here] = self.shard(number)[rows[here] - self._first[number]]
        return taken


class TakenRows:
    """Some of the rows, ascending, read block by block."""

    def __init__(self, rows: StoredRows, places: NDArray[np.int64]) -> None:
        self._rows, self._places = rows, places

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, then dimensions."""
        return len(self._places), self._rows.shape[1]

    def __getitem__(self, rows: slice) -> Half:
        return self._rows.take(self._places[rows])
