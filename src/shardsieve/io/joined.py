"""Reads that join neighbours, many in flight: for object stores and slow disks."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from shardsieve._errors import CorruptShardError
from shardsieve.io.clients import forked_after_use, is_remote
from shardsieve.io.counts import Counts
from shardsieve.io.helper import helper_here
from shardsieve.io.local import EndsEarly, LocalReader
from shardsieve.io.objects import Fetched, fetch
from shardsieve.io.spans import Spans, Storage, plan_spans
from shardsieve.io.stopping import StoppingPool

Ranges = Sequence[tuple[int, int]]
Key = tuple[tuple[int, int], ...]
Read = tuple[str, int, int]

# Calls of `prefetch` that what was begun may wait for: a loop that was left never asks for its next
# batch, and loops that take turns on one data set ask late.
_PATIENCE = 16


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


class _Begun(NamedTuple):
    """Reads of ranges of one shard, and the last call of `prefetch` that named them."""

    spans: Spans
    answers: Sequence[Answer]
    call: int


class JoinedReader:
    """Reads ranges of shards as planned spans, several at a time.

    Threads and clients belong to the process that first reads: a forked or pickled reader makes its
    own.

    Attributes:
        storage: What a read costs.
        counts: What was read.
    """

    def __init__(self, storage: Storage, marks: Mapping[str, str] | None = None) -> None:
        """Read nothing yet.

        Args:
            storage: What a read costs.
            marks: Fingerprints of objects when they were indexed: those replaced since are refused.
        """
        self.storage = storage
        self._marks = marks or {}
        self.counts = Counts()
        self._begin()

    def prefetch(self, requests: Iterable[tuple[str, Ranges]]) -> None:
        """Begin to read ranges that `read_many` will be asked for, url by url.

        What was begun already is not begun again. What `_PATIENCE` further calls neither name nor
        read is given up.
        """
        self._own()
        self._call += 1
        self._start((url, tuple(ranges)) for url, ranges in requests)
        while self._pending:
            oldest = next(iter(self._pending))
            if self._pending[oldest].call >= self._call - _PATIENCE:
                return
            for answer in self._pending.pop(oldest).answers:
                answer.cancel()

    def read_many(self, url: str, ranges: Ranges) -> Iterator[bytes]:
        """Yield the bytes of several (offset, length) ranges of one shard, one by one.

        Raises:
            CorruptShardError: If one cannot be read, naming shard, range and cause.
        """
        self._own()
        spans, answers, _ = self._taken(url, tuple(ranges))
        self.counts.kept += sum(length for _, length in ranges)
        bodies: dict[int, bytes | None] = {}
        starts, served = spans.start.tolist(), np.bincount(spans.of).tolist()
        for (offset, length), number in zip(ranges, spans.of.tolist(), strict=True):
            if number not in bodies:
                # The answer holds them as well.
                bodies[number] = self._body(url, answers[number], served[number])
            body = bodies[number]
            if body is None:
                yield self._counted(self._submit([(url, offset, length)])[0])
                continue
            begin = offset - starts[number]
            yield body[begin : begin + length]

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of `url` from `offset`; see `read_many`."""
        return next(self.read_many(url, [(offset, length)]))

    def close(self) -> None:
        """Let the threads go."""
        if self._pid == os.getpid() and self._pool is not None:
            self._pool.stop(wait=False)
        self._begin()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "JoinedReader"], tuple[Any, ...]]:
        return JoinedReader, (self.storage, self._marks)

    # Inside ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._call = 0
        self._pending: OrderedDict[tuple[str, Key], _Begun] = OrderedDict()
        self._pool: StoppingPool | None = None
        self._files = LocalReader()

    def _own(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def _plan(self, ranges: Ranges) -> Spans:
        table = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)
        return plan_spans(table[:, 0], table[:, 1], self.storage)

    def _taken(self, url: str, ranges: Key) -> _Begun:
        """Return the reads that were begun for just these ranges, or begin them."""
        self._start([(url, ranges)])
        return self._pending.pop((url, ranges))

    def _body(self, url: str, answer: Answer, served: int) -> bytes | None:
        """Return the bytes of a read, None if each of the ranges it serves is to be read alone.

        Where a file ends early or a disk is damaged others of them are whole; an object that
        cannot be reached would only be waited for again.
        """
        try:
            return self._counted(answer)
        except CorruptShardError as error:
            if served == 1 or (is_remote(url) and not isinstance(error, EndsEarly)):
                raise
            return None

    def _counted(self, answer: Answer) -> bytes:
        data, retries = self._waited(answer)
        self.counts.read += len(data)
        self.counts.requests += 1 + retries
        self.counts.retries += retries
        return data

    def _waited(self, answer: Answer) -> Fetched:
        try:
            return answer.result()
        except KeyboardInterrupt:
            self.close()  # or the program could not end before its reads
            raise

    def _start(self, requests: Iterable[tuple[str, Key]]) -> None:
        plans, reads = [], []
        for one in requests:
            if one in self._pending:
                self._pending[one] = self._pending.pop(one)._replace(call=self._call)
                continue
            spans = self._plan(one[1])
            plans.append((one, spans))
            starts, stops = spans.start.tolist(), spans.stop.tolist()
            reads += [(one[0], a, b - a) for a, b in zip(starts, stops, strict=True)]
        answers = self._submit(reads)
        for one, spans in plans:
            mine, answers = answers[: len(spans.start)], answers[len(spans.start) :]
            self._pending[one] = _Begun(spans, mine, self._call)

    def _submit(self, reads: list[Read]) -> Sequence[Answer]:
        if self._pool is None:
            self._pool = StoppingPool(self.storage.in_flight)
        if not forked_after_use():
            return [self._pool.submit(self._fetch, *read) for read in reads]
        helped = iter(self._helped(self._pool, [read for read in reads if is_remote(read[0])]))
        return [
            next(helped) if is_remote(read[0]) else self._pool.submit(self._fetch, *read)
            for read in reads
        ]

    def _helped(self, pool: StoppingPool, reads: list[Read]) -> Sequence[Answer]:
        """Return the answers to reads of objects, for which a helper is asked."""
        if not reads:
            return []
        helper = helper_here(self.storage.in_flight)
        calls = [(fetch, (*read, self._marks.get(read[0]))) for read in reads]
        answers = pool.submit(helper.call_all, calls)
        return [_OneOf(answers, place) for place in range(len(reads))]

    def _fetch(self, url: str, offset: int, length: int) -> Fetched:
        if is_remote(url):
            return fetch(url, offset, length, self._marks.get(url))
        return Fetched(self._files.read(url, offset, length), 0)
