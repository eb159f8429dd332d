"""The `report` command."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError
from shardsieve.io.objects import fetch_whole, is_remote
from shardsieve.report import write_report
from shardsieve.store.store import open_store

NAMES = "classes.json"


def report_score(
    path: Path, out: Path, *, score: str, keep_fraction: float, reference: str | None
) -> dict[str, Any]:
    """Write the report of a stored score."""
    store = open_store(path, mode="r")
    if reference is not None:
        store.score(reference)
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    write_report(store, out, **how, classes=class_names(store.urls[0]))
    return {"report": str(out)}


def names_beside(url: str) -> bytes | None:
    """Return the file of the classes' names that lies beside a shard, None if nobody shows one."""
    folder, slash, _ = url.rpartition("/")
    name = f"{folder}{slash}{NAMES}"
    if not is_remote(url):
        return Path(name).read_bytes() if Path(name).is_file() else None
    with suppress(ShardsieveError):
        return fetch_whole(name)
    return None


def class_names(url: str) -> list[str] | None:
    """Return the names that `shardsieve pack` wrote beside the shards, None without them."""
    names = names_beside(url)
    if names is None:
        return None
    found: list[str] = json.loads(names)
    return found
