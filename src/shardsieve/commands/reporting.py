"""The `report` command."""

import json
from pathlib import Path
from typing import Any

from shardsieve.report import write_report
from shardsieve.store.store import open_store


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


def names_beside(url: str) -> Path:
    """Return where the names of the classes lie, if they do."""
    return Path(url).with_name("classes.json")


def class_names(url: str) -> list[str] | None:
    """Return the names that `shardsieve pack` wrote beside the shards, None without them."""
    names = names_beside(url)
    if not names.is_file():
        return None
    found: list[str] = json.loads(names.read_text())
    return found
