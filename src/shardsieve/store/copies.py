"""Copies of a store's shards, as on a node's own disk: found by name, and of the same size."""

import os
from collections.abc import Sequence
from pathlib import Path

from shardsieve._errors import ShardsieveError, StoreMismatchError
from shardsieve.io.clients import is_remote
from shardsieve.io.source import absolute, cheap_fingerprints
from shardsieve.shards.names import file_of

VARIABLE = "SHARDSIEVE_COPIES"
"""Names the folder in which every store that is opened looks for copies of its shards."""


def copies_in(
    folder: str | Path | None, urls: Sequence[str], fingerprints: Sequence[str]
) -> tuple[list[str], list[str]] | None:
    """Return where copies of shards lie, and their cheap fingerprints; None to read the shards.

    Args:
        folder: Holds all of them under their names; a path, or a URL; "" reads the shards. None
            takes that of `SHARDSIEVE_COPIES`, in which there may be none of them.
        urls: Of the shards; those of a `.beton` are all the same.
        fingerprints: Their cheap ones when they were indexed.

    Raises:
        ShardsieveError: If some have a copy there and others none, several have one name, or the
            variable names a URL.
        StoreMismatchError: If a copy has another size than its shard.
    """
    asked = folder is not None
    folder = folder if asked else os.environ.get(VARIABLE)
    if not folder:
        return None
    if is_remote(folder) and not asked:
        raise ShardsieveError(
            f"{VARIABLE} must name a folder of this machine, got {folder}; give a URL to "
            "open_store as copies"
        )
    without = "read the shards themselves" if asked else f"unset {VARIABLE}"
    places = [f"{absolute(folder).rstrip('/')}/{file_of(url)}" for url in urls]
    there = [is_remote(place) or Path(place).is_file() for place in places]
    if places == list(urls) or not (asked or any(there)):
        return None
    if len(set(places)) < len(set(urls)):
        raise ShardsieveError(
            f"copies are found by their names, and several shards have the name "
            f"{file_of(_twice(urls))}; {without}"
        )
    if not all(there):
        raise ShardsieveError(
            f"{folder} must hold a copy of every shard, got none of {urls[there.index(False)]} "
            f"({there.count(False)} of {len(urls)} are missing); copy it, or {without}"
        )
    found = cheap_fingerprints(places)
    for url, place, want, got in zip(urls, places, fingerprints, found, strict=True):
        if _size(want) != _size(got):
            raise StoreMismatchError(
                f"{place} is no copy of {url}: it has {_size(got)} bytes, the shard had "
                f"{_size(want)}; copy it again, or {without}"
            )
    return places, found


def _twice(urls: Sequence[str]) -> str:
    names = [file_of(url) for url in dict.fromkeys(urls)]
    return next(name for name in names if names.count(name) > 1)


def _size(fingerprint: str) -> str:
    return fingerprint.partition("-")[0]
