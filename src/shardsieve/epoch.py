"""The order of one epoch's kept samples: a pure function of counts, seed, epoch and settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shardsieve.order import hash_key, permutation, shuffled_places

SHUFFLES = ("window", "global", "none")
# Shards in a window when every sample is kept.
_FULL_WINDOW = 16
# Places of a global shuffle made at a time.
_AT_ONCE = 1 << 16

Places = tuple[NDArray[np.int64], NDArray[np.int64]]


def default_window(num_samples: int, num_kept: int) -> int:
    """Return how many shards to shuffle together: what fills the space of 16 whole ones.

    The fewer samples a shard keeps, the more shards mix in the same memory.

    >>> default_window(1000, 1000), default_window(1000, 100)
    (16, 160)
    """
    return math.ceil(_FULL_WINDOW * num_samples / max(num_kept, 1))


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of one epoch's kept samples, the same for every world and worker count.

    Only the kept counts are needed: memory is one number per shard, and one window of samples.

    Attributes:
        counts: int64 (S,), kept samples per shard.
        seed: Any integer.
        epoch: At least 0.
        window: Shards shuffled together; 0 means no shuffling at all.
        shuffle: `window` (shards are permuted and cut into windows; the kept samples of a window
            are shuffled together), `global` (all kept samples are) or `none`.
        groups: Locality groups: blocks of neighbouring shards, as even as can be in number. Every
            step takes from each group its share, group by group, so that ranks that stand in the
            order of their nodes mostly read the shards of their own group.
        block: Places of one step over all ranks; counts only with several groups, and then the
            order depends on it.
    """

    counts: NDArray[np.int64]
    seed: int
    epoch: int
    window: int = _FULL_WINDOW
    shuffle: str = "window"
    groups: int = 1
    block: int = 0

    def __post_init__(self) -> None:
        if self.shuffle not in SHUFFLES:
            raise ValueError(f"shuffle must be one of {', '.join(SHUFFLES)}, got {self.shuffle!r}")
        if self.window < 0:
            raise ValueError(f"window must be at least 0 shards, got {self.window}")
        if not 1 <= self.groups <= max(len(self.counts), 1):
            raise ValueError(
                f"groups must lie between 1 and the {len(self.counts)} shards, got {self.groups}"
            )
        if self.groups > 1 and self.block < 1:
            raise ValueError(f"block must be at least 1 with several groups, got {self.block}")

    def windows(self, start: int = 0) -> Iterator[Places]:
        """Yield (shard, ordinal among the shard's kept samples) from place `start` on."""
        if self.groups > 1:
            return self._in_groups(start)
        if self.window == 0 or self.shuffle == "none":
            return self._by_window(start, np.flatnonzero(self.counts), 1, shuffled=False)
        if self.shuffle == "global":
            return self._everywhere(start)
        # Shards without kept samples would only make windows smaller.
        kept = np.flatnonzero(self.counts)
        shards = kept[permutation(len(kept), self.seed, self.epoch)]
        return self._by_window(start, shards, self.window, shuffled=True)

    # Inside ---------------------------------------------------------------------------------

    def _by_window(
        self, start: int, shards: NDArray[np.int64], size: int, *, shuffled: bool
    ) -> Iterator[Places]:
        ends = np.cumsum(self.counts[shards])
        # Windows that end before `start` are never made.
        for first in range(_window_of(ends, start, size), len(shards), size):
            begin = int(ends[first - 1]) if first else 0
            shard, ordinal = _in_file_order(shards[first : first + size], self.counts)
            if shuffled:
                mixed = permutation(len(shard), self.seed, self.epoch, first + 1)
                shard, ordinal = shard[mixed], ordinal[mixed]
            skip = max(start - begin, 0)
            yield shard[skip:], ordinal[skip:]

    def _everywhere(self, start: int) -> Iterator[Places]:
        ends = np.cumsum(self.counts)
        total = int(ends[-1])
        for first in range(start, total, _AT_ONCE):
            places = np.arange(first, min(first + _AT_ONCE, total))
            among = shuffled_places(places, total, self.seed, self.epoch)
            shard = np.searchsorted(ends, among, side="right")
            yield shard, among - (ends[shard] - self.counts[shard])

    def _in_groups(self, start: int) -> Iterator[Places]:
        cuts = np.arange(self.groups + 1) * len(self.counts) // self.groups
        sizes = np.diff(np.concatenate([[0], np.cumsum(self.counts)])[cuts])
        total, taken, readers = int(sizes.sum()), np.zeros_like(sizes), None
        for first in range(0, total, self.block):
            last = min(first + self.block, total)
            upto = _shared_out(last, sizes, taken)
            if last > start:
                readers = readers or [
                    _Reader(self._of_group(group, low, high), begin, low)
                    for group, (begin, (low, high)) in enumerate(
                        zip(taken.tolist(), pairwise(cuts.tolist()), strict=True)
                    )
                ]
                counts = (upto - taken).tolist()
                parts = [r.take(count) for r, count in zip(readers, counts, strict=True)]
                shard, ordinal = (np.concatenate(column) for column in zip(*parts, strict=True))
                skip = max(start - first, 0)
                yield shard[skip:], ordinal[skip:]
            taken = upto

    def _of_group(self, group: int, low: int, high: int) -> "EpochOrder":
        counts, seed = self.counts[low:high], hash_key(self.seed, group)
        return replace(self, counts=counts, seed=seed, groups=1)


class _Reader:
    """Takes places of one group's order, a few at a time."""

    def __init__(self, order: EpochOrder, start: int, first_shard: int) -> None:
        self._windows, self._first = order.windows(start), first_shard
        self._shard = self._ordinal = np.zeros(0, dtype=np.int64)

    def take(self, count: int) -> Places:
        while len(self._shard) < count:
            shard, ordinal = next(self._windows)
            self._shard = np.concatenate([self._shard, shard + self._first])
            self._ordinal = np.concatenate([self._ordinal, ordinal])
        taken = self._shard[:count], self._ordinal[:count]
        self._shard, self._ordinal = self._shard[count:], self._ordinal[count:]
        return taken


def _shared_out(
    place: int, sizes: NDArray[np.int64], taken: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many of the first `place` places each group gives, at least what it gave before.

    In proportion to the sizes, rounded to the nearest; what is left over goes to those whose next
    sample is due first (Webster's rule).
    """
    total = max(int(sizes.sum()), 1)
    upto = np.clip((2 * sizes * place + total) // (2 * total), taken, sizes)
    per = np.maximum(sizes, 1)
    while (short := place - int(upto.sum())) != 0:
        if short > 0:
            due = np.where(upto < sizes, (2 * upto + 1) / per, np.inf)
            upto[np.argsort(due, kind="stable")[: min(short, int((upto < sizes).sum()))]] += 1
        else:
            due = np.where(upto > taken, -(2 * upto - 1) / per, np.inf)
            upto[np.argsort(due, kind="stable")[: min(-short, int((upto > taken).sum()))]] -= 1
    return upto


def _window_of(ends: NDArray[np.int64], start: int, size: int) -> int:
    """Return the first shard's number in the window that holds a place."""
    number = int(np.searchsorted(ends, start, side="right"))
    return number // size * size


def _in_file_order(shards: NDArray[np.int64], counts: NDArray[np.int64]) -> Places:
    kept = counts[shards]
    shard = np.repeat(shards, kept)
    return shard, np.arange(len(shard)) - np.repeat(np.cumsum(kept) - kept, kept)
