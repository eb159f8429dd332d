"""The `report` command."""

from pathlib import Path
from typing import Any

import numpy as np

from shardsieve._errors import MissingScoreError
from shardsieve.commands.classes import class_names
from shardsieve.commands.progress import bar
from shardsieve.report import write_report
from shardsieve.store.store import Store, open_store


def report_score(
    path: Path, out: Path, *, score: str, keep_fraction: float, reference: str | None
) -> dict[str, Any]:
    """Write the report of a stored score."""
    store = open_store(path, mode="r")
    if reference is not None:
        _check_reference(store, reference)
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    with bar("report") as progress:
        write_report(store, out, **how, classes=class_names(store), progress=progress)
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
