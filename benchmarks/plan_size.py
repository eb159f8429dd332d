"""Seconds and memory of planning an epoch: ImageNet's size, and 1e9 samples for 1,024 ranks.

    python benchmarks/plan_size.py

Each row runs in a process of its own; memory is its peak less what was resident before. Of the
large epoch the steps are dealt to all ranks, and the samples of 64 windows made, entered at the
start, in the middle and near the end. Writes `records/plan_size.json`.
"""

import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.epoch import EpochOrder
from shardsieve.plan import Steps

RECORD = Path(__file__).parent / "records" / "plan_size.json"


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(imagenet), pool.apply(billion)]
    for row in rows:
        print(row)
    about = {"cores": os.cpu_count(), "unit": "seconds, MB"}
    RECORD.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def imagenet() -> dict[str, Any]:
    """Make the whole order of half of 1.28 M samples in 1,282 shards."""
    counts = np.random.default_rng(0).binomial(1000, 0.5, 1282).astype(np.int64)
    resident, start = peak(), time.perf_counter()
    kept = sum(len(shard) for shard, _ in EpochOrder(counts, 0, 0, 16).windows())
    seconds = time.perf_counter() - start
    assert kept == counts.sum()
    return {"samples": 1_282_000, "seconds": round(seconds, 3), "MB": peak() - resident}


def billion() -> dict[str, Any]:
    """Enter the order of half of 1e9 samples in 1e5 shards at three places, for 1,024 ranks."""
    counts = np.random.default_rng(0).binomial(10_000, 0.5, 100_000).astype(np.int64)
    resident, start = peak(), time.perf_counter()
    total = int(counts.sum())
    entered, windows, made = [], 0, 0
    for place in (0, total // 2, total - 10_000_000):
        begin = time.perf_counter()
        for number, (shard, _) in enumerate(EpochOrder(counts, 0, 0, 16).windows(place)):
            if number == 0:
                entered.append(round(time.perf_counter() - begin, 3))
            windows, made = windows + 1, made + len(shard)
            if number == 63:
                break
    steps = Steps(total, 256, 1024)
    assert sum(steps.size(0, rank) for rank in range(1024)) == 256 * 1024
    dealt = 0
    for step in range(len(steps)):
        begin, stop = steps.bounds(step)
        assert steps.share(step, 0)[0] == begin
        assert steps.share(step, 1023)[1] == stop
        dealt += stop - begin
    assert dealt == total
    return {
        "samples": 10**9,
        "ranks": 1024,
        "steps": len(steps),
        "to the first sample": entered,
        "windows made": windows,
        "samples made": made,
        "seconds": round(time.perf_counter() - start, 3),
        "MB": peak() - resident,
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
