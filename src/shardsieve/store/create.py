"""Make a store from shards, and check that they are still the ones it was made from."""

import hashlib
import shutil
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from shardsieve._errors import (
    ANOTHER_STORE,
    CorruptShardError,
    StoreFormatError,
    StoreMismatchError,
)
from shardsieve.io.clients import is_remote
from shardsieve.io.replacing import temporary_folder
from shardsieve.io.source import absolute, at_once
from shardsieve.shards.fingerprint import index_fingerprint
from shardsieve.shards.names import expand_urls
from shardsieve.store.alone import alone_in, remove_left_folder
from shardsieve.store.contents import write_contents
from shardsieve.store.create_beton import beton_blocks, check_beton, is_beton
from shardsieve.store.damage import CHECKED
from shardsieve.store.indexed import IndexedShard, ShardRow, numbered, shard_columns
from shardsieve.store.layout import (
    FORMAT_VERSION,
    LOST_LABEL,
    holds_store,
    make_array,
    need_writable,
    place_of,
    renamed_folder,
    rows_per_shard,
    uploaded_folder,
)
from shardsieve.store.sorting import warn_if_sorted
from shardsieve.store.store import Store, open_store
from shardsieve.store.walking import (
    LABEL_MEMBER,
    Progress,
    finished,
    index_shard,
    names_of_classes,
    walked,
)

_OF_SAMPLES: dict[str, tuple[Any, Any]] = {
    "offset": ("int64", -1),
    "length": ("int64", 0),
    "label": ("int32", LOST_LABEL),
    "key": (str, ""),
}
_SHARDS_AT_ONCE = 32
_MOVED = (
    "choose another --store, or if its shards are there now: `shardsieve check --moved-to FOLDER`"
)


def index(
    urls: str | Path | Iterable[str | Path],
    store: str | Path,
    *,
    label_member: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Index shards into a new store, or return the store that already holds just these shards.

    A killed run resumes: finished shards are kept beside the store until it is complete, and the
    store appears under its name in one rename. A tar without files, as a download that failed
    leaves, adds no samples and is warned of. Of processes that index into one store at once, as
    ranks do, one makes it and the others wait.

    Args:
        urls: Brace pattern, glob, `.txt` list, or several of them; order defines the sample ids.
            Or one FFCV `.beton`, whose sample ids are its rows.
        store: Folder to make, or the URL of a place in an object store.
        label_member: Suffix of the member that holds the label (left out: `cls`), `json:FIELD`
            for a field of a JSON member, `/` for the folder of the sample's key, or `.tar` for the
            name of the tar before that. Labels are decimal numbers, or where there are none, names:
            these are numbered as they sort. Of a `.beton` an integer field (left out: `label`, or
            the only integer field). A store that is there must have its labels from it.
        progress: Called with (shards done, shards in all).

    Raises:
        ShardsieveError: If no shards match, one is damaged, or the store holds other shards.
    """
    shards = expand_urls(urls)
    target = place_of(store)
    partial = beside(target)
    if not _is_there(target):
        need_writable(target)
        with alone_in(partial):
            if not _is_there(target):
                _make(shards, target, partial, label_member or LABEL_MEMBER, progress)
                made = open_store(target)
                if made.kind == "webdataset":
                    warn_if_sorted(made)
                return made
    remove_left_folder(partial)  # by a run that was killed after the store had its name
    return _existing(target, shards, label_member)


def _is_there(target: Path | str) -> bool:
    return holds_store(target) or (isinstance(target, Path) and target.exists())


def _make(
    shards: list[str],
    target: Path | str,
    partial: Path,
    label_member: str,
    progress: Progress | None,
) -> None:
    """Make a store with the help of a folder, which goes: of finished shards and of its making."""
    if is_beton(shards):
        blocks, attributes = beton_blocks(shards[0], label_member)
        with _made(target, partial) as folder:
            rows = [block.row for block in blocks]
            _write(folder, shards * len(blocks), rows, blocks, label_member, attributes)
    else:
        done = walked(shards, partial, label_member, progress)
        if not any(row.samples for row in done):
            shutil.rmtree(partial, ignore_errors=True)
            raise CorruptShardError(
                f"{len(done)} shards hold no files, the first of them {shards[0]}"
            )
        with _made(target, partial) as folder:
            by_number = any(row.has_numbers for row in done)
            names = [] if by_number else names_of_classes(done, label_member)
            named = {"classes": names} if names else None
            told = numbered(finished(partial, len(done)), names)
            _write(folder, shards, done, told, label_member, named)
    shutil.rmtree(partial, ignore_errors=True)


def beside(target: Path | str) -> Path:
    """Return the local folder that keeps finished shards until the store is complete."""
    if isinstance(target, Path):
        folder = target.absolute()  # a dot has no name of its own
        return folder.parent / f".{folder.name}.indexing"
    name = hashlib.blake2b(target.encode(), digest_size=8).hexdigest()
    return temporary_folder() / f"shardsieve-{name}.indexing"


def _made(target: Path | str, partial: Path) -> AbstractContextManager[Path]:
    """Give the folder to write to, which becomes the store in one step."""
    if isinstance(target, Path):
        return renamed_folder(target, partial)
    return uploaded_folder(target, partial)


def _write(
    where: Path,
    urls: list[str],
    rows: list[ShardRow],
    shards: Iterable[IndexedShard],
    label_member: str,
    attributes: dict[str, Any] | None = None,
) -> None:
    group = zarr.open_group(where, mode="w", zarr_format=3)
    columns = shard_columns(urls, rows)
    for name, column in columns.items():
        how: dict[str, Any] = {"compressors": CHECKED}
        if column.dtype == object:
            how |= {"dtype": str, "fill_value": "", "shape": column.shape, "chunks": column.shape}
            group.create_array(f"shard/{name}", **how)[:] = column
        else:
            group.create_array(f"shard/{name}", data=column, **how)
    shape = (len(rows), rows_per_shard(int(columns["samples"].max())))
    for name, (dtype, fill) in _OF_SAMPLES.items():
        make_array(group, f"sample/{name}", shape, dtype, fill)
    write_samples(group, 0, shards)
    group.update_attributes(
        {
            "kind": "webdataset",
            # Who opens the store while shards are appended must not read longer arrays.
            "num_shards": len(rows),
            "rows_per_shard": shape[1],
            "members": sorted({name for row in rows for name in row.suffixes}),
            "fingerprint": index_fingerprint(columns["table"].tolist()),
            "label_member": label_member,
            **(attributes or {}),
            "format_version": FORMAT_VERSION,
        }
    )
    write_contents(group)


def write_samples(group: zarr.Group, first: int, shards: Iterable[IndexedShard]) -> None:
    """Write what a store holds of samples from a shard on; of a few shards it is in memory."""
    left = iter(shards)
    while part := list(islice(left, _SHARDS_AT_ONCE)):
        for name, (dtype, fill) in _OF_SAMPLES.items():
            array: Any = group[f"sample/{name}"]
            size = len(part), array.shape[1]
            table = np.full(size, fill, dtype=object if dtype is str else dtype)
            for row, shard in zip(table, part, strict=True):
                row[: len(shard.keys)] = shard.stored(name)
            array[first : first + len(part)] = table
        first += len(part)


def _existing(target: Path | str, shards: list[str], label_member: str | None) -> Store:
    if not holds_store(target):
        raise StoreFormatError(
            f"{target} is there and holds no store; choose another place, or delete it"
        )
    store = open_store(target)
    member_of(store, label_member)
    wanted = [absolute(url) for url in shards]
    if store.kind == "ffcv":
        wanted *= store.num_shards
    if store.urls != wanted and sorted(store.urls) == sorted(wanted):
        raise StoreMismatchError(
            f"{target} was made from these shards in another order, which its sample ids follow: "
            f"{store.urls[0]} was the first; name them in that order, or choose another --store"
        )
    if store.urls != wanted:
        held = set(store.urls)
        other = next((a for a in wanted if a not in held), f"{len(wanted)} shards")
        grown = wanted[: store.num_shards] == store.urls
        cure = "add the new ones with --append" if grown else _MOVED
        raise StoreMismatchError(
            f"{target} was made from other shards: it holds {store.num_shards}, "
            f"got {len(wanted)} with {other}; {cure}"
        )
    return store


def member_of(store: Store, asked: str | None = None) -> str:
    """Return the member that a store has its labels from.

    Raises:
        StoreMismatchError: If another one is asked for.
    """
    held = store.group.attrs.get("label_member", asked or LABEL_MEMBER)
    if asked not in (None, held):
        raise StoreMismatchError(
            f"{store.path} has its labels from {held}, got label_member {asked}; "
            "give it that one, or index into another store"
        )
    return str(held)


def check(store: Store, *, moved: bool = False, progress: Progress | None = None) -> int:
    """Walk every shard again and compare its sample table with the index, byte for byte.

    Shards with the same table and labels are the indexed ones, also where size and time say
    otherwise, as after copying: what they say now is then written to the store. Objects are walked
    several at a time; the first shard in order that is not as indexed is named. Of a store that
    reads copies these are compared, and nothing is written unless the shards were moved there.

    Args:
        store: Open for writing.
        moved: Take the copies for the shards from now on.
        progress: Called with (shards done, shards in all).

    Returns:
        For how many shards size or time were others.

    Raises:
        StoreMismatchError: If a shard's table or labels differ, naming the first such shard.
        CorruptShardError: If a shard is damaged.
        StoreFormatError: If the store has lost keys or places.
    """
    deque(store.keys_by_shard(), maxlen=0)  # what the index itself has lost is refused
    _ = store.ranges
    found = check_beton(store) if store.kind == "ffcv" else _check_tars(store, progress)
    if moved:
        store.move_to_places()
    return 0 if store.reads_copies else store.renew_fingerprints(found)


def _check_tars(store: Store, progress: Progress | None) -> list[str]:
    """Compare every tar; return their cheap fingerprints, each from before it was walked."""
    remote = any(map(is_remote, store.places))
    member = member_of(store)
    shards = at_once(lambda url: index_shard(url, label_member=member), store.places, remote=remote)
    told = numbered(shards, store.classes)
    each = zip(store.places, store.tables(), store.labels_by_shard(), told, strict=True)
    found = list[str]()
    for number, (url, table, labels, shard) in enumerate(each):
        same_samples = table == shard.table
        if not (same_samples and np.array_equal(labels, shard.label)):
            other = "labels" if same_samples else "samples"
            raise StoreMismatchError(
                f"shard {url} holds other {other} than the index of {store.path}; {ANOTHER_STORE}"
            )
        found.append(shard.fingerprint)
        if progress:
            progress(number + 1, store.num_shards)
    return found
