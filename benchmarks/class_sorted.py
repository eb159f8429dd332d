"""What do shards that are sorted by class cost, and what do wider windows give back?

    python benchmarks/class_sorted.py WORK [--samples 5000] [--trials 3]

Fashion-MNIST in tars of 100 images, once in a random order and once sorted by class, light network,
8 epochs in batches of 64. `likeness` says how much likelier two samples of a window are of one
class than any two. Writes `records/class_sorted.json`.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import webdataset as wds
from accelerate import Accelerator

import shardsieve as ss
from shardsieve.pack.sources import Split, find_splits
from shardsieve.store.sorting import likeness
from shardsieve.train.config import TrainConfig
from shardsieve.train.subset import train_subset

RECORD = Path(__file__).parent / "records" / "class_sorted.json"
PER_SHARD = 100
WINDOWS = (4, 8, 16, 24, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--trials", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = find_splits("fashion-mnist")
    drawn = np.random.default_rng(0).permutation(len(train.labels))[: options.samples]
    by_class = drawn[np.argsort(train.labels[drawn], kind="stable")]
    mixed = stored(train, drawn, options.work / "mixed")
    ordered = stored(train, by_class, options.work / "sorted")
    unseen = stored(test, np.arange(2_000), options.work / "test")
    rows = [("random", mixed, "window", 16), ("sorted", ordered, "auto", 16)]
    rows += [("sorted", ordered, "window", window) for window in WINDOWS]
    results = []
    for order, store, shuffle, window in rows:
        found = []
        for seed in range(options.trials):
            how: dict[str, Any] = {"epochs": 8, "batch_size": 64, "seed": seed}
            config = TrainConfig(**how, shuffle=shuffle, shuffle_window=window)
            folder = options.work / f"run-{order}-{shuffle}-{window}-{seed}"
            keep = ss.select(store, keep_fraction=1.0)
            how = {"folder": folder, "accelerator": Accelerator(cpu=True), "test": unseen}
            found.append(train_subset(store, keep, config, **how)["accuracy"])
        alike = likeness(store.labels_by_shard(), window)
        row = {"shards": order, "shuffle": shuffle, "window": window, "accuracies": found}
        results.append({**row, "likeness": round(1.0 if shuffle == "auto" else alike, 3)})
        spread = stdev(found) if len(found) > 1 else 0.0
        print(f"| {order} | {shuffle} | {window} | {results[-1]['likeness']:.2f} | ", end="")
        print(f"{100 * mean(found):.1f} ± {100 * spread:.1f} |", flush=True)
    about = {"samples": options.samples, "per_shard": PER_SHARD, "torch": torch.__version__}
    RECORD.write_text(json.dumps({"about": about, "rows": results}, indent=1) + "\n")


def stored(split: Split, rows: Any, folder: Path) -> ss.Store:
    """Return a store of these images in this order."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        with wds.ShardWriter(f"{folder}/s-%06d.tar", maxcount=PER_SHARD, verbose=0) as sink:
            for row in rows.tolist():
                suffix, image = split.read(row)
                sink.write({"__key__": f"{row:06d}", suffix: image, "cls": int(split.labels[row])})
    return ss.index(f"{folder}/s-*.tar", folder / "s.zarr")


if __name__ == "__main__":
    main()
