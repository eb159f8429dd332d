"""Train on all data and on halves: random, by measured scores, by extrapolated scores.

Every training has its own seed; one that keeps by extrapolated scores has its own seed run, too.
Writes OUTDIR/result.json and OUTDIR/report.html. Killed and started again, it goes on.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from shardsieve import Store, open_store, select
from shardsieve._errors import ShardsieveError
from shardsieve.cli import run
from shardsieve.commands.building import build_store
from shardsieve.commands.classes import class_names
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.making import make_index
from shardsieve.commands.packing import pack_source
from shardsieve.commands.progress import bar
from shardsieve.commands.training import embed_store, score_store
from shardsieve.extrapolate.quality import measure
from shardsieve.report import write_report
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator
from shardsieve.train.seeding import score_seeds
from shardsieve.train.subset import train_subset

SCORE, WINDOW, SEED_FRACTION = "dyn_unc", 10, 0.2
RULES: dict[str, dict[str, Any]] = {
    "full data": {"keep_fraction": 1.0},
    "random half": {"keep_fraction": 0.5, "rule": "random"},
    "half by measured scores": {"keep_fraction": 0.5, "score": f"full_{SCORE}"},
    "half by extrapolated scores": {"keep_fraction": 0.5, "score": SCORE},
    "the same, stratified (CCS)": {"keep_fraction": 0.5, "score": SCORE, "rule": "ccs"},
}
SAY = Console(stderr=True)


def main() -> None:
    """Run the demo."""
    options = parsed(sys.argv[1:])
    start = time.perf_counter()
    out: Path = options.out
    config = TrainConfig(
        epochs=options.epochs, batch_size=options.batch_size, size=options.size, augment="crop"
    )
    train, test, packed = shards(options.data, options.to, out)
    scoring = replace(config, epochs=options.seed_epochs or config.epochs)
    built = build_store([train], out / "train.zarr", scoring, seed_fraction=SEED_FRACTION)
    make_index([test], out / "test.zarr", "cls")
    stores = open_store(out / "train.zarr"), open_store(out / "test.zarr", mode="r")
    measured = measure_everything(stores[0], config, out)
    for seed in range(1, options.seeds):
        extrapolate_again(out / "train.zarr", replace(scoring, seed=seed), f"seed{seed}")
    stores = open_store(out / "train.zarr"), stores[1]
    runs = {name: train_on(*stores, name, config, options.seeds, out) for name in RULES}
    rest = np.isnan(stores[0].score(f"seed_{SCORE}"))
    truth, guess = stores[0].score(f"full_{SCORE}")[rest], stores[0].score(SCORE)[rest]
    result = {
        "data": str(options.data),
        "pack": packed,
        "seed_fraction": SEED_FRACTION,
        "epochs": {"seeds": scoring.epochs, "full": config.epochs},
        "scoring": {"seeds": cost(built["score"]), "everything": cost(measured)},
        "held_out_over_seeds": built["extrapolate"][SCORE],
        "extrapolated_against_full_run": measure(truth, guess).to_dict(),
        "runs": runs,
        "wall_seconds": round(time.perf_counter() - start, 1),
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    rows = [row(name, run) for name, run in runs.items()]
    classes = class_names(stores[0])
    how: dict[str, Any] = {"score": SCORE, "reference": f"full_{SCORE}", "classes": classes}
    write_report(stores[0], out / "report.html", **how, table=rows)
    show(rows, result, out)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path("demo-out"), metavar="OUTDIR")
    parser.add_argument(
        "--data", default="digits", help="digits, fashion-mnist, a folder, or DIR/train.beton"
    )
    parser.add_argument("--to", default="tar", help="tar, or beton to train through FFCV")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of every training")
    parser.add_argument(
        "--seed-epochs", type=int, help="epochs of the seed run; by default --epochs"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="samples per step")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--size", type=int, default=None, help="pixels per side")
    return parser.parse_args(arguments)


def shards(data: str, to: str, out: Path) -> tuple[str, str, dict[str, Any]]:
    """Pack the data unless that is done; return the patterns of train and test.

    A `.beton` is used as it is, with the `test.beton` beside it.
    """
    if data.endswith(".beton"):
        test = Path(data).with_name("test.beton")
        if not test.is_file():
            raise ShardsieveError(f"{data} must have test.beton beside it; pack one")
        return data, str(test), {"splits": []}
    folder = out / ("shards" if to == "tar" else "betons")
    if not (folder / "classes.json").is_file():
        start = time.perf_counter()
        how: dict[str, Any] = {"samples_per_shard": 500, "overwrite": True, "to": to}
        packed = pack_source(data, folder, test_fraction=0.2, **how)
        packed["seconds"] = round(time.perf_counter() - start, 2)
        (out / "pack.json").write_text(json.dumps(packed))
    packed = json.loads((out / "pack.json").read_text())
    patterns = {split["split"]: split["pattern"] for split in packed["splits"]}
    if "test" not in patterns:
        raise ShardsieveError(f"{data} must have a test split, got {', '.join(patterns)}")
    return patterns["train"], patterns["test"], packed


def measure_everything(store: Store, config: TrainConfig, out: Path) -> dict[str, Any]:
    """Score every sample by a full run: what extrapolation is there to avoid."""
    with bar("measure everything") as progress:
        return score_seeds(
            store,
            store.ids(),
            config,
            folder=out / "train.zarr.runs" / "full",
            name="full",
            window=WINDOW,
            accelerator=make_accelerator(),
            progress=progress,
        )


def extrapolate_again(path: Path, config: TrainConfig, name: str) -> None:
    """Make the score once more, from another seed subset and run."""
    draw: dict[str, Any] = {"seed_fraction": SEED_FRACTION, "per_class": False}
    score_store(path, config, **draw, folder=None, name=name, window=WINDOW)
    embed_store(path, model=str(path.with_name(f"{path.name}.runs") / name), name=name)
    made = f"{SCORE}_of_{name}"
    if made not in open_store(path, mode="r").scores:
        extrapolate_score(path, f"{name}_{SCORE}", made, name)


def train_on(
    store: Store, test: Store, name: str, config: TrainConfig, seeds: int, out: Path
) -> list[dict[str, Any]]:
    """Train on what a rule keeps, once per seed."""
    results = []
    for seed in range(seeds):
        keep = select(store, **rule_of(name, seed), seed=seed)
        folder = out / "runs" / f"{name.replace(' ', '-')}-{seed}"
        with bar(f"{name}, seed {seed}") as progress:
            results.append(
                train_subset(
                    store,
                    keep,
                    replace(config, seed=seed),
                    folder=folder,
                    accelerator=make_accelerator(),
                    test=test,
                    progress=progress,
                )
            )
    return results


def rule_of(name: str, seed: int) -> dict[str, Any]:
    """Return the arguments of `select` for a row's training."""
    rule = RULES[name]
    made = f"{SCORE}_of_seed{seed}" if seed and rule.get("score") == SCORE else None
    return {**rule, "score": made} if made else rule


def cost(scored: dict[str, Any]) -> dict[str, Any]:
    """Return what a scoring run took."""
    return {name: scored[name] for name in ("seeds", "samples", "seconds", "bytes")}


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the table: means over the trainings."""
    accuracies = [100 * run["accuracy"] for run in runs]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    trained = [run["phases"]["train"] for run in runs]
    return {
        "trained on": name,
        "accuracy %": f"{mean(accuracies):.2f} ± {spread:.2f}",
        "seconds": f"{mean(part['seconds'] for part in trained):.1f}",
        "samples": f"{runs[0]['samples']:,}",
        "MB read": f"{trained[0]['bytes'] / 1e6:.1f}",
    }


def show(rows: list[dict[str, Any]], result: dict[str, Any], out: Path) -> None:
    """Print the table and what it does not show."""
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "trained on" else "right")
    for one in rows:
        table.add_row(*one.values())
    console = Console()
    console.print(table)
    seeds, full = result["scoring"]["seeds"], result["scoring"]["everything"]
    quality = result["extrapolated_against_full_run"]
    console.print(
        f"Not in the table: scoring {seeds['seeds']} seeds took {seeds['seconds']:.1f} s, "
        f"measuring every sample {full['seconds']:.1f} s.\n"
        "Extrapolated against a full run's scores (rest only): "
        f"Spearman {quality['spearman']:.2f}, "
        f"same half kept {quality['agreement']['0.5']:.2f} (random: 0.50).\n"
        f"{out / 'result.json'}, {out / 'report.html'}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(run(main))
