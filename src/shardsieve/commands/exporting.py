"""The `export` command: a keep set in the words of other loaders."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve._errors import ShardsieveError
from shardsieve.commands.progress import bar
from shardsieve.commands.showing import kept_of
from shardsieve.io.replacing import write_whole
from shardsieve.keepset import KeepSet
from shardsieve.scores.inputs import one_of
from shardsieve.shards.names import file_of
from shardsieve.store.store import Store, open_store


def export_keep_set(
    path: Path, out: Path, layout: str | None, rule: dict[str, Any]
) -> dict[str, Any]:
    """Write what a rule keeps.

    Args:
        path: Of the store.
        out: The file; replaced as a whole.
        layout: One of `LAYOUTS`; None takes `ffcv` for a .npy, `csv` for a .csv, else `ids`.
        rule: As in `select`, or the name of a stored `keep_set`.

    Returns:
        Where it was written, and how many samples of how many are kept.
    """
    layout = _OF_SUFFIX.get(out.suffix, "ids") if layout is None else layout
    one_of("layout", layout, LAYOUTS)
    store = open_store(path, mode="r")
    keep = kept_of(store, rule)
    data = LAYOUTS[layout](store, keep, rule.get("score"))
    write_whole(out, data)
    return {"out": str(out), "layout": layout, "kept": len(keep), "samples": len(store)}


def _ids(store: Store, keep: KeepSet, score: str | None) -> bytes:
    """Sample ids, one a line."""
    return "".join(f"{i}\n" for i in keep.ids().tolist()).encode()


def _keys(store: Store, keep: KeepSet, score: str | None) -> bytes:
    """`SHARD/KEY` of what is kept, one a line."""
    return _listed(store, keep, kept=True)


def _energon(store: Store, keep: KeepSet, score: str | None) -> bytes:
    """`SHARD/KEY` of what is dropped: the lines of `exclude` in Energon's split.yaml."""
    return _listed(store, keep, kept=False)


def _ffcv(store: Store, keep: KeepSet, score: str | None) -> bytes:
    """A .npy of rows, uint64: `indices=` of FFCV's Loader."""
    if store.kind != "ffcv":
        raise ShardsieveError(
            f"layout ffcv (of a .npy) needs a store of a .beton, got one of {store.kind}; choose "
            "another --layout"
        )
    file = io.BytesIO()
    np.save(file, keep.ids().astype(np.uint64))
    return file.getvalue()


def _csv(store: Store, keep: KeepSet, score: str | None) -> bytes:
    """Every sample: id, shard, key, label, whether it is kept, and its score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "shard", "key", "label", "kept", *([score] if score else [])])
    scores = store.score(score).tolist() if score else None
    rows = zip(store.ids().tolist(), store.labels().tolist(), _names(store, keep), strict=True)
    for row, (sample_id, label, (name, kept)) in enumerate(rows):
        shard, _, key = name.partition("/")
        extra = [] if scores is None else [scores[row]]
        writer.writerow([sample_id, shard, key, label, int(kept), *extra])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _names(store: Store, keep: KeepSet) -> Iterator[tuple[str, bool]]:
    """Yield (`SHARD/KEY`, whether it is kept) of every sample, in id order."""
    with bar("export") as progress:
        for shard, (url, keys) in enumerate(zip(store.urls, store.keys_by_shard(), strict=True)):
            progress(shard, store.num_shards)
            kept = set(keep.positions(shard).tolist())
            for place, key in enumerate(keys):
                yield f"{file_of(url)}/{key}", place in kept
        progress(store.num_shards, store.num_shards)


def _listed(store: Store, keep: KeepSet, *, kept: bool) -> bytes:
    first: dict[str, str] = {}
    for url in store.urls:
        if (other := first.setdefault(file_of(url), url)) != url:
            raise ShardsieveError(
                f"shards must have names of their own to be listed by, got {other} and "
                f"{url}; use layout ids or csv"
            )
    names = [name for name, is_kept in _names(store, keep) if is_kept == kept]
    for name in names:
        if "\n" in name:  # of two lines, the second is a name that somebody chose
            raise ShardsieveError(
                f"samples must have names of one line to be listed by, got {name!r}; use layout "
                "ids or csv"
            )
    return "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")


LAYOUTS: dict[str, Callable[[Store, KeepSet, str | None], bytes]] = {
    "ids": _ids,
    "keys": _keys,
    "energon": _energon,
    "ffcv": _ffcv,
    "csv": _csv,
}
_OF_SUFFIX = {".npy": "ffcv", ".csv": "csv"}
