"""Shards wherever they lie: fingerprints, headers to walk, and the reader that suits them."""

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from shardsieve._errors import ShardsieveError
from shardsieve.io.clients import is_remote, over_http
from shardsieve.io.joined import JoinedReader
from shardsieve.io.local import LocalReader, mapped
from shardsieve.io.objects import fetch, listed_marks, mark_of, size_of
from shardsieve.io.spans import OBJECTS, Storage
from shardsieve.io.stopping import StoppingPool

AT_ONCE = 32
_BLOCK, _WORTH_A_LISTING = 4 << 20, 16
_OF_FILE = re.compile(r"(\d+)-(\d{17,})")
# Of a time of change, in ns: NFS or SMB may cut off what a local disk keeps.
_STEPS = (10**9, 10**6, 10**3, 10**2, 1)
Reader = LocalReader | JoinedReader
A = TypeVar("A")
B = TypeVar("B")


def reader_of(
    urls: Sequence[str], storage: Storage | None = None, *, marks: Sequence[str] = ()
) -> Reader:
    """Return the reader for these shards.

    Args:
        urls: Shards.
        storage: What reading costs, in place of what their kind of storage costs.
        marks: Their fingerprints when they were indexed; objects that have another one are refused.
    """
    if storage is None and not any(map(is_remote, urls)):
        return LocalReader()
    return JoinedReader(storage or OBJECTS, dict(zip(urls, marks, strict=False)))


def absolute(url: str | Path) -> str:
    """Return a shard's full name."""
    return str(url) if is_remote(url) else str(Path(url).absolute())


def cheap_fingerprint(url: str) -> str:
    """Return `size-mtime_ns` of a file, `size-ETag` of an object, from one question.

    Raises:
        ShardsieveError: If the shard is gone.
    """
    if is_remote(url):
        return mark_of(url)
    try:
        stat = Path(url).stat()
    except OSError as error:
        raise ShardsieveError(
            f"cannot read shard {url}: {error.strerror}; check its path, or if the shards were "
            "moved after they were indexed, `shardsieve check --moved-to FOLDER`"
        ) from error
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def cheap_fingerprints(urls: Sequence[str]) -> list[str]:
    """Return `cheap_fingerprint` of every shard, objects many at a time.

    Many objects of one folder are listed, a thousand with one question. What a listing says may be
    a little old: where it matters ask once more.
    """
    listed, remote = _listed(urls), any(map(is_remote, urls))
    return list(at_once(lambda url: listed.get(url) or cheap_fingerprint(url), urls, remote=remote))


def _listed(urls: Sequence[str]) -> dict[str, str]:
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        if is_remote(url) and not over_http(url):
            folders[url.rpartition("/")[0]].append(url)
    many = [group for group in folders.values() if len(group) >= _WORTH_A_LISTING]
    return {
        url: mark
        for found in at_once(listed_marks, many, remote=True)
        for url, mark in found.items()
    }


def same_fingerprint(one: str, other: str) -> bool:
    """Return whether two cheap fingerprints are of the same file or object.

    File systems keep times in steps between 1 ns and 1 s and cut off the rest. Seen through two of
    them, or copied from one to the other, a file's times are equal in the coarser steps.

    >>> same_fingerprint("5-1700000000123456789", "5-1700000000000000000")
    True
    >>> same_fingerprint("5-1700000000123456789", "5-1700000000123456788")
    False
    >>> [same_fingerprint("5-1700000000000000000", one) for one in ("6-1700000000000000000", "5-a")]
    [False, False]
    """
    parts = [_OF_FILE.fullmatch(each) for each in (one, other)]
    if one == other or not all(parts):
        return one == other
    sizes, times = zip(*(map(int, part.groups()) for part in parts if part), strict=True)
    step = max(next(s for s in _STEPS if at % s == 0) for at in times)
    return len(set(sizes)) == len({at // step for at in times}) == 1


def at_once(call: Callable[[A], B], items: Iterable[A], *, remote: bool) -> Iterator[B]:
    """Yield `call(item)` in order; with objects several calls are under way at a time.

    After an error none is under way any more, but a Ctrl-C and who asks no further do not wait.
    """
    if not remote:
        yield from map(call, items)
        return
    pool = StoppingPool(AT_ONCE)
    try:
        answers = deque(pool.submit(call, item) for item in items)
        while answers:
            yield answers.popleft().result()
    except (KeyboardInterrupt, GeneratorExit):
        pool.stop(wait=False)
        raise
    except BaseException:
        pool.stop(wait=True)
        raise
    pool.stop(wait=True)


def walkable(
    url: str, fingerprint: str
) -> AbstractContextManager[tuple[Callable[[int, int], bytes], int]]:
    """Give (`read(offset, length)`, total bytes) of a shard for one walk over its headers.

    Args:
        url: The shard.
        fingerprint: Its cheap one: an object that has another one by now is refused.
    """
    return _blocks(url, fingerprint) if is_remote(url) else mapped(url)


@contextmanager
def _blocks(url: str, mark: str) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """Read an object in large blocks, passing over those without headers."""
    total, (begin, block) = int(mark.partition("-")[0]), (0, b"")

    def read(offset: int, length: int) -> bytes:
        nonlocal begin, block
        stop = min(offset + length, total)
        if not begin <= offset <= stop <= begin + len(block):
            begin = offset
            block = fetch(url, offset, min(max(_BLOCK, length), total - offset), mark).data
        return block[offset - begin : stop - begin]

    yield read, total


def measure_storage(url: str, *, in_flight: int = AT_ONCE) -> Storage:
    """Measure latency and bandwidth of one connection to where a shard lies.

    Args:
        url: A shard of at least 1 MB.
        in_flight: Requests at a time of the storage returned.
    """
    reader = JoinedReader(Storage(0, 1, 1))
    total = size_of(url) if is_remote(url) else Path(url).stat().st_size
    seconds = []
    for place in range(8):
        start = time.perf_counter()
        reader.read(url, place * (total // 8), 1)
        seconds.append(time.perf_counter() - start)
    latency = sorted(seconds)[4]
    size = min(total, 8 << 20)
    start = time.perf_counter()
    reader.read(url, 0, size)
    wall = max(time.perf_counter() - start - latency, 1e-6)
    return Storage(latency=latency, bandwidth=size / wall, in_flight=in_flight)
