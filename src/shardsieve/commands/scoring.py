"""Commands that score without training a network: from dynamics, from embeddings, unsupervised."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.commands.progress import bar
from shardsieve.cost import Cost
from shardsieve.extrapolate.knn import neighbours
from shardsieve.scores import (
    d2,
    k_means,
    moderate_distance,
    oriented,
    prototypicality,
    semdedup,
)
from shardsieve.scores.embedded import finite_rows, rows_by_value
from shardsieve.scores.inputs import one_of, whole_number
from shardsieve.scores.recorded import defined, name_of, parsed
from shardsieve.scores.table import said_of
from shardsieve.store.store import Store, open_store
from shardsieve.strata import without_hardest
from shardsieve.train.labels import count_pseudo_classes
from shardsieve.train.launch import make_accelerator, on_main
from shardsieve.train.ledger import MADE_FROM
from shardsieve.train.machines import open_together
from shardsieve.train.seeding import draw_seeds
from shardsieve.train.seedscores import scores_from_dynamics
from shardsieve.train.turtle import TurtleConfig, score_unsupervised

Points = NDArray[np.float16]
_SOURCES = ("score", "difficulty")  # options that name a stored score

# Scores of `--from-embedding`: their options with types.
EMBEDDED: dict[str, dict[str, type]] = {
    "prototypicality": {"clusters": int, "metric": str, "first": str, "seed": int},
    "moderate": {},
    "semdedup": {"clusters": int, "first": str, "seed": int},
    "d2": {
        "score": str,
        "k": int,
        "gamma": float,
        "absolute": bool,
        "per_class": bool,
        "hard_cutoff": float,
        "difficulty": str,
        "search": str,
    },
}


PARADIGMS = ("supervised", "adversarial", "unsupervised")


def default_name(paradigm: str) -> str:
    """Return the name of a paradigm's run.

    Raises:
        ValueError: If there is no such paradigm.
    """
    one_of("paradigm", paradigm, PARADIGMS)
    return "seed" if paradigm == "supervised" else paradigm


def score_from_dynamics(
    path: Path, run: str, specs: Sequence[str] | None, *, window: int | None
) -> dict[str, Any]:
    """Store further scores of a recorded run; nothing is trained."""
    store = open_store(path)
    with bar("scores") as progress:
        made = scores_from_dynamics(store, run, specs, window=window, progress=progress)
    return {"run": run, "scores": made}


def score_unsupervised_store(
    path: Path,
    *,
    seed_fraction: float,
    per_class: bool,
    embedding: str | None,
    classes: int | None = None,
    seed: int,
    name: str,
    window: int,
    scores: Sequence[str] | None,
    **settings: Any,
) -> dict[str, Any]:
    """Score the seeds by TURTLE on stored embeddings; the main process does it alone.

    Args:
        path: Of the store.
        seed_fraction: Of the samples.
        per_class: Draw the same share of every class of the labels.
        embedding: Name; may be left out when there is just one.
        classes: Pseudo-classes to find; None takes as many as there are labels.
        seed: Of the draw and of TURTLE.
        name: Of the run and of the pseudo-labels.
        window: J of the windowed scores.
        scores: As in `score_unsupervised`.
        **settings: Further ones of `TurtleConfig`.
    """
    accelerator = make_accelerator()
    store = open_together(accelerator, path)
    embedding = store.embedding_name(embedding)
    config = TurtleConfig(count_pseudo_classes(store, classes), seed=seed, **settings)

    def scored() -> dict[str, Any]:
        seeds = draw_seeds(store, seed_fraction, seed=seed, per_class=per_class)
        how: dict[str, Any] = {"embedding": embedding, "name": name, "window": window}
        with bar("score") as progress:
            result = score_unsupervised(
                store, seeds, config, scores=scores, progress=progress, **how
            )
        made = [s for s in store.scores if s.startswith(f"{name}_")]
        return {"run": name, "pseudo_labels": name, **result, "scores": made}

    return on_main(accelerator, scored)


def score_from_embedding(
    path: Path, embedding: str | None, specs: Sequence[str] | None, *, prefix: str | None
) -> dict[str, Any]:
    """Store scores of every sample that has an embedding; nothing is trained or extrapolated.

    Args:
        path: Of the store.
        embedding: Name; may be left out when there is just one.
        specs: `prototypicality:clusters=100` (`:first=near` keeps the typical ones, as suits little
            data), `moderate`, `semdedup`, `d2:score=NAME` (as published for little data:
            `:per_class=true:hard_cutoff=0.4:difficulty=AUM`, which puts the hardest behind all
            others); by default the first three, without labels but `moderate`.
        prefix: Of the stored names, with `_` behind it.
    """
    store = open_store(path)
    embedding = store.embedding_name(embedding)
    points, rows = finite_rows(store.embedding(embedding))
    unlabelled = int((store.labels()[rows] < 0).sum())
    possible = [kind for kind in list(EMBEDDED)[:3] if not (unlabelled and kind == "moderate")]
    wanted = [(spec, *parsed(spec, EMBEDDED)) for spec in specs or possible]
    for spec, kind, options in wanted:
        if unlabelled and (kind == "moderate" or options.get("per_class")):
            raise MissingScoreError(
                f"labels must be known for {spec!r}, got {unlabelled} of {len(rows)} samples "
                "without; leave it out of --scores, or index again with their --label-member"
            )
    names = list[str]()
    with bar("score") as progress:
        for spec, kind, options in wanted:

            def told(doing: str, kind: str = kind) -> None:
                progress(len(names), len(wanted), note=f"{kind}{doing}")

            told("")
            begin, values = time.perf_counter(), np.full(len(store), np.nan)
            values[rows], how = _embedded(store, kind, points, rows, options, told)
            definition = defined(kind, {"embedding": embedding, **how})
            made: dict[str, Any] = {"definition": definition, "parameters": how}
            made["embedding"] = embedding
            made |= said_of("moderate_distance" if kind == "moderate" else kind)
            made["cost"] = Cost.timed(time.perf_counter() - begin).to_dict()
            sources = {use: store.provenance(how[use]) for use in _SOURCES if use in how}
            made |= {MADE_FROM: sources} if sources else {}
            made["measured"] = all(one.get("measured", "of" not in one) for one in sources.values())
            names.append(f"{prefix}_{name_of(spec)}" if prefix else name_of(spec))
            store.put_score(names[-1], values, provenance=made)
            progress(len(names), len(wanted))
    return {"embedding": embedding, "scored": len(rows), "scores": names}


def _embedded(
    store: Store,
    kind: str,
    points: Points,
    rows: NDArray[np.int64],
    options: dict[str, Any],
    told: Callable[[str], None],
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Return oriented values and the parameters that were used; `told` hears what is being done."""
    if kind == "moderate":
        return oriented("moderate_distance", moderate_distance(points, store.labels()[rows])), {}
    if kind == "d2":
        return _d2(store, points, rows, options)
    clusters = max(1, len(points) // 1000 if kind == "semdedup" else round(len(points) ** 0.5))
    how = {"clusters": clusters, "seed": 0, **options}
    finding: dict[str, Any] = {"seed": how["seed"]}
    finding["progress"] = lambda done, rounds: told(f": k-means, round {done} of {rounds}")
    if kind == "semdedup":
        centres = k_means(points, how["clusters"], **finding)
        told(": similarities")
        how = {"first": "far", **how}
        return oriented(kind, semdedup(points, centres, how["first"])), how
    how = {"metric": "cosine", **how}
    one_of("metric", how["metric"], ("cosine", "euclidean"))
    one_of("first", how.get("first", "far"), ("far", "near"))
    spherical = how["metric"] == "cosine"
    centres = k_means(points, how["clusters"], **finding, spherical=spherical)
    told(": distances")
    values = oriented(kind, prototypicality(points, centres, how["metric"]))
    return -values if how.get("first") == "near" else values, how


def _d2(
    store: Store, points: Points, rows: NDArray[np.int64], options: dict[str, Any]
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    how = {"k": 5, "gamma": 0.1, "absolute": False, "per_class": False, "search": "auto", **options}
    if "score" not in how:
        raise MissingScoreError("score must name a stored score for d2: `d2:score=NAME`, got none")
    whole_number("k", how["k"], 1)
    values = _whole(store, how["score"], rows)
    hardness = _whole(store, how["difficulty"], rows) if "difficulty" in how else values
    left = without_hardest(hardness, how.get("hard_cutoff", 0.0))
    groups = store.labels()[rows] if how["per_class"] else np.zeros(len(rows), dtype=np.int64)
    ids, distances = _within_groups(points[left], groups[left], how["k"], how["search"])
    order = np.zeros(len(rows))  # of those that are cut: behind all others
    order[left] = d2(values[left], ids, distances, how["gamma"], absolute=how["absolute"])
    return order, how


def _whole(store: Store, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    values = store.score(name)[rows].astype(np.float64)
    if not np.isfinite(values).all():
        raise MissingScoreError(
            f"score {name!r} must be there for every sample with an embedding, "
            f"got {int((~np.isfinite(values)).sum())} without; extrapolate it first"
        )
    return values


def _within_groups(
    points: Points, groups: NDArray[np.int64], k: int, search: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the k nearest rows of the same group; a smaller group's rows name themselves again.

    With `auto` large groups are searched by codes, as for `KNN`.
    """
    # A sample is its own nearest neighbour, hence k + 1; naming oneself makes no edge.
    ids = np.repeat(np.arange(len(points))[:, None], k + 1, axis=1)
    distances = np.zeros(ids.shape)
    for own in rows_by_value(groups):
        found, apart = neighbours(points[own], points[own], k + 1, search=search)
        ids[own, : found.shape[1]] = own[found]
        distances[own, : found.shape[1]] = apart
    return ids, distances
