"""How far to trust an extrapolated score: what is stored with it, printed, and warned of."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shardsieve.commands.classes import with_names
from shardsieve.commands.methods import Task, Values
from shardsieve.doubts import doubt_of_score
from shardsieve.extrapolate.calibration import match_quantiles
from shardsieve.extrapolate.quality import measure
from shardsieve.store.store import Store

_FIGURES = ("pearson", "spearman", "agreement", "intervals", "num_held_out")
_SHOWN_CLASSES = 10


def judged(
    store: Store,
    task: Task,
    held_out: Values,
    *,
    match: bool,
    keep_fraction: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return what is known of a prediction's quality, JSON-ready.

    Args:
        store: Open.
        task: What was predicted.
        held_out: (n,), predictions of the tried samples from other folds.
        match: Whether predictions are given the distribution of measured scores.
        keep_fraction: Of the keep set to doubt or not.
        progress: As in `measure`.

    Returns:
        `quality`, `speaks_of`, and where the seed run was made twice `ceiling` (how well its scores
        repeat) and `against_second_run` (how well the predictions agree with the second run's);
        `warning` where the keep set is not shown to beat chance.
    """
    wanted, found = task.values[task.tried], held_out[task.tried]
    found = match_quantiles(found, wanted) if match else found
    labels = store.labels()[task.tried]
    quality = measure(wanted, found, labels=labels, progress=progress).to_dict()
    known: dict[str, Any] = {"quality": quality, "speaks_of": task.speaks_of}
    ceiling = store.provenance(task.target).get("ceiling")
    if ceiling is not None:
        known["ceiling"] = ceiling
    if ceiling is not None and store.has_score(ceiling["of"]):  # a realigned score came without it
        again = store.score(ceiling["of"])[task.tried]
        both = np.isfinite(again)
        figures = measure(again[both], found[both], progress=progress).to_dict()
        known["against_second_run"] = {name: figures[name] for name in _FIGURES}
    warning = doubt_of_score(known, keep_fraction)
    return known | ({"warning": warning} if warning else {})


def told(store: Store, trust: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the command prints: of many classes the ten that are predicted worst."""
    quality = dict(trust["quality"])
    rows = sorted(quality.pop("classes"), key=lambda row: row["spearman"])
    worst = with_names(rows[:_SHOWN_CLASSES], store)
    shown = {"classes" if len(rows) <= _SHOWN_CLASSES else "worst_classes": worst}
    others = {name: value for name, value in trust.items() if name != "quality"}
    return {**quality, **shown, **others}


def unembedded(count: int, embedding: str) -> str | None:
    """Return the warning about so many samples without an embedding, None if there are none."""
    if not count:
        return None
    return (
        f"{count} samples have no embedding and stay without a score; run `shardsieve embed --name "
        f"{embedding}` with the network of the others, unless their images cannot be read"
    )
