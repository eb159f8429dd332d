"""Accuracy by the share of the data removed, for static rules and dynamic policies.

    python benchmarks/accuracy_by_share.py OUTDIR --name fashion_mnist [--data fashion-mnist]

Every row trains the light network for the same number of epochs. Measured scores come from a full
run of another seed, extrapolated ones from a run on a fifth of the samples, another fifth for each
seed, with a tenth of it held out for the fused method; it has as many epochs as the full run, as
many steps, or half of these. A short run makes as many steps as the first of these, a half run as
many as the last, but on all samples: they measure every score, and need no prediction. Asked, a
short run's network says once, at its end, what it thinks of every sample; two policies start from
that, too. Finished runs are not done again, so it may be stopped and started at any time; the
record holds what has run so far, and is written after every run. Writes
`records/accuracy_by_share_NAME.json`.
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import shardsieve as ss
from shardsieve.commands.asking import ask_networks
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.packing import pack_source
from shardsieve.commands.training import embed_store
from shardsieve.extrapolate import measure
from shardsieve.policy.named import make_policy
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator
from shardsieve.train.ledger import overhead_of
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.splits import hold_out, matched_epochs, matched_window
from shardsieve.train.subset import train_subset

RECORDS = Path(__file__).parent / "records"
REMOVED = (0.3, 0.5, 0.7)
WINDOW = 5
SEEDS, HELD_OUT, SNAPSHOTS = 0.2, 0.1, 4
MOVING = ("dynamic random", "epsilon-greedy", "UCB", "InfoBatch", "SeTa")
PRIORS = {  # policies whose averages of losses start from what a short run's network says
    "epsilon-greedy from a short run asked": "asked{seed}_cross_entropy",
    "UCB from a short run asked": "asked{seed}_cross_entropy",
}
STATIC = {
    "measured dyn_unc": "full{seed}_dyn_unc",
    "kNN dyn_unc": "knn{seed}_dyn_unc",
    "GNN dyn_unc": "gnn{seed}_dyn_unc",
    "fused dyn_unc": "fused{seed}_dyn_unc",
    "measured el2n": "full{seed}_el2n",
    "kNN el2n": "knn{seed}_el2n",
    "fused el2n": "fused{seed}_el2n",
    "kNN dyn_unc, steps matched": "knn-long{seed}_dyn_unc",
    "fused dyn_unc, steps matched": "fused-long{seed}_dyn_unc",
    "kNN dyn_unc, half the steps": "knn-half{seed}_dyn_unc",
    "fused dyn_unc, half the steps": "fused-half{seed}_dyn_unc",
    "kNN dyn_unc, by class": "knn{seed}_dyn_unc",
    "kNN dyn_unc, steps matched, by class": "knn-long{seed}_dyn_unc",
    "measured el2n, CCS": "full{seed}_el2n",
    "kNN el2n, CCS": "knn{seed}_el2n",
    "fused el2n, CCS": "fused{seed}_el2n",
    "short run's el2n": "short{seed}_el2n",
    "short run's el2n, CCS": "short{seed}_el2n",
    "short run asked, el2n": "asked{seed}_el2n",
    "short run asked, el2n, CCS": "asked{seed}_el2n",
    "short run asked, closeness": "asked{seed}_threshold_closeness",
    "short run asked, closeness, CCS": "asked{seed}_threshold_closeness",
    "half run's dyn_unc": "short-half{seed}_dyn_unc",
    "half run's el2n, CCS": "short-half{seed}_el2n",
}
PREDICTED = re.compile(r"(knn|gnn|fused)(-\w+)?\{seed\}_(\w+)")
SHORT = re.compile(r"(?:short|asked)(-\w+)?\{")
KINDS = {"": 0.0, "-half": 0.5, "-long": 1.0}  # of seed runs: share of the full run's steps
HARD_CUTOFF = {0.7: 0.1}  # CCS on CIFAR-10 (arXiv 2210.15809); none where less is removed


def main() -> None:
    options = parsed()
    config = TrainConfig(
        model=options.model,
        epochs=options.epochs,
        batch_size=options.batch,
        augment=options.augment,
        precision=options.precision,
        channels_last=True,
    )
    train, test = stores(options)
    rows: dict[str, list[dict[str, Any]]] = {}
    sources = STATIC | PRIORS
    targets = [sources[method] for method in methods(options) if method in sources]
    for seed in draws(options) if targets else ():
        scored(train, config, options.out, seed, targets)
    for method, removed, seed in todo(options):
        name = method if method == "full" else f"{method}, {round(100 * removed)} % removed"
        folder = options.out / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
        by = sources[method].format(seed=seed) if method in sources else None
        result = train_subset(
            train,
            chosen(train, method, by, 1 - removed, options.epochs, seed),
            replace(config, seed=seed),
            folder=folder,
            accelerator=make_accelerator(),
            test=test,
            overhead=overhead_of(train, by),
        )
        rows.setdefault(name, []).append(result)
        record(rows, options, train)
    record(rows, options, train, {name: about_score(train, name) for name in predicted(train)})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True, help="of the record")
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist or a folder")
    parser.add_argument("--samples", type=int, default=3_000, help="of the training split")
    parser.add_argument("--tests", type=int, default=4_000, help="of the test split")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to add trials elsewhere")
    parser.add_argument("--removed", type=float, nargs="+", default=[0.5, 0.3, 0.7])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="rows whose names hold one of these"
    )
    parser.add_argument("--augment", default="crop")
    parser.add_argument("--model", default="light", help="resnet18 where a GPU is at hand")
    parser.add_argument("--precision", default="no", help="bf16 likewise")
    return parser.parse_args()


def stores(options: argparse.Namespace) -> tuple[ss.Store, ss.Store]:
    """Pack and index once; the training store holds the first shards, which were shuffled."""
    per_shard = 1000
    if not (options.out / "shards" / "classes.json").is_file():
        pack_source(
            options.data, options.out / "shards", samples_per_shard=per_shard, overwrite=True
        )
    shards = sorted(map(str, (options.out / "shards").glob("train-*.tar")))
    train = ss.index(shards[: options.samples // per_shard], options.out / "train.zarr")
    tests = sorted(map(str, (options.out / "shards").glob("test-*.tar")))
    return train, ss.index(tests[: options.tests // per_shard], options.out / "test.zarr")


def scored(store: ss.Store, config: TrainConfig, out: Path, seed: int, targets: list[str]) -> None:
    """Measure every sample by a full run of another seed, and by short ones; predict the rest."""
    how: dict[str, Any] = {"window": WINDOW, "accelerator": make_accelerator()}
    everything = replace(config, seed=1000 + seed)
    folder, name = out / "scoring", f"full{seed}"
    if any(one.startswith("full") for one in targets):
        score_seeds(store, store.ids(), everything, folder=folder / name, name=name, **how)
    for kind in {match[1] or "" for name in targets if (match := SHORT.match(name))}:
        # After two epochs there are no windows yet.
        epochs = round((KINDS[kind] or SEEDS * (1 - HELD_OUT)) * config.epochs)
        name, run = f"short{kind}{seed}", replace(config, seed=3000 + seed, epochs=epochs)
        window = matched_window(WINDOW, epochs=epochs, full_epochs=config.epochs)
        made = {"window": window, "scores": None if window < epochs else ["el2n"]}
        score_seeds(store, store.ids(), run, folder=folder / name, name=name, **how | made)
        if any(one.startswith(f"asked{kind}{{seed}}") for one in targets):
            embed_store(out / "train.zarr", model=str(folder / name), name=name)
            specs, prefix = ["el2n", "threshold_closeness", "cross_entropy"], f"asked{kind}{seed}"
            ask_networks(out / "train.zarr", name, specs, prefix=prefix)
    predicted_from(store, config, out, seed, [one for one in targets if PREDICTED.match(one)])


def predicted_from(
    store: ss.Store, config: TrainConfig, out: Path, seed: int, targets: list[str]
) -> None:
    """Train on a fifth of the samples, once per kind of seed run, and predict the others."""
    trained, held = hold_out(draw_seeds(store, SEEDS, seed=seed), HELD_OUT)
    how = {"accelerator": make_accelerator(), "held_out": held, "snapshots": SNAPSHOTS}
    sizes = {"full": len(store), "seeds": len(trained), "batch": config.batch_size}
    asked = [match.groups(default="") for name in targets if (match := PREDICTED.match(name))]
    for kind, share in KINDS.items():
        mine = {(method, score) for method, other, score in asked if other == kind}
        if not mine:
            continue
        name, path, epochs = f"seeds{kind}{seed}", out / "train.zarr", config.epochs
        if share:
            epochs = matched_epochs(round(share * epochs), **sizes)
        run = replace(config, seed=2000 + seed, epochs=epochs)
        how["window"] = matched_window(WINDOW, epochs=epochs, full_epochs=config.epochs)
        score_seeds(store, trained, run, folder=out / "scoring" / name, name=name, **how)
        embed_store(path, model=str(out / "scoring" / name), name=name)
        for method, score in sorted(mine):
            target = f"{method}{kind}{seed}_{score}"
            if target not in ss.open_store(path, mode="r").scores:
                extrapolate_score(path, f"{name}_{score}", target, name, method=method)


def todo(options: argparse.Namespace) -> list[tuple[str, float, int]]:
    """Return (method, removed, seed), share by share: the first is soon complete."""
    shares = [
        (name, share, seed)
        for share in options.removed
        for seed in draws(options)
        for name in methods(options)
    ]
    if not any(part in "full" for part in options.only):
        return shares
    return [("full", 0.0, seed) for seed in draws(options)] + shares


def draws(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def methods(options: argparse.Namespace) -> list[str]:
    names = ("static random", *STATIC, *MOVING, *PRIORS)
    return [name for name in names if any(part in name for part in options.only)]


def chosen(
    store: ss.Store, method: str, by: str | None, keep: float, epochs: int, seed: int
) -> Any:
    """Return the keep set or policy that sees, over the run, about this share of the samples."""
    period = max(epochs // 6, 1)
    moving: dict[str, Callable[[], Any]] = {
        "dynamic random": lambda: ss.RandomDynamic(keep, seed=seed),
        "epsilon-greedy": lambda: ss.EpsilonGreedy(keep, period=period, seed=seed, prior=by),
        "UCB": lambda: ss.UCB(keep, period=period, seed=seed, prior=by),
        "InfoBatch": lambda: infobatch(keep, epochs, seed),
        "SeTa": lambda: seta(keep, epochs, seed),
    }
    if (policy := method.partition(" from ")[0]) in moving:
        return moving[policy]()
    if by is not None:
        rule: dict[str, Any] = {"rule": "class_balanced" if "by class" in method else "top"}
        if method.endswith("CCS"):
            cutoff = HARD_CUTOFF.get(round(1 - keep, 2), 0.0)
            rule = {"rule": "ccs", "hard_cutoff": cutoff, "seed": seed}
        return ss.select(ss.open_store(store.path, mode="r"), score=by, keep_fraction=keep, **rule)
    return ss.select(store, rule="random", keep_fraction=keep, seed=seed)


def infobatch(keep: float, epochs: int, seed: int) -> Any:
    """Drop up to 3 in 4 of the lowest losses, as many of them as the share asks for.

    Those that stay weigh up to 4. The first and the last (1 - delta) of the epochs are full, so
    large shares are out of reach: what was really seen stands in the record.
    """
    delta = 0.875
    pruned = sum(0 < epoch < min(epochs * delta, epochs - 1) for epoch in range(epochs))
    wanted = min((1 - keep) * epochs / max(pruned, 1), 0.75)
    quantile, drop = (wanted / 0.5, 0.5) if wanted < 0.45 else (min(wanted / 0.75, 0.99), 0.75)
    how = {"prune_probability": drop, "quantile": quantile, "delta": delta}
    return make_policy("infobatch", epochs=epochs, seed=seed, **how)


def seta(keep: float, epochs: int, seed: int) -> Any:
    """Draw most and slide a window of 3 in 5 groups; the draw makes up for the share."""
    return make_policy("seta", epochs=epochs, seed=seed, ratio=1 - min(keep / 0.6, 1), alpha=0.6)


def record(
    rows: dict[str, list[dict[str, Any]]],
    options: argparse.Namespace,
    store: Any,
    scores: dict[str, Any] | None = None,
) -> None:
    everything = len(store) * options.epochs
    table = [row(name, runs, everything) for name, runs in rows.items()]
    about = {"data": Path(str(options.data)).name, "samples": len(store), "tests": options.tests}
    about |= {"epochs": options.epochs, "measured scores": f"dyn_unc, window {WINDOW}"}
    about |= {"augment": options.augment, "network": options.model, "batch": options.batch}
    about |= {"seed share": SEEDS, "cores": os.cpu_count()}
    path = RECORDS / f"accuracy_by_share_{options.name}.json"
    path.write_text(
        json.dumps({"about": about, "rows": table, "scores": scores or {}}, indent=1) + "\n"
    )
    print(json.dumps(table[-1]), flush=True)


def predicted(store: Any) -> list[str]:
    """Return the names of the scores that `STATIC` keeps by, as far as they are stored."""
    starts = {target.split("{seed}")[0] for target in STATIC.values()}
    stored = ss.open_store(store.path, mode="r").scores
    names = [n.split("_", 1) for n in stored]
    used = [(a, b) for a, b in names if b in ("dyn_unc", "el2n")]
    known = [pair for pair in used if pair[0].rstrip("0123456789") in starts]
    return ["_".join(pair) for pair in known if full_of(pair[0], pair[1]) in stored]


def full_of(start: str, score: str) -> str:
    """Return the full run's score of the same number: of `knn-half2` it is `full2`."""
    return f"full{start[len(start.rstrip('0123456789')) :]}_{score}"


def about_score(store: Any, name: str) -> dict[str, Any]:
    """Return Spearman against the full run of the same number, and what half keeps per class."""
    store = ss.open_store(store.path, mode="r")
    start, score = name.split("_", 1)
    truth = store.score(full_of(start, score))
    kept = store.rows(ss.select(store, score=name, keep_fraction=0.5).ids())
    agreed = measure(truth, store.score(name)).spearman
    return {"spearman": round(agreed, 3), "half": np.bincount(store.labels()[kept]).tolist()}


def row(name: str, runs: list[dict[str, Any]], everything: int) -> dict[str, Any]:
    accuracies = [100 * run["accuracy"] for run in runs]
    total, saved = ([run["cost"][name] for run in runs] for name in ("total", "saved"))
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
        "samples saved, scoring counted": mean_of(saved, "trained_samples_fraction"),
        "seconds saved, scoring counted": mean_of(saved, "device_seconds_fraction"),
    }


def mean_of(saved: list[dict[str, Any]], name: str) -> float:
    return round(mean(one[name] for one in saved), 3)


if __name__ == "__main__":
    main()
