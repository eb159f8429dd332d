"""Commands that make things: shards, the store, predicted scores."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.commands.methods import ON_SIGNALS, make_task
from shardsieve.commands.progress import bar
from shardsieve.commands.trust import judged, told
from shardsieve.cost import Cost
from shardsieve.extrapolate.calibration import match_quantiles
from shardsieve.pack import pack
from shardsieve.store.append import append_shards
from shardsieve.store.create import check, index
from shardsieve.store.store import open_store


def pack_source(source: str, out: Path, **how: Any) -> dict[str, Any]:
    """Write the shards of every split of a source."""
    with bar("pack") as progress:
        splits = pack(source, out, progress=progress, **how)
    rows = [
        {
            "split": s.split,
            "shards": len(s.shards),
            "samples": s.samples,
            "bytes": s.nbytes,
            "pattern": s.pattern,
        }
        for s in splits
    ]
    return {"splits": rows}


def make_index(
    urls: list[str], target: Path, label_member: str, *, append: bool = False
) -> dict[str, Any]:
    """Index shards into a store, or behind those that it holds."""
    make = append_shards if append else index
    with bar("index") as progress:
        store = make(urls, target, label_member=label_member, progress=progress)
    return {
        "store": str(target),
        "shards": store.num_shards,
        "samples": len(store),
        "members": " ".join(store.members),
        "unlabelled": int((store.labels() < 0).sum()),
    }


def check_store(path: Path) -> dict[str, Any]:
    """Compare a store's index with its shards exactly."""
    store = open_store(path, mode="r")
    with bar("check") as progress:
        check(store, progress=progress)
    return {"store": str(path), "shards": store.num_shards, "samples": len(store), "same": True}


def extrapolate_score(
    path: Path,
    score: str,
    name: str,
    embedding: str | None,
    *,
    method: str = "knn",
    k: int = 50,
    weights: str = "exp",
    folds: int = 5,
    match: bool | None = None,
    keep_fraction: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Predict the score of the rest; seeds keep their own. Stores quality with the score.

    Args:
        path: Of the store.
        score: Measured score of the seeds.
        name: Of the score to make.
        embedding: Name; None takes the only one.
        method: One of `METHODS`.
        k: Neighbours.
        weights: Of kNN.
        folds: Of the cross-validation.
        match: Give predictions the distribution of the measured scores; None does so for the
            methods on signals, whose predictions are of another unit than the seeds' scores.
        keep_fraction: Of the keep set to doubt or not.
        seed: Of what is drawn.
    """
    begin, store = time.perf_counter(), open_store(path)
    embedding = store.embedding_name(embedding)
    points = store.embedding(embedding).astype(np.float32)
    readable = np.asarray(np.isfinite(points).all(axis=1))
    task = make_task(
        store,
        method,
        score=score,
        embedding=embedding,
        readable=readable,
        k=k,
        weights=weights,
        seed=seed,
    )
    match = method in ON_SIGNALS if match is None else match
    values = store.score(score)
    is_seed, rest = np.isfinite(values) & readable, ~np.isfinite(values) & readable
    held_out = task.out_of_fold(points, folds=folds, seed=seed)
    trust = judged(store, task, held_out, match=match, keep_fraction=keep_fraction)
    predicted, found = values.copy(), task.predict(points, rest)
    predicted[rest] = match_quantiles(found, values[is_seed]) if match else found
    counts = {"seeds": int(is_seed.sum()), "predicted": int(rest.sum())}
    made = {
        "definition": f"{method}({score})",
        "source": score,
        "method": method,
        "k": k,
        "weights": weights,
        "matched_quantiles": match,
        "seeds": counts["seeds"],
        **trust,
        "of": store.provenance(score),
        "embedding": embedding,
    }
    made["cost"] = Cost.timed(time.perf_counter() - begin).to_dict()
    store.put_score(name, predicted, provenance=made)
    counts["without_embedding"] = int((~readable).sum())
    return {"score": name, "method": method, **counts, **told(trust)}
