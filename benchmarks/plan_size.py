"""Seconds and memory of planning an epoch: ImageNet's size, and 1e9 samples for 1,024 ranks.

    python benchmarks/plan_size.py

Each row runs in a process of its own; memory is its peak less what was resident before. Of the
large epoch the steps are dealt to all ranks, and the samples of 64 windows made, entered at the
start, in the middle and near the end; with 128 locality groups (nodes of 8 ranks) 64 steps. The
last rows tell how many of 1,000 classes a batch of 256 meets when shards are sorted by class.
Writes `records/plan_size.json`.
"""

import json
import multiprocessing
import os
import resource
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.epoch import EpochOrder, default_window
from shardsieve.loaders.mixing import expected_classes
from shardsieve.plan import Steps

RECORD = Path(__file__).parent / "records" / "plan_size.json"


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(imagenet, (shuffle,)) for shuffle in ("window", "global")]
        rows += [pool.apply(billion), pool.apply(nodes)]
        rows += [pool.apply(classes, (kept,)) for kept in (1.0, 0.5, 0.1)]
    for row in rows:
        print(row)
    about = {"cores": os.cpu_count(), "unit": "seconds, MB"}
    RECORD.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def imagenet(shuffle: str) -> dict[str, Any]:
    """Make the whole order of half of 1.28 M samples in 1,282 shards."""
    counts = np.random.default_rng(0).binomial(1000, 0.5, 1282).astype(np.int64)
    resident, start = peak(), time.perf_counter()
    order = EpochOrder(counts, 0, 0, 16, shuffle)
    kept = sum(len(shard) for shard, _ in order.windows())
    seconds = time.perf_counter() - start
    assert kept == counts.sum()
    row = {"samples": 1_282_000, "shuffle": shuffle, "seconds": round(seconds, 3)}
    return {**row, "MB": peak() - resident}


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


def nodes() -> dict[str, Any]:
    """Make 64 steps of half of 1e9 samples for 128 nodes of 8 ranks, each with its own shards."""
    counts = np.random.default_rng(0).binomial(10_000, 0.5, 100_000).astype(np.int64)
    resident, start = peak(), time.perf_counter()
    total, block = int(counts.sum()), 256 * 1024
    order, own, entered = EpochOrder(counts, 0, 0, 16, groups=128, block=block), [], 0.0
    for step, (shard, _) in enumerate(order.windows(total // 2 // block * block)):
        entered = entered or round(time.perf_counter() - start, 3)
        node = np.arange(len(shard)) // (256 * 8)
        own.append(float((shard * 128 // len(counts) == node).mean()))
        if step == 63:
            break
    row: dict[str, Any] = {"samples": 10**9, "ranks": 1024, "groups": 128}
    row |= {"to the first sample": entered, "from own shards": round(float(np.mean(own)), 4)}
    return {**row, "seconds": round(time.perf_counter() - start, 3), "MB": peak() - resident}


def classes(kept: float) -> dict[str, Any]:
    """Count distinct classes in batches of 256 when 1,000 classes lie one after the other."""
    counts = np.random.default_rng(0).binomial(1000, kept, 1282).astype(np.int64)
    total = int(counts.sum())
    row: dict[str, Any] = {"class-sorted, keep": kept}
    auto = default_window(1_282_000, total)
    for name, how in {
        "window 16": {"window": 16},
        f"default window ({auto})": {"window": auto},
        "window 256": {"window": 256},
        "global": {"shuffle": "global"},
    }.items():
        parts = [
            (s * 1000 + o) // 1282 for s, o in islice(EpochOrder(counts, 0, 0, **how).windows(), 40)
        ]
        label = np.concatenate(parts)[: 256 * 64]
        row[name] = round(float(np.mean([len(np.unique(b)) for b in label.reshape(-1, 256)])), 1)
    row["ideal"] = round(expected_classes(np.full(1000, total // 1000), 256), 1)
    return row


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
