"""The `extrapolate` command: alone and under `accelerate launch`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import shardsieve.extrapolate as extrapolators
from shardsieve._errors import StoreMismatchError
from shardsieve.commands.filling import ranks_of, readable_rows
from shardsieve.commands.memorised import checked_seed_scores
from shardsieve.commands.methods import (
    METHODS,
    ON_SIGNALS,
    Task,
    Values,
    make_task,
    taken,
    usual_k,
)
from shardsieve.commands.predicting import Prediction
from shardsieve.commands.progress import bar
from shardsieve.commands.texts import warned
from shardsieve.commands.trust import judged, told, unembedded
from shardsieve.cost import Cost
from shardsieve.doubts import as_stored
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
    about["ranks"] = ranks = ranks_of(accelerator)
    number = _number(k, method)
    tried: dict[str, Any] = {}
    if number is None:
        task, like = make_task(store, method, k=1, **about), {"device": ranks.gpu, **how}
        number, tried = on_main(
            accelerator, lambda: _best_k(task, rows, weights, like, folds=folds, seed=seed)
        )
    task = make_task(store, method, k=number, **about)
    seeds_by = "" if seed_scores == "measured" else f", seeds by {seed_scores}"
    made: dict[str, Any] = {"definition": f"{method}({score}{seeds_by})", "source": score}
    made |= {"method": method, "seed_scores": seed_scores, "k": number, "weights": weights}
    made["matched_quantiles"] = method in ON_SIGNALS if match is None else match
    made |= {**how, **tried, "embedding": embedding, "seed": seed}
    values = store.score(score)
    prediction = Prediction(store, name, task, rows, values, readable, made)
    counts = {"seeds": int(prediction.seeds.sum()), "predicted": int(prediction.rest.sum())}
    made["seeds"] = counts["seeds"]
    on_main(accelerator, lambda: refuse_other_prediction(store, name, made))
    trust = _trust(accelerator, prediction, folds=folds, keep_fraction=keep_fraction)
    made |= {**trust, "quality": as_stored(trust["quality"]), "of": store.provenance(score)}
    chosen = prediction.write(accelerator)
    if accelerator.is_main_process:
        cost = Cost.timed(time.perf_counter() - begin, accelerator.num_processes)
        store.finish_score(name, **chosen, cost=cost.to_dict())
    accelerator.wait_for_everyone()
    counts["without_embedding"] = int((~readable).sum())
    shown = on_main(accelerator, lambda: told(store, trust))  # the names of classes are fetched
    result = {"score": name, "method": method, **tried, **counts, **shown, **chosen}
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


def _trust(
    accelerator: Any, prediction: Prediction, *, folds: int, keep_fraction: float
) -> dict[str, Any]:
    """Predict the tried seeds from others, and return what that says of the rest, on every rank."""
    task, made = prediction.task, prediction.made
    with bar("try on seeds", shown=accelerator.is_main_process) as progress:

        def out_of_fold() -> Values:
            cross: dict[str, Any] = {"folds": folds, "seed": made["seed"], "progress": progress}
            return task.out_of_fold(prediction.rows, **cross)

        def drawn(draw: int, draws: int) -> None:
            progress(folds, folds, note=f"intervals, draw {draw} of {draws}")

        # Of what ranks do not make together the main process alone sees the folds.
        folded = out_of_fold() if task.together else None
        how: dict[str, Any] = {"match": made["matched_quantiles"], "keep_fraction": keep_fraction}
        how["progress"] = drawn
        return on_main(
            accelerator,
            lambda: judged(
                prediction.store, task, out_of_fold() if folded is None else folded, **how
            ),
        )


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
