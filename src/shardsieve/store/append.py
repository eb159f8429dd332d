"""Append shards to a store: ids of before never change, and a killed run starts over or goes on."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import zarr

from shardsieve._errors import ShardsieveError, StoreMismatchError
from shardsieve.io.source import absolute
from shardsieve.shards.fingerprint import index_fingerprint
from shardsieve.shards.names import expand_urls
from shardsieve.store.alone import alone_in, in_turn, remove_left_folder
from shardsieve.store.contents import has_contents, write_contents
from shardsieve.store.create import beside, member_of, write_samples
from shardsieve.store.indexed import IndexedShard, ShardRow, numbered, shard_columns
from shardsieve.store.layout import PER_SHARD, need_writable, place_of, told_about_disk
from shardsieve.store.sorting import warn_if_sorted
from shardsieve.store.store import Store, open_store
from shardsieve.store.walking import Progress, finished, names_of_classes, walked


def append_shards(
    urls: str | Path | Iterable[str | Path],
    store: str | Path,
    *,
    label_member: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Index further shards behind those of a store, and return it.

    Shards that the store holds already are passed over. New rows have no embedding and no score:
    run `embed` and `extrapolate --append`. Sample ids do not change, nor do the numbers of classes
    that have names: new ones come behind them. The store's fingerprint does, so that keep sets and
    runs from before are refused.

    Killed at any point before its last step, it leaves the store as it was; started again, it
    finishes. Processes that append at the same time do so one after the other.

    Args:
        urls: As in `index`.
        store: A store of tars.
        label_member: By default that of the store; another one is refused.
        progress: Called with (shards done, new shards in all).

    Raises:
        ShardsieveError: If no shards match, one is damaged or holds more samples than the store
            has rows per shard, the store is of a `.beton` or has its labels from another member.
    """
    place = place_of(store)
    need_writable(place)
    urls = [urls] if isinstance(urls, (str, Path)) else list(urls)
    partial = beside(place)
    partial = partial.with_name(partial.name.replace(".indexing", ".appending"))
    old = _growing(open_store(store, copies=""))
    label_member = member_of(old, label_member)
    if not _new(urls, old):
        _finish(old, partial)
        return old
    with alone_in(partial):
        old = _growing(open_store(store, copies=""))
        new = _new(urls, old)
        if not new:  # another process was faster
            return old
        rows = walked(new, partial, label_member, progress)
        for url, row in zip(new, rows, strict=True):
            _check_size(url, row.samples, old)
        with told_about_disk(old.path), in_turn(old.path):
            _grow(old, new, rows, finished(partial, len(rows)))
        shutil.rmtree(partial, ignore_errors=True)
    grown = open_store(store, copies="")
    warn_if_sorted(grown)
    return grown


def _finish(store: Store, partial: Path) -> None:
    """Do what a run that was killed after the store had grown did not come to."""
    remove_left_folder(partial)
    if not has_contents(store.group):
        with told_about_disk(store.path):
            write_contents(store.group)


def _new(urls: str | Path | Iterable[str | Path], store: Store) -> list[str]:
    held = set(store.urls)
    return [url for url in expand_urls(urls) if absolute(url) not in held]


def _growing(store: Store) -> Store:
    if store.kind != "webdataset":
        raise StoreMismatchError(
            f"{store.path} holds a .beton, which does not grow; write a new .beton and index that"
        )
    return store


def _check_size(url: str, rows: int, store: Store) -> None:
    if rows > store.rows_per_shard:
        raise ShardsieveError(
            f"shard {url} must hold at most {store.rows_per_shard} samples, the rows per shard "
            f"that {store.path} was made with, got {rows}; split the shard, or index all shards "
            "into a new store and carry the scores over with realign"
        )


def _grow(
    store: Store, urls: list[str], rows: list[ShardRow], shards: Iterable[IndexedShard]
) -> None:
    before, total = store.num_shards, store.num_shards + len(rows)
    classes = [*store.classes]
    if classes:
        new_names = names_of_classes(rows, member_of(store))
        classes = [*dict.fromkeys([*classes, *new_names])]
    # Says how long the store is before any array is longer, and changes last.
    store.group.attrs["num_shards"] = before
    for kind in PER_SHARD:
        group = store.group.get(kind)
        arrays = group.array_values() if isinstance(group, zarr.Group) else ()
        for array in arrays:
            # What a killed run had appended goes: it may have been other shards.
            array.resize((before, *array.shape[1:]))
            array.resize((total, *array.shape[1:]))
    columns = shard_columns(urls, rows)
    for name, column in columns.items():
        _array(store, f"shard/{name}")[before:total] = column
    write_samples(store.group, before, numbered(shards, classes))
    tables = [*store.tables(), *columns["table"].tolist()]
    names = set(store.members).union(*(row.suffixes for row in rows))
    # One file, replaced in one step: before it the store is the old one, after it the new one.
    # (`attrs.update` would write it once per key.)
    store.group.update_attributes(
        {
            "num_shards": total,
            "members": sorted(names),
            "fingerprint": index_fingerprint(tables),
            **({"classes": classes} if classes else {}),
        }
    )
    write_contents(store.group)


def _array(store: Store, name: str) -> zarr.Array:  # type: ignore[type-arg]
    array = store.group[name]
    assert isinstance(array, zarr.Array)
    return array
