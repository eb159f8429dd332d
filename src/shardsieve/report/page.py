"""`write_report`: the page's figures and where they come from."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.extrapolate.quality import Quality, doubt, measure
from shardsieve.io.replacing import write_whole
from shardsieve.report.figures import against, contact_sheet, histogram, shares, spread_of
from shardsieve.selection import keep_top
from shardsieve.store.store import Store

_SHEET = 40


def write_report(
    store: Store,
    out: str | Path,
    *,
    score: str,
    keep_fraction: float = 0.5,
    reference: str | None = None,
    classes: list[str] | None = None,
    table: list[dict[str, Any]] | None = None,
) -> None:
    """Write one HTML page, with everything in it, about a stored score.

    Args:
        store: An open store.
        out: The page; written to a temporary name and renamed.
        score: Name of a score of every sample.
        keep_fraction: Of the keep set shown, in `(0, 1]`.
        reference: Name of a measured score of every sample to compare with.
        classes: Class names by label.
        table: Rows of equal keys to show first, such as the accuracy of some runs.

    Raises:
        MissingScoreError: If the score is absent, or missing for a sample.
    """
    values = _complete(store, score)
    kept, made = keep_top(values, keep_fraction), store.provenance(score)
    measured = _measured(store, made, values)
    order = np.argsort(values, kind="stable")
    ids = store.ids()
    names, rates = _class_shares(store, kept, classes)
    shown: dict[str, Any] = {
        "score": score,
        "definition": made["definition"],
        "measured": int(measured.sum()),
        "predicted": int((~measured).sum()),
        "keep_fraction": keep_fraction,
        "table": table,
        "made": made,
        "classes": classes,
        "doubt": _doubt(made, keep_fraction),
        "spread": spread_of(values, measured) if 0 < measured.sum() < len(values) else None,
        "histogram": histogram(values, measured, float(values[kept].min())),
        "shares": shares(names, rates, keep_fraction),
        "lowest": contact_sheet(store, ids[order[:_SHEET]]),
        "highest": contact_sheet(store, ids[order[::-1][:_SHEET]]),
        "reference": reference,
    }
    if reference is not None and not measured.all():
        truth = _complete(store, reference)[~measured]
        quality: Quality = measure(truth, values[~measured])
        shown |= {"against": against(values[~measured], truth), "agreement": quality}
    _write(Path(out), shown)


def _complete(store: Store, name: str) -> NDArray[np.float32]:
    values = store.score(name)
    missing = int((~np.isfinite(values)).sum())
    if missing:
        raise MissingScoreError(
            f"score {name!r} must be there for every sample, got {missing} without; "
            "run `shardsieve extrapolate` first"
        )
    return values


def _doubt(made: dict[str, Any], keep_fraction: float) -> str | None:
    quality = made.get("against_second_run", made.get("quality"))
    return None if quality is None else doubt(quality, keep_fraction)


def _measured(store: Store, made: dict[str, Any], values: NDArray[np.float32]) -> NDArray[np.bool_]:
    source = made.get("source")
    if made.get("seed_scores") == "neighbours":
        return np.zeros(len(values), dtype=np.bool_)
    if source is None or source not in store.scores:
        return np.ones(len(values), dtype=np.bool_)
    return np.asarray(np.isfinite(store.score(source)), dtype=np.bool_)


def _class_shares(
    store: Store, kept: NDArray[np.int64], classes: list[str] | None
) -> tuple[list[str], list[float]]:
    labels = store.labels()
    found, place = np.unique(labels, return_inverse=True)
    counts = np.bincount(place[kept], minlength=len(found)) / np.bincount(place)
    named = dict(enumerate(classes or ())) | {-1: "unlabelled"}
    names = [named.get(label, str(label)) for label in found.tolist()]
    return names, counts.tolist()


def _write(out: Path, shown: dict[str, Any]) -> None:
    pages = Environment(loader=PackageLoader("shardsieve.report", ""), autoescape=True)
    page = pages.get_template("page.html").render(shown)
    write_whole(out, page.encode())
