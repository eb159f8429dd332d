"""`LeanLoader`: FFCV's `Loader` without its per-sample Python tables.

FFCV's memory managers fill three dictionaries with every sample of the file, on every rank. Only
QUASI_RANDOM and `os_cache=False` ask them anything. Here numpy arrays answer instead. Nothing in
FFCV is changed: its own `Loader.__init__` runs with two names bound to the managers below.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from ffcv.loader import Loader
from ffcv.memory_managers import OSCacheManager, ProcessCacheManager
from ffcv.memory_managers.base import MemoryManager
from ffcv.memory_managers.process_cache import ProcessCacheContext
from numpy.typing import NDArray


class Pages:
    """Which page holds the bytes of each sample, as arrays: 16 bytes per sample.

    Attributes:
        of_sample: int64 (n,), -1 for a sample without bytes of its own.
    """

    def __init__(self, table: NDArray[np.void], num_samples: int, page_size: int) -> None:
        """Look at FFCV's allocation table.

        Raises:
            ValueError: If a sample's bytes lie in several pages, which FFCV never writes.
        """
        samples = table["sample_id"].astype(np.int64)
        pages = (table["ptr"] // np.uint64(page_size)).astype(np.int64)
        self.of_sample = np.full(num_samples, -1, dtype=np.int64)
        self.of_sample[samples] = pages
        if not np.array_equal(self.of_sample[samples], pages):
            raise ValueError("samples must lie in one page each; write the file again with ffcv")
        self._by_page = np.argsort(self.of_sample, kind="stable")
        self._sorted = self.of_sample[self._by_page]

    def samples_of(self, page: int) -> NDArray[np.int64]:
        """Return the samples of one page, ascending."""
        begin, end = np.searchsorted(self._sorted, [page, page + 1])
        return self._by_page[begin:end]

    def numbers(self) -> NDArray[np.int64]:
        """Return the pages that hold any sample, ascending."""
        found = np.unique(self._sorted)
        return found[found >= 0]


class SampleToPages(Mapping[int, set[np.uint64]]):
    """FFCV's table of a sample's pages: empty for a sample without bytes."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def __getitem__(self, sample: int) -> set[np.uint64]:
        page = self._pages.of_sample[int(sample)]
        # FFCV multiplies it by a 32-bit page size.
        return {np.uint64(page)} if page >= 0 else set()

    def __len__(self) -> int:
        return int((self._pages.of_sample >= 0).sum())

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._pages.of_sample >= 0).tolist())


class PageToSamples(Mapping[int, set[int]]):
    """FFCV's table of a page's samples."""

    def __init__(self, pages: Pages) -> None:
        self._pages, self._numbers = pages, pages.numbers()

    def __getitem__(self, page: int) -> set[int]:
        return set(self._pages.samples_of(int(page)).tolist())

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        # FFCV adds an unsigned integer to the largest.
        return iter(self._numbers.astype(np.uint64))


class _LeanTables(MemoryManager):  # type: ignore[misc]
    """FFCV's memory manager, but for what its `__init__` builds."""

    def __init__(self, reader: Any) -> None:
        table = reader.alloc_table
        order = np.argsort(table["ptr"], kind="stable")
        self.reader, self.ptrs, self.sizes = reader, table["ptr"][order], table["size"][order]
        self.pages = Pages(table, int(reader.num_samples), int(reader.page_size))
        self.sample_to_pages = SampleToPages(self.pages)
        self.page_to_samples = PageToSamples(self.pages)


class _LeanOSCache(OSCacheManager, _LeanTables):  # type: ignore[misc]
    pass


class _LeanProcessCache(ProcessCacheManager, _LeanTables):  # type: ignore[misc]
    def schedule_epoch(self, batches: Sequence[NDArray[np.generic]]) -> ProcessCacheContext:
        """Return FFCV's context, which asks every sample for its page: one of each page will do."""
        return ProcessCacheContext(self, [self._one_per_page(batch) for batch in batches])

    def _one_per_page(self, batch: NDArray[np.generic]) -> NDArray[np.generic]:
        rows = np.asarray(batch)
        _, first = np.unique(self.pages.of_sample[rows.astype(np.int64)], return_index=True)
        return rows[first]


class LeanLoader(Loader):  # type: ignore[misc]
    """`ffcv.loader.Loader`, with the same arguments and behaviour, that starts sooner.

    Raises:
        ValueError: If a sample's bytes lie in several pages, which FFCV never writes.
    """

    __init__ = FunctionType(
        Loader.__init__.__code__,
        {
            **Loader.__init__.__globals__,
            "OSCacheManager": _LeanOSCache,
            "ProcessCacheManager": _LeanProcessCache,
        },
        "__init__",
        Loader.__init__.__defaults__,
        Loader.__init__.__closure__,
    )


def release_tables(loader: Loader) -> None:
    """Let an FFCV loader's per-sample dictionaries go; arrays answer in their place.

    Files whose samples span pages keep the dictionaries.
    """
    manager = loader.memory_manager
    if isinstance(manager, _LeanTables):
        return
    try:
        pages = Pages(
            loader.reader.alloc_table, int(loader.reader.num_samples), int(loader.reader.page_size)
        )
    except ValueError:
        return
    manager.sample_to_pages, manager.page_to_samples = SampleToPages(pages), PageToSamples(pages)
    manager.ptr_to_size = {}
