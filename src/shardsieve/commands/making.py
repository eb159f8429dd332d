"""Commands that make things: shards, the store, predicted scores."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shardsieve.extrapolate as extrapolators
from shardsieve._errors import MissingScoreError
from shardsieve.commands.progress import bar
from shardsieve.cost import Cost
from shardsieve.extrapolate.knn import KNN
from shardsieve.extrapolate.protocol import Extrapolator
from shardsieve.extrapolate.quality import cross_validate
from shardsieve.pack import pack
from shardsieve.store.create import check, index
from shardsieve.store.store import Store, open_store


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


def make_index(urls: list[str], target: Path, label_member: str) -> dict[str, Any]:
    """Index shards into a store."""
    with bar("index") as progress:
        store = index(urls, target, label_member=label_member, progress=progress)
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
    seed: int = 0,
) -> dict[str, Any]:
    """Predict the score of the rest; seeds keep their own. Stores quality with the score."""
    begin, make = time.perf_counter(), _maker(method, k, weights, seed)
    store = open_store(path)
    values, points = store.score(score), _points(store, embedding)
    readable = np.isfinite(points).all(axis=1)
    is_seed, rest = np.isfinite(values) & readable, ~np.isfinite(values) & readable
    if not is_seed.any():
        raise MissingScoreError(f"score {score!r} has no scored sample; run `shardsieve score`")
    seeds = points[is_seed]
    quality = cross_validate(make, seeds, values[is_seed], folds=folds, seed=seed)
    model = make()
    model.fit(seeds, values[is_seed])
    predicted = values.copy()
    predicted[rest] = model.predict(points[rest])
    made = {
        "definition": f"{method}({score})",
        "source": score,
        "k": k,
        "weights": weights,
        "seeds": int(is_seed.sum()),
        "quality": quality.to_dict(),
        "of": store.provenance(score),
        "embedding": embedding or store.embeddings[0],
    }
    seconds = time.perf_counter() - begin
    made["cost"] = Cost(seconds=seconds, device_seconds=seconds).to_dict()
    store.put_score(name, predicted, provenance=made)
    counts = {"seeds": int(is_seed.sum()), "predicted": int(rest.sum())}
    counts["without_embedding"] = int((~readable).sum())
    return {"score": name, **counts, **quality.to_dict()}


def _maker(method: str, k: int, weights: str, seed: int) -> Callable[[], Extrapolator]:
    if method == "knn":
        return lambda: KNN(k=k, weights=weights)
    if method == "gnn":
        make: type[Extrapolator] = extrapolators.GNN
        return lambda: make(k=k, seed=seed)  # type: ignore[call-arg]
    raise ValueError(f"method must be 'knn' or 'gnn', got {method!r}")


def _points(store: Store, name: str | None) -> Any:
    names = store.embeddings
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        known = ", ".join(names) or "none yet; run `shardsieve embed`"
        raise MissingScoreError(f"embedding must be one of those stored ({known}), got {name!r}")
    return store.embedding(name).astype(np.float32)
