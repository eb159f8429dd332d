"""Accuracy by the share of the data removed, for static rules and dynamic policies.

    python benchmarks/accuracy_by_share.py OUTDIR [--data fashion-mnist] [--samples 3000]

Every row trains the light network for the same number of epochs. Finished runs are not done again,
so it may be stopped and started at any time; the record holds what has run so far, and is written
after every run. Writes `records/accuracy_by_share.json`.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.policy.named import make_policy
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator
from shardsieve.train.ledger import overhead_of
from shardsieve.train.seeding import score_seeds
from shardsieve.train.subset import train_subset

RECORD = Path(__file__).parent / "records" / "accuracy_by_share.json"
REMOVED = (0.3, 0.5, 0.7)
WINDOW = 5
METHODS = (
    "full",
    "static random",
    "dynamic random",
    "epsilon-greedy",
    "UCB",
    "InfoBatch",
    "SeTa",
    "static measured scores",
)


def main() -> None:
    options = parsed()
    config = TrainConfig(epochs=options.epochs, batch_size=32, augment=options.augment)
    train, test = stores(options)
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        scored(train, replace(config, seed=seed), options.out, seed)
        for method, removed in todo():
            name = method if method == "full" else f"{method}, {round(100 * removed)} % removed"
            folder = options.out / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            keep = chosen(train, method, 1 - removed, options.epochs, seed)
            by = f"full{seed}_dyn_unc" if method == "static measured scores" else None
            result = train_subset(
                train,
                keep,
                replace(config, seed=seed),
                folder=folder,
                accelerator=make_accelerator(),
                test=test,
                overhead=overhead_of(train, by),
            )
            rows.setdefault(name, []).append(result)
            record(rows, options, train)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist or a folder")
    parser.add_argument("--samples", type=int, default=3_000, help="of the training split")
    parser.add_argument("--tests", type=int, default=4_000, help="of the test split")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--augment", default="crop")
    return parser.parse_args()


def stores(options: argparse.Namespace) -> tuple[ss.Store, ss.Store]:
    """Pack and index once; the training store holds the first shards, which were shuffled."""
    per_shard = 1000
    if not (options.out / "shards" / "classes.json").is_file():
        pack(options.data, options.out / "shards", samples_per_shard=per_shard, overwrite=True)
    shards = sorted(map(str, (options.out / "shards").glob("train-*.tar")))
    train = ss.index(shards[: options.samples // per_shard], options.out / "train.zarr")
    tests = sorted(map(str, (options.out / "shards").glob("test-*.tar")))
    return train, ss.index(tests[: options.tests // per_shard], options.out / "test.zarr")


def scored(store: ss.Store, config: TrainConfig, out: Path, seed: int) -> None:
    """Measure every sample's Dynamic Uncertainty by a full run of another seed."""
    score_seeds(
        store,
        store.ids(),
        replace(config, seed=1000 + seed),
        folder=out / "scoring" / str(seed),
        name=f"full{seed}",
        window=WINDOW,
        accelerator=make_accelerator(),
    )


def todo() -> list[tuple[str, float]]:
    """Return (method, removed), half removed first: a short run shows that much."""
    order = sorted(REMOVED, key=lambda removed: abs(removed - 0.5))
    return [("full", 0.0), *((m, removed) for removed in order for m in METHODS[1:])]


def chosen(store: ss.Store, method: str, keep: float, epochs: int, seed: int) -> Any:
    """Return the keep set or policy that sees, over the run, about this share of the samples."""
    period = max(epochs // 6, 1)
    moving: dict[str, Callable[[], Any]] = {
        "dynamic random": lambda: ss.RandomDynamic(keep, seed=seed),
        "epsilon-greedy": lambda: ss.EpsilonGreedy(keep, period=period, seed=seed),
        "UCB": lambda: ss.UCB(keep, period=period, seed=seed),
        "InfoBatch": lambda: infobatch(keep, epochs, seed),
        "SeTa": lambda: seta(keep, epochs, seed),
    }
    if method in moving:
        return moving[method]()
    if method == "static measured scores":
        return ss.select(store, score=f"full{seed}_dyn_unc", keep_fraction=keep)
    return ss.select(store, rule="random", keep_fraction=keep, seed=seed)


def infobatch(keep: float, epochs: int, seed: int) -> Any:
    """Drop with the probability that would reach the share if 3 in 4 losses are below the mean.

    The first and the last (1 - delta) of the epochs are full, so large shares are out of reach:
    what was really seen stands in the record.
    """
    delta = 0.875
    pruned = sum(0 < epoch < min(epochs * delta, epochs - 1) for epoch in range(epochs))
    wanted = (1 - keep) * epochs / max(pruned, 1) / 0.75
    return make_policy(
        "infobatch", epochs=epochs, seed=seed, prune_probability=min(wanted, 0.95), delta=delta
    )


def seta(keep: float, epochs: int, seed: int) -> Any:
    """Draw most and slide a window of 3 in 5 groups; the draw makes up for the share."""
    return make_policy("seta", epochs=epochs, seed=seed, ratio=1 - min(keep / 0.6, 1), alpha=0.6)


def record(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace, store: Any) -> None:
    everything = len(store) * options.epochs
    table = [row(name, runs, everything) for name, runs in rows.items()]
    about = {"data": Path(str(options.data)).name, "samples": len(store), "tests": options.tests}
    about |= {"epochs": options.epochs, "measured scores": f"dyn_unc, window {WINDOW}"}
    about |= {"augment": options.augment, "network": "light", "batch": 32, "cores": os.cpu_count()}
    RECORD.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")
    print(json.dumps(table[-1]), flush=True)


def row(name: str, runs: list[dict[str, Any]], everything: int) -> dict[str, Any]:
    accuracies = [100 * run["accuracy"] for run in runs]
    total = [run["cost"]["total"] for run in runs]
    return {
        "trained on": name,
        "runs": len(runs),
        "accuracy %": round(mean(accuracies), 2),
        "spread": round(stdev(accuracies), 2) if len(runs) > 1 else None,
        "accuracies": [round(a, 2) for a in accuracies],
        "share of samples seen": round(
            float(np.mean([r["samples"] for r in runs])) / everything, 3
        ),
        "training seconds": round(mean(r["phases"]["train"]["seconds"] for r in runs), 1),
        "seconds with scoring": round(mean(cost["seconds"] for cost in total), 1),
    }


if __name__ == "__main__":
    main()
