"""The `extrapolate` command: alone and under `accelerate launch`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import shardsieve.extrapolate as extrapolators
from shardsieve._errors import StoreMismatchError
from shardsieve.commands.filling import blocks_of, fill, ranks_of, readable_rows, sample_of
from shardsieve.commands.memorised import (
    by_unseen_neighbours,
    checked_seed_scores,
    memorised,
    some_of,
)
from shardsieve.commands.methods import (
    METHODS,
    ON_SIGNALS,
    SEARCHING,
    Mask,
    Task,
    Values,
    make_task,
    taken,
    usual_k,
)
from shardsieve.commands.progress import bar
from shardsieve.commands.trust import judged, told, unembedded, warned
from shardsieve.cost import Cost
from shardsieve.extrapolate.calibration import match_quantiles
from shardsieve.extrapolate.choosing import choose_k
from shardsieve.extrapolate.knn import KNN
from shardsieve.scores.inputs import one_of
from shardsieve.selection import check_fraction
from shardsieve.store.rows import StoredRows
from shardsieve.store.store import Store
from shardsieve.train.launch import make_accelerator, on_main
from shardsieve.train.machines import open_together

DECIDING = (
    "source",
    "method",
    "embedding",
    "k",
    "weights",
    "search",
    "min_recall",
    "layer",
    "graph",
    "labels",
    "matched_quantiles",
    "seed_scores",
    "seed",
)
"""Settings in a prediction's provenance that decide what is predicted."""


def extrapolate_score(
    path: Path,
    score: str,
    name: str,
    embedding: str | None,
    *,
    method: str = "knn",
    k: int | str | None = None,
    weights: str = "exp",
    folds: int = 5,
    match: bool | None = None,
    keep_fraction: float = 0.5,
    seed_scores: str = "measured",
    seed: int = 0,
    **how: Any,
) -> dict[str, Any]:
    """Predict the score of the rest; seeds keep their own. Stores quality with the score.

    Embeddings are read and predictions written shard by shard; ranks share the shards, and of a
    GNN neighbour search, training and inference.

    Args:
        path: Of the store.
        score: Measured score of the seeds.
        name: Of the score to make.
        embedding: Name; None takes the only one.
        method: One of `METHODS`.
        k: Neighbours; None takes `usual_k`, `auto` the best of a few by cross-validation, for kNN.
        weights: Of kNN.
        folds: Of the cross-validation.
        match: Give predictions the distribution of the measured scores; None does so for the
            methods on signals, whose predictions are of another unit than the seeds' scores.
        keep_fraction: Of the keep set to doubt or not.
        seed_scores: What seeds keep: their `measured` score or, for the methods on signals, the
            mean of unseen `neighbours`' predictions, where long training has memorised the seeds.
        seed: Of what is drawn.
        **how: Further arguments of the method: `search` and `min_recall` of `KNN`, `layer` and
            `graph` of `GNN` and whether `labels` are features of its nodes, for seeds and rest;
            those of the other are passed over.
    """
    checked_seed_scores(seed_scores, method in ON_SIGNALS)
    check_fraction(keep_fraction)
    begin, accelerator = time.perf_counter(), make_accelerator()
    store = open_together(accelerator, path)
    _check_measured(store, score)
    embedding = store.embedding_name(embedding)
    rows = store.embedding_rows(embedding)
    readable = readable_rows(rows, store.num_shards)
    how = taken(method, how)
    about: dict[str, Any] = {"score": score, "embedding": embedding, "readable": readable}
    about |= {"weights": weights, "seed": seed, **how}
    number = _number(k, method)
    tried: dict[str, Any] = {}
    if number is None:
        task = make_task(store, method, k=1, **about)
        number, tried = on_main(
            accelerator, lambda: _best_k(task, rows, weights, how, folds=folds, seed=seed)
        )
    task = make_task(store, method, k=number, ranks=ranks_of(accelerator), **about)
    match = method in ON_SIGNALS if match is None else match
    values = store.score(score)
    is_seed, rest = np.isfinite(values) & readable, ~np.isfinite(values) & readable
    counts = {"seeds": int(is_seed.sum()), "predicted": int(rest.sum())}
    seeds_by = "" if seed_scores == "measured" else f", seeds by {seed_scores}"
    made: dict[str, Any] = {"definition": f"{method}({score}{seeds_by})", "source": score}
    made |= {"method": method, "seed_scores": seed_scores}
    made |= {"k": number, "weights": weights, "matched_quantiles": match, **how, **tried}
    made |= {"embedding": embedding, "seed": seed, "seeds": counts["seeds"]}
    on_main(accelerator, lambda: refuse_other_prediction(store, name, made))
    with bar("try on seeds", shown=accelerator.is_main_process) as progress:
        cross: dict[str, Any] = {"folds": folds, "seed": seed, "progress": progress}
        # Of what ranks do not make together the main process alone sees the folds.
        folded = task.out_of_fold(rows, **cross) if task.together else None
        trust = on_main(
            accelerator,
            lambda: judged(
                store,
                task,
                task.out_of_fold(rows, **cross) if folded is None else folded,
                match=match,
                keep_fraction=keep_fraction,
            ),
        )
    made |= {**trust, "of": store.provenance(score)}
    searched = _predict(store, name, task, rows, values, rest, is_seed, made=made, match=match)
    if accelerator.is_main_process:
        cost = Cost.timed(time.perf_counter() - begin, accelerator.num_processes)
        store.finish_score(name, **searched, cost=cost.to_dict())
    accelerator.wait_for_everyone()
    counts["without_embedding"] = int((~readable).sum())
    shown = on_main(accelerator, lambda: told(store, trust))  # the names of classes are fetched
    result = {"score": name, "method": method, **tried, **counts, **shown, **searched}
    missing = unembedded(counts["without_embedding"], embedding)
    return result | warned(result.get("warning"), missing)


def check_extrapolation(
    method: str, *, k: int | str | None, weights: str, folds: int, seed_scores: str, **how: Any
) -> None:
    """Refuse settings of `extrapolate_score` that are wrong for any store.

    Raises:
        ValueError: With what is wrong.
    """
    one_of("method", method, METHODS)
    checked_seed_scores(seed_scores, method in ON_SIGNALS)
    number = _number(k, method) or 1
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}; 5 is usual")
    if method == "knn":
        KNN(number, weights, **taken(method, how))
    if method == "gnn":
        gnn: Any = extrapolators.GNN  # imported only where it is used
        gnn(number, **{n: v for n, v in taken(method, how).items() if n != "labels"})


def refuse_other_prediction(store: Store, name: str, made: Mapping[str, Any]) -> None:
    """Refuse to write over a score that was predicted with other settings.

    With the same ones it is predicted again: its seeds or embeddings may have changed.

    Args:
        store: Open.
        name: Of the score to make.
        made: Its provenance, or some of it.

    Raises:
        StoreMismatchError: If a setting differs, naming the first.
    """
    old = store.provenance(name) if store.has_score(name) else {}
    for key in DECIDING:
        if key in made and key in old and old[key] != made[key]:
            raise StoreMismatchError(
                f"score {name!r} was predicted with {key} {old[key]}, got {made[key]}; give the "
                "new one another name, or delete the old one: `shardsieve forget --store "
                f"{store.path} --score {name}`"
            )


def _check_measured(store: Store, score: str) -> None:
    """Refuse a score that was predicted itself, whose predictions would pass for measured."""
    source = store.provenance(score).get("source") if store.has_score(score) else None
    if source is not None:
        raise ValueError(
            f"score must be a measured one, got {score!r}, which was predicted from {source!r}; "
            f"extrapolate {source!r}"
        )


def _predict(
    store: Store,
    name: str,
    task: Task,
    rows: StoredRows,
    values: Values,
    rest: Mask,
    is_seed: Mask,
    *,
    made: dict[str, Any],
    match: bool,
) -> dict[str, Any]:
    """Fill a score, and return what was chosen for it; it is not listed yet."""
    accelerator = make_accelerator()
    main, world = accelerator.is_main_process, accelerator.num_processes
    if main:
        # Quantiles are matched over all predictions: half a filling is no use then.
        store.begin_score(name, made, afresh=match or made["seed_scores"] == "neighbours")
    accelerator.wait_for_everyone()
    shards = range(accelerator.process_index, store.num_shards, world)
    searched: dict[str, Any] = {}
    of_gnn = made["method"] == "gnn"
    with bar("train the graph network" if of_gnn else "fit", shown=main) as progress:
        more: dict[str, Any] = {"progress": progress} if of_gnn else {}
        if task.joint:
            block = _at_once(task, rows, values, rest, **more)
        else:
            model = task.fitted(rows, **more)
            if made["method"] in SEARCHING and rest.any():
                chosen = model.choose(sample_of(rows, rest), int(rest.sum()))
                searched = {"found_by": chosen.to_dict()}
        if not of_gnn:
            progress(1, 1)
    if not task.joint:
        if made["method"] in ON_SIGNALS:
            searched |= {"from_trained_seeds": model.lesson.to_dict() if model.lesson else None}
        block = blocks_of(task, model, rows, values, rest)
    array = store.score_array(name)
    with bar("extrapolate", shown=main) as progress:
        fill(store, array, shards, block, progress=progress)
    accelerator.wait_for_everyone()
    if main and match:
        _match(store, name, values, rest)
    if main and made["method"] in ON_SIGNALS and rest.any():
        with bar("compare seeds") as progress:
            progress(0, 1)
            searched |= _seeds_beside(store, name, rows, values, rest, is_seed, made=made)
            progress(1, 1)
    return searched


def _at_once(
    task: Task, rows: StoredRows, values: Values, rest: Mask, **more: Any
) -> Callable[[int], Values]:
    # Predictions of one graph depend on one another.
    known = values.copy()
    if rest.any():
        known[rest] = task.predict(rows, rest, **more)
    return blocks_of(task, None, rows, known, np.zeros_like(rest))


def _match(store: Store, name: str, values: Values, rest: Mask) -> None:
    """Give the predictions of a score that is being filled the distribution of the known ones."""
    found = store.unfinished_score(name)
    found[rest] = match_quantiles(found[rest], values[np.isfinite(values)])
    store.write_score(name, found)


def _seeds_beside(
    store: Store,
    name: str,
    rows: StoredRows,
    values: Values,
    rest: Mask,
    is_seed: Mask,
    *,
    made: dict[str, Any],
) -> dict[str, Any]:
    """Compare trained seeds with unseen samples like them, and score them by those when asked."""
    found = store.unfinished_score(name)
    measured = made["seed_scores"] == "measured"
    asked = some_of(is_seed, made["seed"]) if measured else is_seed
    near = by_unseen_neighbours(rows, found, asked, rest, k=made["k"], seed=made["seed"])
    if not measured:
        found[is_seed] = match_quantiles(near, found[rest])
        store.write_score(name, found)
    return memorised(values[asked], near, made, warn=measured)


def _best_k(
    task: Task, rows: StoredRows, weights: str, how: dict[str, Any], *, folds: int, seed: int
) -> tuple[int, dict[str, Any]]:
    learned = np.isfinite(task.values)
    best, figures = choose_k(
        rows.take(np.flatnonzero(learned)),
        task.values[learned],
        make=lambda k: KNN(k, weights, **how),
        folds=folds,
        seed=seed,
    )
    tried = {str(k): round(figure, 4) for k, figure in figures.items()}
    return best, {"k": best, "k_tried": tried}


def _number(k: int | str | None, method: str) -> int | None:
    """Return k, or None where it is to be chosen."""
    if k is None:
        return usual_k(method)
    if k == "auto" and method == "knn":
        return None
    if not str(k).isdigit() or int(k) < 1:
        raise ValueError(
            f"k must be at least 1, or auto for method knn, got {k!r}; {usual_k(method)} is usual"
        )
    return int(k)
