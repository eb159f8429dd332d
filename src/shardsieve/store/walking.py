"""Walk tars once for the index; what was walked is kept, so that a killed run goes on."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from shardsieve._errors import CorruptShardError
from shardsieve.io.clients import is_remote
from shardsieve.io.source import at_once, cheap_fingerprint, cheap_fingerprints, walkable
from shardsieve.shards.labels import class_in
from shardsieve.shards.samples import sample_table
from shardsieve.store.indexed import IndexedShard, ShardRow
from shardsieve.store.layout import told_about_disk

Progress = Callable[[int, int], None]
LABEL_MEMBER = "cls"
_LOG = logging.getLogger("shardsieve")
_EMPTY = "tars without files, which add no samples: %d, the first of them %s"
_FEW_CLASSES = 1000
_TEXTS = (
    "%s says %d different texts in %d samples, such as captions, which are taken for no classes; "
    "--label-member says where the class stands"
)
_HIDDEN = (
    "%d samples are hidden files such as a Mac's ._1.jpg, the first of them in %s, which "
    "webdataset reads too and which are no images; pack the shards without them "
    "(tar --exclude '._*')"
)
_NESTED = (
    "%d samples are tars themselves, the first of them in %s, as ImageNet's are handed out; unpack "
    "them, and index the tars of the classes with --label-member .tar"
)
_SPLIT = (
    "%d samples are the rest of an earlier one, the first of them in %s: its files are not next to "
    "each other, and webdataset too yields them one by one; pack the shards with tar --sort=name"
)


def walked(
    shards: list[str], partial: Path, label_member: str, progress: Progress | None
) -> list[ShardRow]:
    """Walk tars that the folder of finished ones lacks, and return what is known of each.

    The folder is this process' own: see `alone_in`. Their samples are in it: see `finished`.

    A damaged file empties the folder; anything else that stops it leaves what is finished.
    """
    done, remote = [], any(map(is_remote, shards))
    if remote:
        cheap_fingerprints(shards)  # one that is missing is named now, not after hours
    try:
        rows = at_once(
            lambda one: _finished(partial, *one, label_member).row, enumerate(shards), remote=remote
        )
        for row in rows:
            done.append(row)
            if progress:
                progress(len(done), len(shards))
        _warn_of(shards, done)
    except CorruptShardError:
        if not remote:  # of objects it may as well be the network, after hours
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return done


def _warn_of(shards: list[str], rows: list[ShardRow]) -> None:
    """Warn of what webdataset reads in silence, but what nobody meant."""
    empty = [not row.samples for row in rows]
    nested = [row.samples * (row.suffixes == ("tar",)) for row in rows]
    hidden, split = [row.hidden for row in rows], [row.split for row in rows]
    told = ((empty, _EMPTY), (hidden, _HIDDEN), (nested, _NESTED), (split, _SPLIT))
    for counts, what in told:
        if any(counts):
            first = shards[next(i for i, count in enumerate(counts) if count)]
            _LOG.warning(what, sum(counts), first)


def names_of_classes(rows: list[ShardRow], label_member: str) -> list[str]:
    """Return the names of the classes, sorted; none, with a warning, where texts are no names."""
    names = sorted({name for row in rows for name in row.names})
    samples = sum(row.samples for row in rows)
    if len(names) <= max(_FEW_CLASSES, samples // 2):
        return names
    _LOG.warning(_TEXTS, label_member, len(names), samples)
    return []


def index_shard(url: str, *, label_member: str = LABEL_MEMBER) -> IndexedShard:
    """Walk one tar and return its index entry; see `numbered`."""
    fingerprint = cheap_fingerprint(url)
    with walkable(url, fingerprint) as (read, total):
        table = sample_table(read, total, url, label_member=label_member)
    found = [class_in(text) for text in table.label]
    names = list(dict.fromkeys(one for one in found if isinstance(one, str)))
    number: dict[int | str, int] = {name: -2 - place for place, name in enumerate(names)}
    return IndexedShard(
        keys=table.keys,
        offset=table.offset,
        length=table.length,
        label=np.array([number.get(one, one) for one in found], dtype=np.int32),
        suffixes=list(table.suffixes),
        nbytes=total,
        fingerprint=fingerprint,
        split=table.split,
        names=names,
    )


def _save(partial: Path, number: int, url: str, label_member: str) -> IndexedShard:
    shard = index_shard(url, label_member=label_member)
    whence = [url, shard.fingerprint, label_member]
    parts = [shard.nbytes, shard.split, shard.names, shard.suffixes, shard.keys]
    note = json.dumps([*whence, *parts])
    path = partial / f"{number:08d}.npz"
    with told_about_disk(partial):
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, offset=shard.offset, length=shard.length, label=shard.label, note=note)
        temporary.rename(path)
    return shard


def _finished(partial: Path, number: int, url: str, label_member: str) -> IndexedShard:
    """Return a shard's entry, from the folder if it is there, else from a walk that leaves it."""
    try:
        whence, shard = _read(partial, number)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        pass  # it is not there, or not whole after a power cut
    else:
        if whence == [url, cheap_fingerprint(url), label_member]:
            return shard
    return _save(partial, number, url, label_member)


def finished(partial: Path, count: int) -> Iterator[IndexedShard]:
    """Yield the entries of shards that were all walked; one is in memory at a time.

    Classes that are said by name have no numbers yet.
    """
    for number in range(count):
        yield _read(partial, number)[1]


def _read(partial: Path, number: int) -> tuple[list[str], IndexedShard]:
    """Return whence an entry of the folder is, and the entry."""
    with (partial / f"{number:08d}.npz").open("rb") as file, np.load(file) as saved:
        *whence, nbytes, split, names, suffixes, keys = json.loads(str(saved["note"]))
        arrays: dict[str, Any] = {k: saved[k] for k in ("offset", "length", "label")}
    how: dict[str, Any] = {"nbytes": nbytes, "split": split, "names": names}
    how |= {"keys": keys, "suffixes": suffixes, "fingerprint": whence[1]}
    return whence, IndexedShard(**how, **arrays)
