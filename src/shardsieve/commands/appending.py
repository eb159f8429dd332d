"""`extrapolate --append`: what a predicted score lacks, predicted as its other rows were."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError, StoreMismatchError
from shardsieve.commands.filling import blocks_of, ranks_of, readable_rows, sample_of
from shardsieve.commands.methods import METHODS, SEARCHING, Mask, Task, Values, make_task, taken
from shardsieve.commands.progress import bar
from shardsieve.commands.texts import warned
from shardsieve.commands.trust import unembedded
from shardsieve.cost import Cost
from shardsieve.extrapolate.calibration import match_quantiles
from shardsieve.extrapolate.correlations import spearman
from shardsieve.extrapolate.distance import far_share, warn_of_far
from shardsieve.order import permutation
from shardsieve.store.layout import told_about_disk
from shardsieve.store.rows import StoredRows
from shardsieve.store.store import Store
from shardsieve.train.launch import make_accelerator
from shardsieve.train.machines import open_together

# Old predictions that are made again, to see that they come out as they did and how they were
# matched.
_AGAIN, _SAME = 65_536, 0.99


def append_score(path: Path, name: str) -> dict[str, Any]:
    """Predict what a predicted score lacks, as its other rows were made; those stay to the bit.

    The seed run is not repeated: the seeds and their scores are those of before. The extrapolator
    was not kept and is fitted again on them, which gives the same one up to rounding; for the GNN
    that is a training. Where predictions were matched to the measured scores' distribution, new
    ones are moved as old ones were. The samples without a score are mostly those of shards that
    were appended.

    Raises:
        MissingScoreError: If there is no such score, or none whose predictions each depend on
            their own row alone: a GNN over a graph of all samples does not make such.
        StoreMismatchError: If, fitted again, the extrapolator predicts otherwise than it did.
    """
    accelerator, begin = make_accelerator(), time.perf_counter()
    store = open_together(accelerator, path)
    values, made = store.score(name), store.provenance(name)
    method = checked_method(name, made)
    rows = store.embedding_rows(store.embedding_name(made["embedding"]))
    readable = readable_rows(rows, store.num_shards)
    about = {key: made[key] for key in ("k", "weights", "seed")} | taken(method, made)
    about |= {"score": made["source"], "embedding": made["embedding"]}
    task = make_task(store, method, readable=readable, ranks=ranks_of(accelerator), **about)
    # A fast rank must not write what a slow one has yet to read.
    accelerator.wait_for_everyone()
    wanted = ~np.isfinite(values) & readable
    result: dict[str, Any] = {"score": name, "predicted": int(wanted.sum())}
    result["without_embedding"] = int((~readable).sum())
    missing = unembedded(result["without_embedding"], made["embedding"])
    if not wanted.any():
        return result | warned(missing)
    with bar("fit again", shown=accelerator.is_main_process) as progress:
        progress(0, 3)
        model = task.fitted(rows)
        progress(1, 3)
        sample = sample_of(rows, wanted)
        share = far_share(rows.take(np.flatnonzero(np.isfinite(task.values))), sample)
        added: dict[str, Any] = {"far": round(share, 4)}
        if method in SEARCHING:
            added["found_by"] = model.choose(sample, int(wanted.sum())).to_dict()
        about_rows = _with(made.get("appended", []), values, result["predicted"], added)
        old = values.copy()
        old[about_rows[-1].get("first_row", len(old)) :] = np.nan
        progress(2, 3, note="old predictions again")
        moved = _moving(store, task, model, rows, old, readable, made=made)
        progress(3, 3)
    if accelerator.is_main_process:
        # First: a start that is killed among its rows would leave another count to the next one.
        store.finish_score(name, appended=about_rows)
    block = blocks_of(task, model, rows, values, wanted)
    array = store.score_array(name)
    mine = range(accelerator.process_index, store.num_shards, accelerator.num_processes)
    with bar("extrapolate", shown=accelerator.is_main_process) as progress:
        for done, shard in enumerate(mine, start=1):
            here = rows.part(shard)
            if wanted[here].any():
                found = block(shard)
                found[wanted[here]] = moved(found[wanted[here]])
                with told_about_disk(store.path):
                    array[shard, : len(found)] = found
            progress(done, len(mine))
    if accelerator.is_main_process and "cost" in made:  # else nobody knows what the old rows took
        spent = Cost.timed(time.perf_counter() - begin, accelerator.num_processes)
        store.finish_score(name, cost=(Cost.from_dict(made["cost"]) + spent).to_dict())
    accelerator.wait_for_everyone()
    return result | added | warned(warn_of_far(share), missing)


def _with(
    held: list[dict[str, Any]], values: Values, predicted: int, added: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what a score says of its appended rows, once these are.

    Args:
        held: What it said, perhaps of these already: of a start that was killed.
        values: (n,), NaN where there is no score yet.
        predicted: Rows that get one now.
        added: How.
    """
    known = np.flatnonzero(np.isfinite(values))
    told, scored = held[-1].get("scored", 0) if held else 0, len(known) + predicted
    if told == scored:
        return held
    samples, first = scored - max(len(known), told), int(known.max()) + 1
    return [*held, {"samples": samples, "scored": scored, "first_row": first, **added}]


def checked_method(name: str, made: dict[str, Any]) -> str:
    """Return the method that made a score; MissingScoreError if it cannot go on."""
    method = str(made.get("method"))
    joint = taken(method, made).get("graph") == "all"
    if method not in METHODS or joint:
        over, seeds = (" over a graph of all samples", " with --graph seeds") if joint else ("", "")
        raise MissingScoreError(
            f"score {name!r} must be a prediction by knn, direct, fused or gnn over a graph of "
            f"seeds to be appended to, got {made['definition']!r}{over}; extrapolate again under "
            f"a new name{seeds}"
        )
    return method


def _moving(
    store: Store,
    task: Task,
    model: Any,
    rows: StoredRows,
    values: Values,
    readable: Mask,
    *,
    made: dict[str, Any],
) -> Callable[[Values], Values]:
    """Return what was done to predictions before they were stored, once they are seen to agree.

    Args:
        store: Open.
        task: Of the score.
        model: Fitted.
        rows: Embeddings.
        values: (n,), the scores of before: without those of a start that was killed, so that the
            next one comes to the same.
        readable: (n,), samples that have an embedding.
        made: Provenance of the score.
    """
    matched = bool(made.get("matched_quantiles"))
    known, measured = np.isfinite(values), np.isfinite(store.score(made["source"]))

    def told(wanted: Mask) -> tuple[NDArray[np.int64], Values]:
        """Return some of the wanted rows, ascending, and what is predicted of them."""
        places = np.flatnonzero(wanted)
        places = np.sort(places[permutation(len(places), made["seed"])[:_AGAIN]])
        return places, task.predict_at(rows, places, model)

    if (old := known & ~measured & readable).any():
        places, now = told(old)
        then = values[places]
        _check_same(now, then)
    elif matched:  # all of before was measured: the new ones are matched to it together
        _, now = told(~known & readable)
        then = match_quantiles(now, values[known])
    if not matched:
        return lambda found: found
    order = np.lexsort((then, now))
    before, after = now[order], then[order]
    return lambda found: np.interp(found, before, after).astype(np.float32)


def _check_same(now: Values, then: Values) -> None:
    # Earlier releases matched equal predictions to equal scores: an order lost is no difference.
    ordered = np.empty_like(then)
    ordered[np.lexsort((then, now))] = np.sort(then)
    if np.ptp(then) and (agreed := spearman(ordered, then)) < _SAME:
        raise StoreMismatchError(
            f"predictions must come out as they did, got a Spearman correlation of {agreed:.3f} "
            "with the stored ones: scores, embeddings or signals of the seeds have changed since; "
            "extrapolate again under a new name"
        )
