"""obstore clients by URL (s3, gs, az, hf, http, https), and the processes that may use them."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from obstore.store import HTTPStore, from_url

from shardsieve._errors import ShardsieveError
from shardsieve.io import aws, hub

SCHEMES = ("s3", "gs", "az", "hf", "http", "https")
_PLAIN = ("http", "https")
_CLOUDS = ("AWS", "GOOGLE", "AZURE")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# A body may take long: on a thin line many megabytes come at once. It must not stand still.
_TIMEOUTS = {"timeout": "1h", "read_timeout": "60s", "connect_timeout": "5s"}
_first_user: list[int] = []


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
    root, path = split_url(url)
    note_use(f"use {url}")
    return _client(root, os.getpid()), path


def group_client(url: str) -> Any:
    """Return an obstore client of a folder of objects, with obstore's own retries, for Zarr."""
    root, path = split_url(url)
    return _opened(f"{root}/{quote(path)}")


def split_url(url: str) -> tuple[str, str]:
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


def note_use(what: str) -> None:
    """Note that this process uses objects.

    Raises:
        ShardsieveError: If it was forked from one that did.
    """
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


def forget_clients() -> None:
    """Have keys read anew, which is done when a client is made."""
    _client.cache_clear()


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
