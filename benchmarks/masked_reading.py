"""Samples per second of masked tar reading: hot cache, no decode, one process.

    python benchmarks/masked_reading.py [--samples 20000] [--rounds 5]

Ours against webdataset (`select` on the same samples) and a bare `os.pread` loop over the same
ranges, alternating in one run. A round is an epoch of one pipeline object, the
median is shown; the first epoch also loads the keys. Writes `records/masked_reading.json`.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

import shardsieve as ss

RECORD = Path(__file__).parent / "records" / "masked_reading.json"
KEEP = (0.1, 0.3, 0.5, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = write_shards(Path(folder), options.samples)
        store = ss.index(urls, Path(folder) / "s.zarr")
        rows = [measure(store, urls, fraction, options.rounds) for fraction in KEEP]
    for row in rows:
        print(row)
    about = {"cores": os.cpu_count(), "python": platform.python_version()}
    about |= {"webdataset": wds.__version__, "samples": options.samples, "rounds": options.rounds}
    RECORD.write_text(
        json.dumps({"about": about, "unit": "kept samples/s", "rows": rows}, indent=1)
    )


def write_shards(folder: Path, samples: int, shards: int = 20) -> list[str]:
    draw = np.random.default_rng(0)
    urls = []
    for shard in range(shards):
        path = folder / f"s-{shard:03d}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(samples // shards):
                image = draw.bytes(int(draw.integers(4_000, 16_000)))
                for name, data in (("jpg", image), ("cls", b"7")):
                    info = tarfile.TarInfo(f"{shard:03d}{number:06d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        urls.append(str(path))
    return urls


def measure(store: ss.Store, urls: list[str], fraction: float, rounds: int) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    ids = keep.ids()
    wanted = kept_keys(store, ids)
    pruned, dataset = ss.prune(pipeline(urls), store, keep_set=keep), ss.ShardDataset(store)
    readers: dict[str, Callable[[], int]] = {
        "prune": lambda: count(pruned),
        "dataset": lambda: through_dataset(dataset, ids),
        "select": lambda: count(pipeline(urls).select(lambda s: s["__key__"] in wanted)),
        "pread": lambda: bare(store, ids),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.perf_counter()
            got = read()
            seconds[name].append(time.perf_counter() - start)
            assert got == len(ids), (name, got, len(ids))
    rate = {name: round(len(ids) / statistics.median(s)) for name, s in seconds.items()}
    ratios = {
        "prune / select": round(rate["prune"] / rate["select"], 2),
        "dataset / select": round(rate["dataset"] / rate["select"], 2),
        "dataset / pread": round(rate["dataset"] / rate["pread"], 2),
    }
    return {"keep": fraction, **rate, **ratios}


def pipeline(urls: list[str]) -> wds.WebDataset:
    return wds.WebDataset(urls, shardshuffle=False)


def kept_keys(store: ss.Store, ids: np.ndarray[Any, Any]) -> set[str]:
    shards, positions = np.divmod(ids, store.rows_per_shard)
    names = [np.array(store.keys(shard)) for shard in range(store.num_shards)]
    return {str(names[s][p]) for s, p in zip(shards, positions, strict=True)}


def count(samples: Any) -> int:
    return sum(1 for _ in samples)


def through_dataset(dataset: ss.ShardDataset, ids: np.ndarray[Any, Any]) -> int:
    got = 0
    for start in range(0, len(ids), 256):
        got += len(dataset.__getitems__(ids[start : start + 256].tolist()))
    return got


def bare(store: ss.Store, ids: np.ndarray[Any, Any]) -> int:
    shards, positions = np.divmod(ids, store.rows_per_shard)
    ranges = store.ranges[shards, positions].tolist()
    files = [os.open(url, os.O_RDONLY) for url in store.urls]
    got = 0
    for shard, (offset, length) in zip(shards.tolist(), ranges, strict=True):
        got += len(os.pread(files[shard], length, offset)) > 0
    for file in files:
        os.close(file)
    return got


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
