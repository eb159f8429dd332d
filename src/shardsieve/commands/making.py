"""The `index` and `check` commands: a store of shards, and whether it is still theirs."""

from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.commands.progress import bar
from shardsieve.store.append import append_shards
from shardsieve.store.create import check, index
from shardsieve.store.store import open_store


def make_index(
    urls: list[str], target: Path, label_member: str | None, *, append: bool = False
) -> dict[str, Any]:
    """Index shards into a store, or behind those that it holds."""
    make = append_shards if append else index
    with bar("index") as progress:
        store = make(urls, target, label_member=label_member, progress=progress)
    labels = store.labels()
    return {
        "store": str(target),
        "shards": store.num_shards,
        "samples": len(store),
        "members": list(store.members),
        "classes": len(np.unique(labels[labels >= 0])),
        "unlabelled": int((labels < 0).sum()),
    }


def check_store(path: Path, moved_to: str | None = None) -> dict[str, Any]:
    """Compare a store's index with its shards, or with those in the folder they are in now."""
    if moved_to == "":
        raise ValueError("moved_to must be the folder that the shards are in now, got ''")
    store = open_store(path, check_shards=False, copies=moved_to)
    with bar("check") as progress:
        renewed = check(store, moved=moved_to is not None, progress=progress)
    counts = {"shards": store.num_shards, "samples": len(store)}
    return {"store": str(path), **counts, "same": True, "renewed": renewed}
