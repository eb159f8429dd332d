"""Objects by URL through obstore: ranges, sizes, tags, listings, conditional writes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import obstore
from obstore import exceptions

from shardsieve._errors import ANOTHER_STORE, CorruptShardError, ShardsieveError
from shardsieve.io.clients import client, forked_after_use, note_use, over_http, split_url
from shardsieve.io.helper import helper_here
from shardsieve.io.local import too_short
from shardsieve.io.retries import cause_of, retried
from shardsieve.io.stopping import interruptible

IN_FLIGHT = 64  # as of spans.OBJECTS, so that a process has one helper for all
_MOST_LISTED = 20  # objects to be passed over for each that is looked for
_BEYOND_THE_END, _NOT_IMPLEMENTED = "status code: 416", "status code: 501"
_NO_HEAD = "status code: 403", "status code: 405"
A = TypeVar("A")
P = ParamSpec("P")


class Fetched(NamedTuple):
    """Bytes, and how often they had to be asked for again."""

    data: bytes
    retries: int


def _from_anywhere(function: Callable[P, A]) -> Callable[P, A]:
    """Let a process that was forked too late have its helper call a function."""

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> A:
        if not forked_after_use():
            return function(*arguments, **named)
        (answer,) = helper_here(IN_FLIGHT).call_all([(call, arguments)])
        if isinstance(answer, Exception):
            raise answer
        found: A = answer
        return found

    return call


@_from_anywhere
def object_exists(url: str) -> bool:
    """Return whether there is such an object.

    Raises:
        ShardsieveError: If nobody says so.
    """

    def once() -> bool:
        try:
            _head(url)
        except (FileNotFoundError, exceptions.NotFoundError):
            return False
        return True

    return bool(retried(once, f"read {url}", ShardsieveError)[0])


def put(url: str, data: bytes) -> None:
    """Write an object, in place of one of that name.

    Raises:
        ShardsieveError: If that fails for good, naming object and cause.
    """
    retried(lambda: obstore.put(*client(url), data), f"write {url}", ShardsieveError)


async def replace(store: Any, name: str, data: bytes, version: Any) -> bool:
    """Write an object in place of one version of it; return False where versions are unknown.

    Args:
        store: An obstore client.
        name: Of the object.
        data: What to write.
        version: As of `version_of`.
    """
    try:
        await obstore.put_async(store, name, data, mode=version)
    except exceptions.NotSupportedError:
        return False
    except exceptions.GenericError as error:
        if _NOT_IMPLEMENTED not in str(error):
            raise
        return False
    return True


async def create(store: Any, name: str, data: bytes) -> bool:
    """Write an object unless there is one; return False where conditions are unknown."""
    try:
        return await replace(store, name, data, "create")
    except exceptions.AlreadyExistsError:
        return True


def was_changed(error: BaseException) -> bool:
    """Return whether an error says that `replace` met another version."""
    changed = exceptions.PreconditionError, exceptions.AlreadyExistsError
    return isinstance(error.__cause__, changed)


@contextmanager
def told_about_objects(what: str) -> Iterator[None]:
    """Make one line of obstore's errors, and refuse what would hang.

    Args:
        what: `read`, `write`, `list` or `delete`, and of what.

    Raises:
        ShardsieveError: Instead of obstore's errors, or if this process was forked too late.
    """
    note_use(what)
    try:
        yield
    except exceptions.BaseError as error:
        raise ShardsieveError(f"cannot {what}: {cause_of(error)}") from error


def fetch(url: str, offset: int, length: int, mark: str | None = None) -> Fetched:
    """Return exactly `length` bytes of an object from `offset`.

    Throttling, resets, short bodies and timeouts are tried again, waiting longer each time: seconds
    in all, minutes where the Hub says that these were too many requests.

    Args:
        url: The object.
        offset: First byte.
        length: Above 0.
        mark: What `mark_of` said when the object was indexed.

    Raises:
        CorruptShardError: If it fails for good, naming object, range and cause, or if the object
            is another one now, or ends before that.
    """

    def once() -> bytes:
        store, path = client(url)
        try:
            found = obstore.get(store, path, options={"range": (offset, offset + length)})
        except exceptions.GenericError as error:
            if _BEYOND_THE_END not in str(error):
                raise
            raise too_short(url, offset + length) from error
        if mark and not _is_of(mark, found.meta):
            raise CorruptShardError(
                f"shard {url} was replaced after it was indexed ({mark} then, "
                f"{_mark(found.meta)} now); {ANOTHER_STORE}"
            )
        if found.meta["size"] < offset + length:
            raise too_short(url, offset + length)
        data = bytes(found.bytes())
        if len(data) != length:
            raise OSError(f"{len(data)} bytes came")
        return data

    return Fetched(*retried(once, f"read shard {url}, bytes {offset}-{offset + length}"))


@_from_anywhere
def fetch_whole(url: str) -> bytes | None:
    """Return an object's bytes, None if there is none of that name.

    Raises:
        ShardsieveError: If it cannot be read.
    """

    def once() -> bytes | None:
        try:
            return bytes(obstore.get(*client(url)).bytes())
        except (FileNotFoundError, exceptions.NotFoundError):
            return None

    found: bytes | None = retried(once, f"read {url}", ShardsieveError)[0]
    return found


@_from_anywhere
def names_below(url: str) -> list[str]:
    """Return the names right below a URL, of objects and of folders of objects.

    Raises:
        ShardsieveError: If they cannot be listed.
    """
    store, path = client(url)
    found = retried(
        lambda: obstore.list_with_delimiter(store, path), f"list {url}", ShardsieveError
    )[0]
    names = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
    return [name.rpartition("/")[2] for name in names]


@_from_anywhere
def size_of(url: str) -> int:
    """Return an object's size in bytes."""
    return int(_described(url)["size"])


@_from_anywhere
def mark_of(url: str) -> str:
    """Return `size-ETag` of an object, or `size-seconds` of its last change."""
    return _mark(_described(url))


@_from_anywhere
def listed_marks(urls: Sequence[str]) -> dict[str, str]:
    """Return `mark_of` of objects of one folder by URL, of those that a listing tells.

    It goes on while it is likely to tell more, and ends without a word where it is not allowed.
    """
    root, _ = split_url(urls[0])
    names = sorted(split_url(url)[1] for url in urls)
    store, _ = client(urls[0])
    before, most = names[0][:-1], _MOST_LISTED * len(names)

    def listed() -> dict[str, str]:
        found: dict[str, str] = {}
        with suppress(exceptions.BaseError, OSError):
            for page in obstore.list(store, names[0].rpartition("/")[0] or None, offset=before):
                found |= {f"{root}/{one['path']}": _mark(one) for one in page}
                if not page or page[-1]["path"] >= names[-1] or len(found) > most:
                    break
        return {url: found[url] for url in urls if url in found}

    return interruptible(listed)


def version_of(url: str) -> dict[str, str]:
    """Return what tells an object from those of its name before and after it, for obstore.

    Raises:
        ShardsieveError: If there is none, or nobody says so.
    """
    found = retried(lambda: _head(url), f"read {url}", ShardsieveError)[0]
    return {name: found[name] for name in ("e_tag", "version") if found[name]}


def _described(url: str) -> Any:
    return retried(lambda: _head(url), f"read shard {url}")[0]


def _head(url: str) -> Any:
    try:
        return obstore.head(*client(url))
    except exceptions.BaseError as error:
        # A host may send on to an address that was signed for GET.
        if not over_http(url) or not any(status in str(error) for status in _NO_HEAD):
            raise
        return obstore.get(*client(url), options={"range": (0, 1)}).meta


def _mark(found: Any) -> str:
    tag = found["e_tag"] or f"{found['last_modified'].timestamp():.0f}"
    return f"{found['size']}-" + tag.strip('"')


def _is_of(mark: str, found: Any) -> bool:
    """Return whether what was found can be what had this mark."""
    # Some hosts call a tag weak, or leave it out, for one method alone: the same bytes.
    size, _, tag = mark.replace('W/"', "").partition("-")
    timed = tag.isdecimal() and found["last_modified"].timestamp() > 0
    if not found["e_tag"] and not timed:
        return bool(found["size"] == int(size))
    return _mark(found).replace('W/"', "") == f"{size}-{tag}"
