"""Byte ranges of local files, with descriptors kept open per process."""

import mmap
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import IO

from shardsieve._errors import ANOTHER_STORE, CorruptShardError
from shardsieve.io.counts import Counts

_MAX_OPEN = 256
# Readahead brings what lies between: at most 1.05 times the kept bytes are to leave the disk.
_DENSE, _LEAST_IN_ORDER = 0.96, 1 << 20
_READAHEAD = 128 << 10


def keep_freed_memory() -> None:
    """Let this process use the memory of one batch again for the next.

    glibc gives a block of 128 KiB or more back to the kernel when it is freed, and the next sample
    of that size meets a page fault per 4 KiB, which takes longer than reading it. Having seen one
    freed block of 31 MiB it keeps smaller ones. The block itself is never touched.
    """
    bytes(31 << 20)


class LocalReader:
    """Reads byte ranges of local files.

    Descriptors are opened on first use, at a time at most 256 and a quarter of those that a process
    may have. They belong to the process that opened them: a forked or pickled reader opens its own.

    Attributes:
        counts: What was read.
    """

    def __init__(self) -> None:
        keep_freed_memory()
        self.counts = Counts()
        self._opening = threading.Lock()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._in_order: set[str] = set()
        self._pid = os.getpid()

    def read(self, url: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of `url` from `offset`; several threads may ask.

        Raises:
            CorruptShardError: If the file is gone or shorter than that.
        """
        try:
            with self._opening:  # one opens, and nobody closes what another one reads
                file = os.dup(self._opened(url))
                self._count(length, 1)
            try:
                data = os.pread(file, length, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise CorruptShardError(f"cannot read shard {url}: {error.strerror}") from error
        if len(data) < length:
            raise too_short(url, offset + length)
        return data

    def prefetch(self, requests: Iterable[tuple[str, Sequence[tuple[int, int]]]]) -> None:
        """Tell the kernel of ranges that will be read, unless they seem to be in memory already.

        Descriptors are opened for random access, so nothing else is read ahead. Where nearly all
        between the first range and the last is wanted, and much of it, the file is read in order
        with the kernel's own readahead instead. Only Linux takes such advice.
        """
        wanted = list(requests) if hasattr(os, "posix_fadvise") else []
        # Each file is opened where it is asked: of more than are kept open the first are closed.
        if all(_in_memory(self._opened(url), *each[len(each) // 2]) for url, each in wanted):
            return
        for url, ranges in wanted:
            file, in_order = self._opened(url), is_dense(ranges)
            if in_order != (url in self._in_order):
                advice = os.POSIX_FADV_SEQUENTIAL if in_order else os.POSIX_FADV_RANDOM
                os.posix_fadvise(file, 0, 0, advice)
                self._in_order ^= {url}
            if in_order:
                continue
            for offset, length in ranges:
                os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)

    def read_many(self, url: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Return an iterator over the bytes of (offset, length) ranges of one file.

        One by one, as what was just read is still in the processor's cache when it is parsed; and
        by `os.pread` itself: where the file ends early fewer bytes come, and errors are OSErrors.
        """
        offsets, lengths = zip(*ranges, strict=True)
        self._count(sum(lengths), len(lengths))
        return map(os.pread, repeat(self._opened(url)), lengths, offsets)

    def _count(self, nbytes: int, requests: int) -> None:
        self.counts.kept += nbytes
        self.counts.read += nbytes
        self.counts.requests += requests

    def _opened(self, url: str) -> int:
        try:
            return self._descriptor(url)
        except OSError as error:
            raise unreadable(url, error) from error

    def _descriptor(self, url: str) -> int:
        if self._pid != os.getpid():
            self._files, self._in_order, self._pid = OrderedDict(), set(), os.getpid()
        if url in self._files:
            self._files.move_to_end(url)
            return self._files[url]
        if len(self._files) >= _most_open():
            oldest, file = self._files.popitem(last=False)
            self._in_order.discard(oldest)
            os.close(file)
        descriptor = os.open(url, os.O_RDONLY)
        # Kept samples are scattered: readahead would fetch what pruning is there to skip.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._files[url] = descriptor
        return descriptor

    def close(self) -> None:
        """Close every descriptor this process opened."""
        if self._pid == os.getpid():
            for descriptor in self._files.values():
                os.close(descriptor)
        self._files, self._in_order = OrderedDict(), set()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type["LocalReader"], tuple[()]]:
        return LocalReader, ()


def is_dense(ranges: Sequence[tuple[int, int]]) -> bool:
    """Return whether ascending ranges are at least 1 MiB and 96 % of what lies between their ends.

    >>> is_dense([(0, 2 << 20), (2 << 20, 2 << 20)]), is_dense([(0, 2 << 20), (9 << 20, 2 << 20)])
    (True, False)
    """
    wanted = sum(length for _, length in ranges)
    extent = sum(ranges[-1]) - ranges[0][0]
    return wanted >= max(_DENSE * extent, _LEAST_IN_ORDER)


def _most_open() -> int:
    """Return how many files a reader keeps open; a process has several readers, and needs more."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_OPEN if allowed == resource.RLIM_INFINITY else min(_MAX_OPEN, allowed // 4 or 1)


def _in_memory(file: int, offset: int, length: int) -> bool:
    """Return whether the last byte of a range comes without waiting for the disk."""
    try:
        return os.preadv(file, [bytearray(1)], offset + length - 1, os.RWF_NOWAIT) == 1
    except OSError:
        return False


class EndsEarly(CorruptShardError):
    """A shard ends before a byte that is needed; what comes before can be read."""


def too_short(url: str, needed: int) -> EndsEarly:
    """Return the error of a shard that ends before a byte that is needed."""
    return EndsEarly(
        f"shard {url} ends before byte {needed}; it was truncated or replaced after indexing: "
        f"{ANOTHER_STORE}"
    )


def readahead_of(path: str | Path) -> int:
    """Return the readahead in bytes of the device that holds a file; Linux's default elsewhere."""
    try:
        device = Path(path).stat().st_dev
        bdi = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        return int(Path(bdi).read_text()) << 10 or mmap.PAGESIZE
    except (OSError, ValueError):
        return _READAHEAD


def _to_walk(path: str) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> CorruptShardError:
    """Return the error of a shard that cannot be opened or read."""
    return CorruptShardError(f"cannot read shard {path}: {error.strerror}")


@contextmanager
def mapped(path: str) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """Give (`read(offset, length)`, total bytes) of a local file for one walk over its headers.

    Raises:
        CorruptShardError: If it cannot be opened.
    """
    with _to_walk(path) as file:
        total = os.fstat(file.fileno()).st_size
        if total == 0:
            yield lambda offset, length: b"", 0
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            view.madvise(mmap.MADV_RANDOM)
            yield lambda offset, length: view[offset : offset + length], total
