"""The range planner: from the samples that are wanted to the reads that get them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Storage:
    """What reading costs on a kind of storage, and how far reads may grow.

    Attributes:
        latency: Seconds to the first byte of a request.
        bandwidth: Bytes per second of one connection.
        in_flight: Requests at a time.
        amplification: Cap of bytes read over bytes wanted, at least 1.
        largest: Most bytes of one read that joins several samples.
    """

    latency: float
    bandwidth: float
    in_flight: int
    amplification: float = 1.5
    largest: int = 8 << 20

    def __post_init__(self) -> None:
        if self.amplification < 1:
            raise ValueError(f"amplification must be at least 1, got {self.amplification}")
        if self.in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {self.in_flight}")

    @property
    def gap(self) -> int:
        """Bytes between two samples that are cheaper to read than to skip."""
        return int(self.latency * self.bandwidth / self.in_flight)


HARD_DISK = Storage(latency=8e-3, bandwidth=180e6, in_flight=1, amplification=4.0)
OBJECTS = Storage(latency=30e-3, bandwidth=90e6, in_flight=64)


@dataclass(frozen=True, slots=True)
class Spans:
    """Reads of one shard, ascending and disjoint but for samples that overlap.

    Attributes:
        start: int64 (r,), first byte of each read.
        stop: int64 (r,), first byte after it.
        of: int64 (n,), the read that holds each wanted range, in the order asked.
    """

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    of: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes read."""
        return int((self.stop - self.start).sum())


def plan_spans(offset: ArrayLike, length: ArrayLike, storage: Storage) -> Spans:
    """Return the reads for the wanted ranges of one shard.

    Neighbours are joined over the smallest gaps first, while a gap costs less than a request and
    the bytes read stay under the cap. Where nearly everything is wanted this ends in one read from
    the first wanted byte to the last, cut at `storage.largest`.

    Args:
        offset: Integers (n,), in any order.
        length: Integers (n,), above 0.
        storage: What a read costs.
    """
    at, size = np.asarray(offset, dtype=np.int64), np.asarray(length, dtype=np.int64)
    if len(at) == 0:
        return Spans(at, at, at)
    order = np.argsort(at, kind="stable")
    start, reach = at[order], np.maximum.accumulate((at + size)[order])
    gap = np.maximum(start[1:] - reach[:-1], 0)
    wanted = int(reach[-1] - start[0] - gap.sum())
    spare = int((storage.amplification - 1) * wanted)
    by_gap = np.argsort(gap, kind="stable")
    fits = (np.cumsum(gap[by_gap]) <= spare) & (gap[by_gap] <= storage.gap)
    joined = np.zeros(len(gap), dtype=bool)
    joined[by_gap[fits]] = True
    overlaps = start[1:] < reach[:-1]
    first = _firsts(start, reach, joined, overlaps, storage.largest)
    number = np.cumsum(first) - 1
    last = np.r_[np.flatnonzero(first)[1:] - 1, len(first) - 1]
    of = np.empty_like(number)
    of[order] = number
    return Spans(start[first], reach[last], of)


def _firsts(
    start: NDArray[np.int64],
    reach: NDArray[np.int64],
    joined: NDArray[np.bool_],
    overlaps: NDArray[np.bool_],
    largest: int,
) -> NDArray[np.bool_]:
    """Return which ranges begin a read: those not joined, and those that would make it too long."""
    first: NDArray[np.bool_] = np.r_[True, ~joined]
    begins = np.flatnonzero(first)
    ends = np.r_[begins[1:], len(start)]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if reach[end - 1] - start[begin] <= largest:
            continue
        head = start[begin]
        for row in range(begin + 1, end):
            if reach[row] - head > largest and not overlaps[row - 1]:
                first[row], head = True, start[row]
    return first
