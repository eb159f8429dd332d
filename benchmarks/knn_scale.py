"""Neighbours of 1.28 M queries x 512 among 128 k and 256 k seeds: speed against measured recall.

    python benchmarks/knn_scale.py [--embeddings FILE.npy] [--seeds 131072 262144]

Searches take turns over blocks of queries; each block's processor time is one sample (other work on
the machine moves it less than the clock's), medians are reported, and the time of 1.28 M is scaled
up from them, which is said in the record. Recall is measured on
the same queries against `IndexFlatL2` (ties count). The points are made: 1,000 classes, 24
directions of variation turned and cut by two layers of random weights (a local intrinsic dimension
of about 28 as nearest neighbours see it), or rows of a file. autofaiss takes part where installed.
"As the paper writes it" is Eq. 6 of arXiv 2506.09010 read plainly, in torch: all distances of a
block, the k smallest, the mean by exp(-d); and, as in the released code, a look through the list of
seeds for every sample, to tell seeds from rest. Writes `records/knn_scale.json`.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from shardsieve.extrapolate.approximate import CodedSearch, choose_search

RECORD = Path(__file__).parent / "records" / "knn_scale.json"
K, DIM, QUERIES = 20, 512, 1_281_167
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


def points(count: int, draw: int) -> NDArray[np.float16]:
    """Return made embeddings (n, 512): not negative, half zero, as after a ReLU and pooling."""
    shape, rng = np.random.default_rng(0), np.random.default_rng(1000 + draw)
    centres = shape.normal(size=(1000, 64)).astype("f4")
    first = shape.normal(size=(64, 256)).astype("f4") / 8
    second = shape.normal(size=(256, DIM)).astype("f4") / 16
    turn = shape.normal(size=(24, 64)).astype("f4") / np.sqrt(24)
    out = np.empty((count, DIM), np.float16)
    for start in range(0, count, 20_000):
        size = min(20_000, count - start)
        inner = 0.7 * centres[rng.integers(0, 1000, size)]
        inner += rng.normal(size=(size, 24)).astype("f4") @ turn
        noise = 0.02 * rng.normal(size=(size, DIM)).astype("f4")
        out[start : start + size] = np.maximum(np.maximum(inner @ first, 0) @ second + noise, 0)
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[131_072, 262_144])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["scan", "ivf"])
    parser.add_argument("--name", default="made")
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"rows": []}
    for count in chosen.seeds:
        row = measure(count, chosen.embeddings, chosen.rounds, chosen.kinds, chosen.name)
        same = [row["points"], row["seeds"]]
        rows = [old for old in record["rows"] if [old["points"], old["seeds"]] != same]
        about = {"threads": THREADS, "k": K, "dim": DIM, "queries scaled to": QUERIES}
        record = {"about": about, "rows": [*rows, row]}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


def measure(
    count: int, file: Path | None, rounds: int, kinds: list[str], name: str
) -> dict[str, Any]:
    if file is None:
        seeds, queries = points(count, 0).astype("f4"), points(8192, 1).astype("f4")
    else:
        rows = np.load(file, mmap_mode="r")
        seeds, queries = rows[:count].astype("f4"), rows[count : count + 8192].astype("f4")
    flat = faiss.IndexFlatL2(seeds.shape[1])
    flat.add(seeds)
    searches: dict[str, tuple[Search, int]] = {
        "IndexFlatL2": (lambda block: flat.search(block, K)[1], 256)
    }
    made: dict[str, dict[str, Any]] = {"IndexFlatL2": {}}
    for kind in kinds:
        begin = time.perf_counter()
        search = choose_search(seeds, queries[:1024], K, kind=kind, recall=0.99)
        built = {"built and chosen, s": round(time.perf_counter() - begin, 1)}
        if search is None:
            made[kind] = {**built, "found": "no setting reaches the recall"}
            continue
        searches[kind] = (lambda block, search=search: found(search, block), 4096)
        made[kind] = {**built, **search.chosen.to_dict()}  # type: ignore[union-attr]
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(seeds)
    searches["scikit-learn, brute"] = (lambda block: brute.kneighbors(block)[1], 64)
    searches["as the paper writes it"] = (as_written(seeds), 64)
    made["as the paper writes it"] = {"telling seeds from rest, processor s (scaled)": told(count)}
    searches |= autofaiss_search(seeds, made)
    row = {"points": name, "seeds": len(seeds), "dimension": intrinsic(flat, queries[:256])}
    truth = flat.search(queries[:512], K)[0][:, -1]
    row["searches"] = timed(searches, made, queries, seeds, truth, rounds)
    row["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(row, indent=1), flush=True)
    return row


def found(search: CodedSearch, block: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.concatenate([ids for _, ids, _ in search(block, K)])


def as_written(seeds: NDArray[np.float32]) -> Search:
    """Return Eq. 6 read plainly: it predicts scores, and returns the neighbours that it took."""
    torch.set_num_threads(THREADS)
    all_seeds = torch.from_numpy(seeds)
    scores = torch.from_numpy(np.random.default_rng(0).random(len(seeds)).astype("f4"))

    def search(block: NDArray[np.float32]) -> NDArray[np.int64]:
        distances, ids = torch.cdist(torch.from_numpy(block), all_seeds).topk(K, largest=False)
        weights = torch.exp(-distances)
        predicted = (weights * scores[ids]).sum(dim=1) / weights.sum(dim=1)
        assert len(predicted) == len(block)
        return ids.numpy()

    return search


def told(seeds: int) -> int:
    """Return the processor seconds of `sample in list` for all samples, from 1,000 of them."""
    listed = np.random.default_rng(0).choice(QUERIES, seeds, replace=False).tolist()
    begin = time.process_time()
    among = sum(one in listed for one in range(0, QUERIES, QUERIES // 1000))
    assert 0 < among < 1000
    return round((time.process_time() - begin) * QUERIES / 1000)


def autofaiss_search(
    seeds: NDArray[np.float32], made: dict[str, dict[str, Any]]
) -> dict[str, tuple[Search, int]]:
    try:
        from autofaiss import build_index
    except ImportError:
        made["autofaiss"] = {"found": "not installed: it asks for numpy below 2"}
        return {}
    begin = time.perf_counter()
    index, about = build_index(
        seeds, metric_type="l2", save_on_disk=False, nb_cores=THREADS, verbose=30
    )
    faiss.omp_set_num_threads(THREADS)
    seconds = round(time.perf_counter() - begin, 1)
    made["autofaiss"] = {"built and chosen, s": seconds, "index": str(about.get("index_key"))}
    return {"autofaiss": (lambda block: index.search(block, K)[1], 1024)}


def timed(
    searches: dict[str, tuple[Search, int]],
    made: dict[str, dict[str, Any]],
    queries: NDArray[np.float32],
    seeds: NDArray[np.float32],
    truth: NDArray[np.float32],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    samples: dict[str, list[float]] = {name: [] for name in searches}
    for turn in range(rounds):
        for name, (search, size) in searches.items():
            start = (turn * size) % (len(queries) - size + 1)
            begin = time.process_time()
            search(queries[start : start + size])
            samples[name].append((time.process_time() - begin) / size)
    exact = statistics.median(samples["IndexFlatL2"])
    rows: dict[str, dict[str, Any]] = {name: dict(about) for name, about in made.items()}
    for name, (search, size) in searches.items():
        ids = np.concatenate([search(queries[s : s + size]) for s in range(0, 512, size)])[:512]
        apart = np.square(seeds[np.maximum(ids, 0)] - queries[:512, None]).sum(axis=2)
        hits = (apart <= truth[:, None] * (1 + 1e-4)) & (ids >= 0)
        each = statistics.median(samples[name])
        row = rows.setdefault(name, {})
        row["recall@20"] = round(float(hits.mean()), 4)
        row["queries per s of processor"] = round(1 / each)
        row["times IndexFlatL2"] = round(exact / each, 2)
        row["1.28 M, processor s (scaled)"] = round(QUERIES * each)
        row["rounds, ms per 1000"] = [round(1e6 * s) for s in samples[name]]
    return rows


def intrinsic(flat: Any, queries: NDArray[np.float32]) -> float:
    """Return the median local intrinsic dimension by 20 neighbours (Levina and Bickel)."""
    squared = np.maximum(flat.search(queries, K)[0], 1e-12)
    logs = 0.5 * np.log(squared[:, :-1] / squared[:, -1:])
    return round(float(np.median(-1 / np.minimum(logs.mean(axis=1), -1e-9))), 1)


if __name__ == "__main__":
    main()
