"""Reads that join neighbours, many in flight: for object stores and slow disks."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from shardsieve.io.counts import Counts
from shardsieve.io.helper import helper_here
from shardsieve.io.local import LocalReader
from shardsieve.io.objects import Fetched, fetch, forked_after_use, is_remote
from shardsieve.io.spans import Spans, Storage, plan_spans

Ranges = Sequence[tuple[int, int]]
Key = tuple[tuple[int, int], ...]
Read = tuple[str, int, int]
Pending = tuple[Spans, "Sequence[Answer]"]

# Lists of ranges of one shard that may wait to be asked for.
_MOST_AHEAD = 1024


class Answer(Protocol):
    """A read that was begun: a future, or one part of a future."""

    def result(self) -> Fetched:
        """Wait for it."""
        ...

    def cancel(self) -> bool:
        """Give it up if it has not begun."""
        ...


class _OneOf:
    """One read of a list that a helper answers as a whole."""

    def __init__(self, answers: "Future[list[Any]]", place: int) -> None:
        self._answers, self._place = answers, place

    def result(self) -> Fetched:
        found = self._answers.result()[self._place]
        if isinstance(found, Exception):
            raise found
        return Fetched(*found)

    def cancel(self) -> bool:
        return False  # others may want the rest of the list


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
        """Begin to read ranges that `read_many` will be asked for, url by url.

        What was begun already is not begun again. Of what is never asked for, the latest
        `_MOST_AHEAD` stay.
        """
        self._own()
        plans, reads, lists = [], [], 0
        for url, asked in requests:
            ranges, lists = tuple(asked), lists + 1
            if (url, ranges) in self._pending:
                continue
            spans = self._plan(ranges)
            plans.append((url, ranges, spans))
            starts, stops = spans.start.tolist(), spans.stop.tolist()
            reads += [(url, a, b - a) for a, b in zip(starts, stops, strict=True)]
        futures = self._submit(reads)
        for url, ranges, spans in plans:
            mine, futures = futures[: len(spans.start)], futures[len(spans.start) :]
            self._pending[url, ranges] = spans, mine
        while len(self._pending) > max(_MOST_AHEAD, 2 * lists):
            _, (_, abandoned) = self._pending.popitem(last=False)
            for future in abandoned:
                future.cancel()

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
        """Let the threads go."""
        if self._pid == os.getpid() and self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._begin()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Storage], "JoinedReader"], tuple[Storage]]:
        return JoinedReader, (self.storage,)

    # Inside ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pending: OrderedDict[tuple[str, Key], Pending] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._files = LocalReader()

    def _own(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def _plan(self, ranges: Ranges) -> Spans:
        table = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)
        return plan_spans(table[:, 0], table[:, 1], self.storage)

    def _taken(self, url: str, ranges: Key) -> Pending:
        """Return the reads that were begun for just these ranges, or begin them."""
        if (url, ranges) not in self._pending:  # beginning nothing would still drop the oldest
            self.prefetch([(url, ranges)])
        return self._pending.pop((url, ranges))

    def _submit(self, reads: list[Read]) -> Sequence[Answer]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.storage.in_flight)
        if not forked_after_use() or not any(is_remote(url) for url, _, _ in reads):
            return [self._pool.submit(self._fetch, *read) for read in reads]
        helper = helper_here(self.storage.in_flight)
        answers = self._pool.submit(helper.call_all, [(fetch, read) for read in reads])
        return [_OneOf(answers, place) for place in range(len(reads))]

    def _fetch(self, url: str, offset: int, length: int) -> Fetched:
        if is_remote(url):
            return fetch(url, offset, length)
        return Fetched(self._files.read(url, offset, length), 0)
