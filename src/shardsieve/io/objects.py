"""Objects by URL (s3, gs, az, hf, http, https) through obstore: ranges, sizes, tags, retries."""

import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import HTTPStore, from_url

from shardsieve._errors import ANOTHER_STORE, CorruptShardError, ShardsieveError
from shardsieve.io import aws, hub
from shardsieve.io.helper import helper_here
from shardsieve.io.local import too_short
from shardsieve.io.stopping import interruptible, pause, stopped

ATTEMPTS = 7
FIRST_WAIT = 0.1
AT_THE_LIMIT = 60.0  # times longer
IN_FLIGHT = 64  # as of spans.OBJECTS, so that a process has one helper for all
SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
_PLAIN = ("http", "https")
_CLOUDS = ("AWS", "GOOGLE", "AZURE")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# A body may take long: on a thin line many megabytes come at once. It must not stand still.
_TIMEOUTS = {"timeout": "1h", "read_timeout": "60s", "connect_timeout": "5s"}
# Who is asked for a key when the environment has none.
_METADATA = ("169.254.169.254", "metadata.google.internal")
_HOPELESS = (
    FileNotFoundError,
    PermissionError,
    ValueError,  # of a name
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_MOST_LISTED = 20  # objects to be passed over for each that is looked for
_BEYOND_THE_END, _NOT_IMPLEMENTED = "status code: 416", "status code: 501"
_NO_HEAD = "status code: 403", "status code: 405"
_NO_RANGES = "Range request not supported"
_first_user: list[int] = []
_LOG = logging.getLogger("shardsieve")
A = TypeVar("A")
P = ParamSpec("P")


class Fetched(NamedTuple):
    """Bytes, and how often they had to be asked for again."""

    data: bytes
    retries: int


def is_remote(url: object) -> bool:
    """Return whether this names an object rather than a file.

    >>> is_remote("s3://bucket/a.tar"), is_remote("/data/a.tar")
    (True, False)
    """
    return "://" in str(url) and not str(url).startswith("file://")


def over_http(url: object) -> bool:
    """Return whether this lies where it is only read, and nothing can be listed."""
    return str(url).startswith(("http://", "https://", "hf://"))


def client(url: str) -> tuple[Any, str]:
    """Return this process' obstore client of a bucket or host, and the path in it.

    Credentials come the usual ways: environment, web identity, instance metadata. Names in buckets
    are taken as they are; after a host they may be percent-encoded.

    Raises:
        ShardsieveError: If the scheme is unknown, or the URL has a query or a password.
    """
    root, path = _split(url)
    _note_use(f"use {url}")
    return _client(root, os.getpid()), path


def group_client(url: str) -> Any:
    """Return an obstore client of a folder of objects, with obstore's own retries, for Zarr."""
    root, path = _split(url)
    return _opened(f"{root}/{quote(path)}")


def _split(url: str) -> tuple[str, str]:
    """Return bucket or host, and the path in it."""
    scheme, _, rest = hub.address(url).partition("://")
    host, _, path = rest.partition("/")
    if scheme not in SCHEMES:
        raise ShardsieveError(f"url must begin with one of {', '.join(SCHEMES)}://, got {url}")
    if "@" in host:
        told = f"{scheme}://...@{host.rpartition('@')[2]}/{path.partition('?')[0]}"
        raise ShardsieveError(
            f"url must not hold a name and a password, which are not sent and would be stored, got "
            f"{told}"
        )
    if "?" in path:
        told = url.partition("?")[0]  # the rest is a key to it
        raise ShardsieveError(f"url must not have a query (a signed URL expires), got {told}?...")
    return f"{scheme}://{host}", unquote(path) if scheme in _PLAIN else path


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

    return bool(_retried(once, f"read {url}", ShardsieveError)[0])


def put(url: str, data: bytes) -> None:
    """Write an object, in place of one of that name.

    Raises:
        ShardsieveError: If that fails for good, naming object and cause.
    """
    _retried(lambda: obstore.put(*client(url), data), f"write {url}", ShardsieveError)


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
    _note_use(what)
    try:
        yield
    except exceptions.BaseError as error:
        raise ShardsieveError(f"cannot {what}: {_cause(error)}") from error


def _note_use(what: str) -> None:
    if not _first_user:
        _first_user.append(os.getpid())
    elif forked_after_use():
        raise ShardsieveError(
            f"cannot {what} in a process that was forked after its parent had used objects; do it "
            "in the parent, or start the process with 'spawn'"
        )


def forked_after_use() -> bool:
    """Return whether obstore was used by the process that this one was forked from.

    Its threads do not survive a fork: any call would hang.
    """
    return bool(_first_user) and _first_user[0] != os.getpid()


@lru_cache(maxsize=64)
def _client(root: str, pid: int) -> Any:
    # Retries are ours: they are counted, and a short body is one of their causes.
    return _opened(root, retry_config={"max_retries": 0})


def _opened(url: str, **how: Any) -> Any:
    # obstore would take a https:// URL of a cloud's host for one of its API, and want a key.
    make = HTTPStore.from_url if url.startswith(_PLAIN) else from_url
    identity = aws.identity(url)
    told = _options(url, identity.get("config", {}).get("endpoint", ""))
    return make(url, client_options=told, **identity, **how)


def _options(url: str, endpoint: str) -> Any:
    named = {name: os.environ[name] for name in _ENDPOINTS if os.environ.get(name)}
    if url.startswith("s3:"):
        _check_endpoints(named)
    allowed = any(os.environ.get(f"{who}_ALLOW_HTTP") == "true" for who in _CLOUDS)
    places = url, endpoint, *named.values()
    plain = allowed or any(place.startswith("http://") for place in places)
    said = {"default_headers": hub.headers(url)}
    return {**_TIMEOUTS, **said, **({"allow_http": True} if plain else {})}


def _check_endpoints(named: Mapping[str, str]) -> None:
    """Refuse what obstore would panic about at the first request."""
    for name, place in named.items():
        parts = urlsplit(place)
        if parts.scheme not in _PLAIN or not parts.hostname:
            raise ShardsieveError(f"{name} must be as in http://host:9000, got {place!r}")


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

    return Fetched(*_retried(once, f"read shard {url}, bytes {offset}-{offset + length}"))


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

    found: bytes | None = _retried(once, f"read {url}", ShardsieveError)[0]
    return found


@_from_anywhere
def names_below(url: str) -> list[str]:
    """Return the names right below a URL, of objects and of folders of objects.

    Raises:
        ShardsieveError: If they cannot be listed.
    """
    store, path = client(url)
    found = _retried(
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
    root, _ = _split(urls[0])
    names = sorted(_split(url)[1] for url in urls)
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
    found = _retried(lambda: _head(url), f"read {url}", ShardsieveError)[0]
    return {name: found[name] for name in ("e_tag", "version") if found[name]}


def _described(url: str) -> Any:
    return _retried(lambda: _head(url), f"read shard {url}")[0]


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


def _retried(
    once: Callable[[], Any], what: str, kind: type[ShardsieveError] = CorruptShardError
) -> tuple[Any, int]:
    return interruptible(lambda: _tried(once, what, kind))


def _tried(once: Callable[[], Any], what: str, kind: type[ShardsieveError]) -> tuple[Any, int]:
    for attempt in range(ATTEMPTS):
        if stopped():
            raise kind(f"cannot {what}: nobody waits for it any more")
        try:
            return once(), attempt
        except _HOPELESS as error:
            if isinstance(error, _REFUSED) and attempt == 0:
                # Keys are read when a client is made: since then somebody may have logged in.
                _client.cache_clear()
                continue
            raise kind(f"cannot {what}: {_cause(error)}") from error
        except (exceptions.BaseError, OSError) as error:
            if attempt + 1 == ATTEMPTS:
                raise kind(f"cannot {what} in {ATTEMPTS} attempts: {_cause(error)}") from error
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5)
            if hub.limits(str(error)):
                _warn_of_limit()
                wait *= AT_THE_LIMIT
            pause(wait)
    raise AssertionError  # pragma: no cover


@cache
def _warn_of_limit() -> None:
    _LOG.warning(
        "the Hub allows no more requests for now (429): waiting up to some minutes; copy the "
        "shards to a disk or a bucket if that happens often"
    )


def _cause(error: BaseException) -> str:
    whole = " ".join(str(error).split("\n\nDebug")[0].split())
    # Without the address, which has been said: what the host answers stands last.
    text = re.sub(r"(Error performing \w+) \S+(?= in )", r"\1", whole)[:400]
    if any(host in whole for host in _METADATA):
        text += (
            "; the environment has no key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(AWS_SKIP_SIGNATURE=true for a public bucket; those of ~/.aws are found where boto3 "
            "is installed), or GOOGLE_..., AZURE_..."
        )
    if _NO_RANGES in whole:
        text += "; copy it to a disk, a bucket or a host that answers byte ranges"
    return text + hub.advice(whole)
