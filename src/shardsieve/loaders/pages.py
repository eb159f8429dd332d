"""Which pages a keep set touches, in what order, and what reading it costs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardsieve.epoch import EpochOrder
from shardsieve.store.sorting import page_of_rows
from shardsieve.store.store import Store

MEMORY_PAGE = 4096
_ROWS_PER_WINDOW = 2048
_SMALLEST_WINDOW = 16


def page_order(
    rows: NDArray[np.int64],
    pages: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    window: int,
) -> NDArray[np.int64]:
    """Return kept rows in an order that holds few pages at a time.

    Pages are permuted and cut into windows; the kept rows of a window are shuffled together. So a
    batch touches at most the pages of the one or two windows it lies in, and every page is read in
    one stretch of the epoch. The order depends on the arguments alone: not on rank or batch size.

    Args:
        rows: int64 (k,), kept rows; a row may repeat.
        pages: int64 (k,), the page of each; -1 for rows without bytes of their own.
        seed: Any integer.
        epoch: At least 0.
        window: Pages shuffled together; 0 keeps pages and rows in file order.

    Returns:
        int64 (k,), a permutation of `rows`.

    Raises:
        ValueError: If the shapes differ, or `window` is negative.

    >>> page_order(np.arange(6), np.arange(6) // 2, seed=0, epoch=1, window=1)
    array([2, 3, 1, 0, 4, 5])
    """
    if rows.shape != pages.shape:
        raise ValueError(f"pages must have the shape of rows {rows.shape}, got {pages.shape}")
    if len(rows) == 0:
        return rows.astype(np.int64)
    by_page = np.lexsort((rows, pages))
    _, first, counts = np.unique(pages[by_page], return_index=True, return_counts=True)
    plan = EpochOrder(counts.astype(np.int64), seed, epoch, window)
    places = [first[page] + ordinal for page, ordinal in plan.windows()]
    return rows[by_page[np.concatenate(places)]].astype(np.int64)


def ordered_rows(
    store: Store, rows: NDArray[np.int64], *, seed: int, epoch: int, window: int | None
) -> NDArray[np.int64]:
    """Return kept rows of an FFCV store in `page_order`; `default_pages` for a window of None."""
    pages = page_of_rows(store)[rows]
    if window is None:
        window = default_pages(len(rows), len(np.unique(pages)))
    return page_order(rows, pages, seed=seed, epoch=epoch, window=window)


def default_pages(kept: int, pages_touched: int) -> int:
    """Return how many pages to shuffle together: room for 2048 kept rows, at least 16 pages.

    It depends on the keep set alone, so that the order is the same for every batch size and world.

    >>> default_pages(kept=96_000, pages_touched=1280)
    28
    >>> default_pages(kept=9_600, pages_touched=1280)
    274
    """
    return max(_SMALLEST_WINDOW, -(-_ROWS_PER_WINDOW * pages_touched // max(kept, 1)))


@dataclass(frozen=True, slots=True)
class ReadEstimate:
    """Bytes read in one epoch over a keep set of an FFCV file, by way of reading.

    Attributes:
        kept: Bytes of the kept samples themselves.
        total: Bytes of all samples.
        pages: `os_cache=False`: whole FFCV pages that hold a kept sample.
        pages_touched: How many pages that is.
        all_pages: Pages that hold any sample.
        memory: `os_cache=True` without readahead: 4 KiB memory pages that hold kept bytes.
        readahead: `os_cache=True` with the kernel's readahead: aligned blocks of `readahead` bytes.
        rewritten: A new .beton of the kept rows alone, in whole FFCV pages.
    """

    kept: int
    total: int
    pages: int
    pages_touched: int
    all_pages: int
    memory: int
    readahead: int
    rewritten: int

    @property
    def saves_little(self) -> bool:
        """True where over 90 % of the pages are touched though under 90 % of the bytes is kept."""
        return self.pages_touched > 0.9 * self.all_pages and self.kept < 0.9 * self.total


def estimate_reads(
    ranges: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    page_size: int,
    readahead: int = 128 << 10,
) -> ReadEstimate:
    """Return the bytes that one epoch over `rows` reads in each mode, from an empty cache.

    Args:
        ranges: int64 (n, 2), offset and length of every sample; length 0 where nothing is stored.
        rows: int64 (k,), kept rows.
        page_size: Of the file, bytes.
        readahead: Of the block device, bytes; 128 KiB is Linux's default.

    >>> two = np.array([[0, 100], [8192, 100]])
    >>> estimate_reads(two, np.array([1]), page_size=16384, readahead=8192).memory
    4096
    """
    stored = ranges[np.unique(rows)]
    stored = stored[stored[:, 1] > 0]
    kept, touched = int(stored[:, 1].sum()), _blocks(stored, page_size)
    return ReadEstimate(
        kept=kept,
        total=int(ranges[:, 1].sum()),
        pages=touched * page_size,
        pages_touched=touched,
        all_pages=_blocks(ranges[ranges[:, 1] > 0], page_size),
        memory=_blocks(stored, MEMORY_PAGE) * MEMORY_PAGE,
        readahead=_blocks(stored, readahead) * readahead,
        rewritten=-(-kept // page_size) * page_size,
    )


def _blocks(ranges: NDArray[np.int64], size: int) -> int:
    """Count the aligned blocks of `size` bytes that the ranges touch."""
    first, last = ranges[:, 0] // size, (ranges[:, 0] + ranges[:, 1] - 1) // size
    order = np.argsort(first, kind="stable")
    first, last = first[order], last[order]
    # Ranges are in file order and do not overlap: a block is shared by neighbours only.
    seen = np.concatenate([[-1], np.maximum.accumulate(last)[:-1]]) if len(last) else last
    return int(np.maximum(last - np.maximum(first, seen + 1) + 1, 0).sum())
