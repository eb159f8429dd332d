"""Seconds to stream half of a data set from an object store, against whole shards by webdataset.

    python benchmarks/object_store.py [--megabytes 300] [--workers 2] [--rounds 3]

A server in a process of its own gives ranges with 30 ms to the first byte and 90 MB/s per
connection. webdataset streams whole shards, one connection per worker; ours reads planned
ranges. Same workers, alternating, medians. Writes `records/object_store.json`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import webdataset as wds
from cold_bytes import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
RECORD = Path(__file__).parent / "records" / "object_store.json"
KEEP = (0.1, 0.3, 0.5, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_shards(Path(folder), options.megabytes / 1000)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(folder, theirs))
        server.start()
        try:
            root = ours.recv()
            urls = [f"{root}/{Path(path).name}" for path in paths]
            store = ss.index(urls, Path(folder) / "s.zarr")
            rows = [measure(store, urls, keep, options) for keep in KEEP]
        finally:
            ours.send("stop")
            server.join(30)
    for row in rows:
        print(row)
    about = {"cores": os.cpu_count(), "samples": len(store), "first_byte_seconds": 0.03}
    about |= {"bytes_per_second_and_connection": 90e6, **vars(options)}
    RECORD.write_text(
        json.dumps({"about": about, "unit": "seconds", "rows": rows}, indent=1) + "\n"
    )


def serve(folder: str, pipe: Connection) -> None:
    from servers import range_server

    with range_server(folder, latency=0.03, bandwidth=90e6) as server:
        pipe.send(server.url)
        pipe.recv()


def measure(
    store: ss.Store, urls: list[str], fraction: float, options: argparse.Namespace
) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    seconds: dict[str, list[float]] = {"shardsieve": [], "webdataset": []}
    amplification = 1.0
    for _ in range(options.rounds):
        start = time.perf_counter()
        data = ss.ShardDataset(store)
        sampler = ss.PrunedShardSampler(store, keep_set=keep)
        count = sum(map(len, DataLoader(data, 64, sampler=sampler, **_how(options))))
        seconds["shardsieve"].append(time.perf_counter() - start)
        amplification = data.ledger.total.amplification
        assert count == len(keep)
        start = time.perf_counter()
        whole = wds.WebDataset([f"pipe:curl -s {u}" for u in urls], shardshuffle=False)
        count = sum(map(len, DataLoader(whole, 64, **_how(options))))
        seconds["webdataset"].append(time.perf_counter() - start)
        assert count == len(store)
    row: dict[str, Any] = {name: round(statistics.median(s), 2) for name, s in seconds.items()}
    row["ratio"] = round(row["shardsieve"] / row["webdataset"], 2)
    return {"keep": fraction, **row, "amplification": round(amplification, 2)}


def _how(options: argparse.Namespace) -> dict[str, Any]:
    return {"num_workers": options.workers, "collate_fn": len_only}


def len_only(samples: list[Any]) -> list[int]:
    """Keep pictures out of the pipe between worker and parent."""
    return [len(samples)] * len(samples)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
