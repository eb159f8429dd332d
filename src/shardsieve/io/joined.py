"""Reads that join neighbours, many in flight: for object stores and slow disks."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from shardsieve.io.counts import Counts
from shardsieve.io.helper import Helper
from shardsieve.io.local import LocalReader
from shardsieve.io.objects import Fetched, fetch, forked_after_use, is_remote
from shardsieve.io.spans import Spans, Storage, plan_spans

Ranges = Sequence[tuple[int, int]]
Pending = tuple[tuple[tuple[int, int], ...], Spans, "list[Future[Fetched]]"]


class JoinedReader:
    """Reads ranges of shards as planned spans, several at a time.

    Threads and clients belong to the process that first reads: a forked or pickled reader makes its
    own.

    Attributes:
        storage: What a read costs.
        counts: What was read.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.counts = Counts()
        self._begin()

    def prefetch(self, requests: Iterable[tuple[str, Ranges]]) -> None:
        """Begin to read ranges that `read_many` will be asked for, url by url."""
        self._own()
        plans, reads = [], []
        for url, ranges in requests:
            spans = self._plan(ranges)
            plans.append((url, tuple(ranges), spans))
            starts, stops = spans.start.tolist(), spans.stop.tolist()
            reads += [(url, a, b - a) for a, b in zip(starts, stops, strict=True)]
        futures = self._submit(reads)
        for url, ranges, spans in plans:
            mine, futures = futures[: len(spans.start)], futures[len(spans.start) :]
            self._pending.setdefault(url, []).append((ranges, spans, mine))

    def read_many(self, url: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield the bytes of several (offset, length) ranges of one shard, one by one.

        Raises:
            CorruptShardError: If one cannot be read, naming shard, range and cause.
        """
        self._own()
        spans, futures = self._taken(url, tuple(ranges))
        self.counts.kept += sum(length for _, length in ranges)
        bodies: dict[int, bytes] = {}
        starts = spans.start.tolist()
        for (offset, length), number in zip(ranges, spans.of.tolist(), strict=True):
            if number not in bodies:
                data, retries = futures[number].result()
                self.counts.read += len(data)
                self.counts.requests += 1 + retries
                self.counts.retries += retries
                bodies = {number: data}  # ranges come in file order: one body at a time
            begin = offset - starts[number]
            yield bodies[number][begin : begin + length]

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of `url` from `offset`; see `read_many`."""
        return next(self.read_many(url, [(offset, length)]))

    def close(self) -> None:
        """Let threads and helper go."""
        if self._pid == os.getpid():
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            if self._helper is not None:
                self._helper.close()
        self._begin()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Storage], "JoinedReader"], tuple[Storage]]:
        return JoinedReader, (self.storage,)

    # Inside ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pending: dict[str, list[Pending]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._helper: Helper | None = None
        self._files = LocalReader()

    def _own(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def _plan(self, ranges: Ranges) -> Spans:
        table = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)
        return plan_spans(table[:, 0], table[:, 1], self.storage)

    def _taken(self, url: str, ranges: tuple[tuple[int, int], ...]) -> tuple[Spans, Any]:
        """Return the reads that were begun for just these ranges, or begin them."""
        waiting = self._pending.get(url, [])
        for place, (asked, spans, futures) in enumerate(waiting):
            if asked == ranges:
                del waiting[place]
                return spans, futures
        self.prefetch([(url, ranges)])
        _, spans, futures = self._pending[url].pop()
        return spans, futures

    def _submit(self, reads: list[tuple[str, int, int]]) -> "list[Future[Fetched]]":
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.storage.in_flight)
        if not forked_after_use() or not any(is_remote(url) for url, _, _ in reads):
            return [self._pool.submit(self._fetch, *read) for read in reads]
        if self._helper is None:
            self._helper = Helper(self.storage.in_flight)
        answers = self._helper.fetch_all(reads)
        futures: list[Future[Fetched]] = []
        for answer in answers:
            future: Future[Fetched] = Future()
            future.set_result(answer)
            futures.append(future)
        return futures

    def _fetch(self, url: str, offset: int, length: int) -> Fetched:
        if is_remote(url):
            return fetch(url, offset, length)
        return Fetched(self._files.read(url, offset, length), 0)
