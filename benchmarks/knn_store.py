"""A score of all of 1.28 M x 512 from 128 k and 256 k seeds: `shardsieve extrapolate` on a store.

    python benchmarks/knn_store.py FOLDER [--seeds 0.1 0.2] [--shards 1282]

The store has 1,282 shards of 1,000 samples with made embeddings (as in knn_scale.py) and a score
that is smooth in them, with noise. The command runs as a process of its own: its seconds of wall
time and of processor, its peak memory, the search it chose and the recall it measured are written
to `records/knn_store.json`. FOLDER takes 4 GB; what is made there is used again.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_shards
from knn_scale import DIM, points

import shardsieve as ss
from shardsieve.train.seeding import draw_seeds

RECORD = Path(__file__).parent / "records" / "knn_store.json"
ROWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--shards", type=int, default=1282)
    options = parser.parse_args()
    store = made(options.folder, options.shards)
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"rows": []}
    for fraction in options.seeds:
        row = extrapolated(store, fraction)
        print(json.dumps(row), flush=True)
        same = (row["samples"], row["seeds"])
        rows = [old for old in record["rows"] if (old["samples"], old["seeds"]) != same]
        record = {"about": {"dim": DIM, "k": 20, "folds": 5}, "rows": [*rows, row]}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


def made(folder: Path, shards: int) -> ss.Store:
    """Return the store of so many shards, with embedding `e` and score `smooth`."""
    if not (folder / "shards").is_dir():
        (folder / "shards").mkdir(parents=True)
        write_shards(
            folder / "shards",
            (b"x" for _ in range(shards * ROWS)),
            shards=shards,
            samples=shards * ROWS,
        )
    urls = sorted(map(str, (folder / "shards").glob("*.tar")))
    store = ss.index(urls, folder / "s.zarr")
    array = store.embedding_array("e", DIM)
    direction = np.random.default_rng(7).normal(size=DIM).astype("f4") / np.sqrt(DIM)
    smooth = np.empty(len(store))
    for shard in range(store.num_shards):
        here = slice(shard * ROWS, shard * ROWS + ROWS)
        if np.isnan(np.asarray(array[shard, :1])).any():
            array[shard, :ROWS] = points(ROWS, shard)
        smooth[here] = np.tanh(np.asarray(array[shard, :ROWS]).astype("f4") @ direction)
    smooth += 0.3 * smooth.std() * np.random.default_rng(8).normal(size=len(store))
    store.put_score("smooth", smooth)
    return store


def extrapolated(store: ss.Store, fraction: float) -> dict[str, Any]:
    """Run the command on seeds of this fraction; return what it took and found."""
    seeds, name = draw_seeds(store, fraction), f"seeds{round(100 * fraction)}"
    values = np.full(len(store), np.nan)
    values[store.rows(seeds)] = store.score("smooth")[store.rows(seeds)]
    store.put_score(name, values)
    out = store.path.parent / "found.json"
    target = f"{name}_{time.time_ns()}"
    command = [
        sys.executable,
        "-m",
        "shardsieve",
        "extrapolate",
        "--store",
        str(store.path),
        "--score",
        name,
    ]
    command += ["--name", target, "--embedding", "e", "--k", "20", "--json"]
    begin = time.perf_counter()
    with out.open("w") as file:
        child = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        )
        _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"extrapolate ended with status {status}")
    seconds, found = time.perf_counter() - begin, json.loads(out.read_text())
    return {
        "samples": len(store),
        "seeds": len(seeds),
        "wall, s": round(seconds, 1),
        "processor, s": round(used.ru_utime + used.ru_stime, 1),
        "peak MB": used.ru_maxrss // 1024,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "found by": found["found_by"],
        "held-out Spearman": round(found["spearman"], 3),
        "against the truth, Pearson": against(store, target, values),
    }


def against(store: ss.Store, target: str, seeds: Any) -> float:
    """Return the correlation of the predictions with what was put in, over the rest."""
    rest = np.isnan(seeds)
    predicted = ss.open_store(store.path, mode="r").score(target)[rest]
    return round(float(np.corrcoef(predicted, store.score("smooth")[rest])[0, 1]), 3)


if __name__ == "__main__":
    main()
