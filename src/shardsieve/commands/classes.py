"""The names of classes, as the shards say them or as they lie beside."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.io.clients import is_remote
from shardsieve.io.objects import fetch_whole
from shardsieve.store.create import member_of
from shardsieve.store.store import Store
from shardsieve.store.walking import LABEL_MEMBER

NAMES = "classes.json"
KEPT_OF_EACH = "rules class_balanced and stratified with a class floor keep some of each"
SEEDS_OF_EACH = "draw the same share of every class (--per-class), or more seeds"


def names_beside(url: str) -> bytes | None:
    """Return the file of the classes' names that lies beside a shard, None if nobody shows one."""
    folder, slash, _ = url.rpartition("/")
    name = f"{folder}{slash}{NAMES}"
    if not is_remote(url):
        return Path(name).read_bytes() if Path(name).is_file() else None
    with suppress(ShardsieveError):
        return fetch_whole(name)
    return None


def class_names(store: Store) -> list[str] | None:
    """Return the classes' names by label; None without them.

    They are the store's own, or those that `shardsieve pack` wrote beside the shards. Somebody
    else's file of that name is left alone unless it is a list of names too. They are not those of
    labels that were indexed from another member.
    """
    if store.classes:
        return [*store.classes]
    names = names_beside(store.urls[0]) if member_of(store) == LABEL_MEMBER else None
    if names is None:
        return None
    with suppress(ValueError):
        found = json.loads(names)
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    return None


def with_names(rows: Iterable[dict[str, Any]], store: Store) -> list[dict[str, Any]]:
    """Return rows that have a `class` with its `name` behind it, where that is known."""
    named = dict(enumerate(class_names(store) or ()))
    return [_with_name(row, named.get(row["class"])) for row in rows]


def left_out(
    store: Store,
    labels: NDArray[np.int64],
    ids: NDArray[np.int64],
    cure: str,
    *,
    pseudo_labels: str | None = None,
) -> str | None:
    """Return the warning about classes that are lost, None if there is none.

    Args:
        store: Open.
        labels: int64 (n,), in the order of its ids; -1 where there is none.
        ids: int64 (m,), the samples that are chosen.
        cure: What keeps some of every class.
        pseudo_labels: Name of those that the labels are; their classes have no names.
    """
    held = np.unique(labels[labels >= 0])
    gone = np.setdiff1d(held, labels[store.rows(ids)])
    if not len(gone):
        return None
    names = store.classes if pseudo_labels is None else ()
    first = dict(enumerate(names)).get(int(gone[0]), gone[0])
    return (
        f"{len(gone)} of {len(held)} classes have no sample among the {len(ids)} chosen, the first "
        f"of them {first}, so that nothing learns them; {cure}"
    )


def _with_name(row: dict[str, Any], name: str | None) -> dict[str, Any]:
    return row if name is None else {"class": row["class"], "name": name, **row}
