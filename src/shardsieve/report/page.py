"""`write_report`: the page's figures and where they come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.doubts import doubt_of_score, quality_of_score
from shardsieve.extrapolate.correlations import check_keeps
from shardsieve.extrapolate.quality import measure
from shardsieve.io.replacing import write_whole
from shardsieve.report.figures import against, contact_sheet, histogram, shares, spread_of
from shardsieve.selection import num_kept, top_rows
from shardsieve.store.store import Store

_SHEET = 40

# Draws one; it is given what takes in how far it is.
_Figure = Callable[[Callable[[str], None]], Any]


def write_report(
    store: Store,
    out: str | Path,
    *,
    score: str,
    keep_fraction: float = 0.5,
    reference: str | None = None,
    classes: list[str] | None = None,
    table: list[dict[str, Any]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write one HTML page, with everything in it, about a stored score.

    Args:
        store: An open store.
        out: The page; written to a temporary name and renamed.
        score: Name of a score of every sample, or of one that was predicted or asked for: what
            could not be read has none.
        keep_fraction: Of the keep set shown, in `(0, 1]`.
        reference: Name of a measured score of every sample to compare with.
        classes: Class names by label.
        table: Rows of equal keys to show first, such as the accuracy of some runs.
        progress: Called with (figures done, figures in all, which comes next).

    Raises:
        MissingScoreError: If the score is absent, or missing for a sample.
        ValueError: If the keep fraction is none, or would keep nothing.
    """
    check_keeps(len(store), keep_fraction)
    found, made = store.score(score), store.provenance(score)
    # What comes from an embedding lacks what could not be read, a seed run's score all the rest.
    rows = np.flatnonzero(np.isfinite(found))
    if "dynamics" in made or not {"source", "embedding"} & made.keys():
        _need_all(score, found)
    values, measured = found[rows], _measured(store, made)[rows]
    count = min(num_kept(len(store), keep_fraction), len(rows))
    kept = top_rows(values.astype(np.float64), count)
    shown: dict[str, Any] = {
        "score": score,
        "definition": made["definition"],
        **_counts(store, made, measured),
        "missing": len(store) - len(rows),
        "keep_fraction": keep_fraction,
        "table": table,
        "made": {**made, "quality": quality_of_score(made)},
        "classes": classes,
        "doubt": doubt_of_score(made, keep_fraction),
        "spread": None,
        "reference": reference,
    }
    figures: dict[str, _Figure] = {
        "histogram": lambda _: histogram(values, measured, float(values[kept].min())),
        "shares": lambda _: shares(*_class_shares(store, rows[kept], classes), keep_fraction),
        **_contact_sheets(store, rows, values),
    }
    if 0 < measured.sum() < len(values):
        figures["spread"] = lambda _: spread_of(values, measured)
    # Seeds among the predictions would flatter them.
    if reference is not None and not measured.all() and shown["gone"] is None:
        truth = store.score(reference)
        _need_all(reference, truth)
        figures |= _comparisons(truth[rows][~measured], values[~measured])
    shown |= _drawn(figures, progress)
    _write(Path(out), shown)
    if progress:
        progress(len(figures), len(figures), "")


def _contact_sheets(
    store: Store, rows: NDArray[np.int64], values: NDArray[np.float32]
) -> dict[str, _Figure]:
    ids, order = store.ids()[rows], np.argsort(values, kind="stable")
    return {
        "lowest": lambda _: contact_sheet(store, ids[order[:_SHEET]]),
        "highest": lambda _: contact_sheet(store, ids[order[::-1][:_SHEET]]),
    }


def _comparisons(truth: NDArray[np.float32], predicted: NDArray[np.float32]) -> dict[str, _Figure]:
    def agreement(told: Callable[[str], None]) -> Any:
        def drawn(draw: int, draws: int) -> None:
            told(f"agreement, draw {draw} of {draws}")

        return measure(truth, predicted, progress=drawn)

    return {"against": lambda _: against(predicted, truth), "agreement": agreement}


def _drawn(
    figures: dict[str, _Figure], progress: Callable[[int, int, str], None] | None
) -> dict[str, Any]:
    drawn = {}
    for done, (name, draw) in enumerate(figures.items()):

        def told(note: str, done: int = done) -> None:
            if progress:
                progress(done, len(figures), note)

        told(name)
        drawn[name] = draw(told)
    return drawn


def _need_all(name: str, values: NDArray[np.float32]) -> None:
    missing = int((~np.isfinite(values)).sum())
    if missing:
        raise MissingScoreError(
            f"score {name!r} must be there for every sample, got {missing} without; "
            "run `shardsieve extrapolate` first"
        )


def _measured(store: Store, made: dict[str, Any]) -> NDArray[np.bool_]:
    source = made.get("source")
    if made.get("seed_scores") == "neighbours":
        return np.zeros(len(store), dtype=np.bool_)
    if source is None:
        return np.ones(len(store), dtype=np.bool_)
    if source not in store.scores:  # which of them were measured nobody knows any more
        return np.zeros(len(store), dtype=np.bool_)
    return np.asarray(np.isfinite(store.score(source)), dtype=np.bool_)


def _counts(store: Store, made: dict[str, Any], measured: NDArray[np.bool_]) -> dict[str, Any]:
    """Return how many values were measured and predicted, and what told which, if gone."""
    source = made.get("source")
    gone = source if source is not None and source not in store.scores else None
    seeds = int(measured.sum())
    if gone and made.get("seed_scores") != "neighbours":
        seeds = int(made.get("seeds", 0))
    return {"measured": seeds, "predicted": len(measured) - seeds, "gone": gone}


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
