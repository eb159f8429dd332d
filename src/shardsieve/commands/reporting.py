"""The `report` command."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve._errors import MissingScoreError, ShardsieveError
from shardsieve.commands.progress import bar
from shardsieve.io.objects import fetch_whole, is_remote
from shardsieve.report import write_report
from shardsieve.store.store import Store, open_store

NAMES = "classes.json"


def report_score(
    path: Path, out: Path, *, score: str, keep_fraction: float, reference: str | None
) -> dict[str, Any]:
    """Write the report of a stored score."""
    store = open_store(path, mode="r")
    if reference is not None:
        _check_reference(store, reference)
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    with bar("report") as progress:
        write_report(store, out, **how, classes=class_names(store.urls[0]), progress=progress)
    return {"report": str(out)}


def _check_reference(store: Store, name: str) -> None:
    """Refuse a reference whose values would be called measured and are not, or not all there."""
    missing = int((~np.isfinite(store.score(name))).sum())
    source = store.provenance(name).get("source")
    if missing or source is not None:
        how = (
            f"which {missing} of {len(store)} lack"
            if source is None
            else f"predicted from {source!r}"
        )
        raise MissingScoreError(
            f"reference must be measured on every sample, got {name!r}, {how}; `shardsieve score "
            "--seeds 1 --name full` measures such"
        )


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
