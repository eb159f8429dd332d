"""How near do extrapolated scores come to those of a full run, next to a second full run?

    python benchmarks/extrapolation_quality.py IMAGES WORK --name cifar10 [--shards 25] [--trials 3]

IMAGES is a folder with train/CLASS/*.jpg, or fashion-mnist. Every trial has a full run, whose
scores are the target, and one seed run per seed fraction and matching: as many epochs as the full
run (`epochs`), as many steps (`steps`), or `half` or a `quarter` of these. The full run of the next
trial is the ceiling. Beside them stands a short run on all samples, in about as many steps as the
seed run makes: it measures every score and predicts none, and its network is asked about every
sample once it is done. All figures are over the rest: samples that were no seeds, held out or not.
`--shards` takes the first shards alone, which scales everything down. `dyn_unc_scaled` is Dynamic
Uncertainty of the seeds with a window as long in steps as the full run's.

Killed and started again, it goes on; what the record holds is not made again, so more trials are
added by the same command. Writes `records/extrapolation_quality_NAME.json`.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tables import quality
from torch import nn

import shardsieve as ss
from shardsieve.commands.asking import ask_networks
from shardsieve.commands.methods import Task, make_task, usual_k
from shardsieve.commands.packing import pack_source
from shardsieve.commands.training import embed_store
from shardsieve.extrapolate import measure
from shardsieve.order import random_bits
from shardsieve.train.config import TrainConfig
from shardsieve.train.nets import light as plain
from shardsieve.train.recorder import Recorder
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.splits import hold_out, matched_epochs, matched_window

RECORDS = Path(__file__).parent / "records"
SCORES = ("dyn_unc", "el2n", "confidence")
HELD_OUT, SNAPSHOTS, WINDOW = 0.1, 12, 10
# Share of the full run's steps; 0: its epochs.
MATCHED = {"epochs": 0.0, "quarter": 0.25, "half": 0.5, "steps": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "mean kNN": {"method": "knn", "weights": "mean"},
    "exp kNN": {"method": "knn", "weights": "exp"},
    "GNN, edges from seeds": {"method": "gnn", "graph": "seeds"},
    "GNN, edges among all": {"method": "gnn", "graph": "all"},
    "GNN with labels, edges from seeds": {"method": "gnn", "graph": "seeds", "labels": True},
    "GNN with labels, edges among all": {"method": "gnn", "graph": "all", "labels": True},
    "direct": {"method": "direct"},
    "fused": {"method": "fused"},
    "direct, held-out seeds alone": {"method": "direct", "alone": True},
    "fused, held-out seeds alone": {"method": "fused", "alone": True},
    "direct, last network alone": {"method": "direct", "networks": 1, "alone": True},
    "fused, last network alone": {"method": "fused", "networks": 1, "alone": True},
    "bound: fused, fitted on the full run's scores": {
        "method": "fused",
        "told": True,
        "alone": True,
    },
}
BESIDE = ("ceiling: a second full run", "seeds' own measured score", "random")
SHORT = "measured in a short run on everything"
ASKED = "asked after a short run on everything"
SHORTLY = {SHORT, ASKED}
ASKED_FOR = {"dyn_unc": "threshold_closeness"}  # of one network, in which nothing changes


def light(num_classes: int) -> nn.Module:
    """Return the light network in the memory layout that CPUs convolve fastest."""
    return plain(num_classes, CHANNELS).to(memory_format=torch.channels_last)


LIGHT = "extrapolation_quality:light"
CHANNELS = int(os.environ.get("CHANNELS", "3"))


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    store = indexed(options)
    config = TrainConfig(
        model=options.model,
        precision=options.precision,
        epochs=options.epochs,
        batch_size=128,
        augment="crop",
        channels=None if CHANNELS == 3 else CHANNELS,
    )
    record = RECORDS / f"extrapolation_quality_{options.name}.json"
    held = json.loads(record.read_text()) if record.is_file() else {"rows": []}
    held["about"] = {
        "samples": len(store),
        "epochs": options.epochs,
        "batch": 128,
        "window": WINDOW,
        "network": "light, channels last" if options.model == LIGHT else options.model,
        "held_out": HELD_OUT,
        "snapshots": SNAPSHOTS,
        "torch": torch.__version__,
        "note": "seconds come from a shared machine",
    }
    for trial in range(options.trials):
        for fraction in options.fractions:
            for matched in options.matched:
                key = {"trial": trial, "seeds": fraction, "matched": matched}
                missing = wanted(key, options.without) - {named(row) for row in held["rows"]}
                if missing:
                    held["rows"] += one(store, config, key, options, missing)
                    record.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(quality(held["rows"])))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("work", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--shards", type=int, default=0, help="0: all")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--model", default=LIGHT, help="resnet18 where a GPU is at hand")
    parser.add_argument("--precision", default="no", help="bf16 likewise")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.2, 0.1])
    parser.add_argument("--matched", nargs="+", choices=MATCHED, default=["epochs", "steps"])
    parser.add_argument("--without", nargs="*", default=[], help="rows to leave out, by start")
    return parser.parse_args()


def indexed(options: argparse.Namespace) -> ss.Store:
    folder = options.work / "shards"
    if not (folder / "classes.json").is_file():
        pack_source(options.images, folder, samples_per_shard=500, overwrite=True)
    shards = sorted(map(str, folder.glob("train-*.tar")))
    return ss.index(shards[: options.shards or None], options.work / "train.zarr")


def wanted(key: dict[str, Any], without: list[str]) -> set[tuple[Any, ...]]:
    """Return the names of all rows of a seed run; the GNN, the slowest, has two scores."""
    scores = (*SCORES, "dyn_unc_scaled") if MATCHED[key["matched"]] else SCORES
    names = [
        name for name in (*METHODS, *BESIDE, SHORT, ASKED) if not name.startswith(tuple(without))
    ]
    rows = {(score, name) for score in scores for name in names}
    rows = {row for row in rows if row[0] in SCORES[:2] or not row[1].startswith("GNN")}
    # With all the steps it is a second full run; windows need more than two epochs.
    shortly = {"steps": (), "half": SCORES}.get(key["matched"], ("el2n", "confidence"))
    rows = {row for row in rows if row[1] != SHORT or row[0] in shortly}
    asked = SCORES if shortly else ()
    rows = {row for row in rows if row[1] != ASKED or row[0] in asked}
    return {(*key.values(), *row) for row in rows}


def named(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("trial", "seeds", "matched", "score", "row"))


def one(
    store: ss.Store,
    config: TrainConfig,
    key: dict[str, Any],
    options: argparse.Namespace,
    missing: set[tuple[Any, ...]],
) -> list[dict[str, Any]]:
    """Return the missing rows of one seed run, against the full run's scores."""
    trial = key["trial"]
    names = {name for *_, name in missing}
    full = full_run(store, config, options, trial)
    second = full_run(store, config, options, trial + 1) if BESIDE[0] in names else ""
    short, short_cost = short_run(store, config, key, options) if names & SHORTLY else ("", {})
    run, cost = seed_run(store, config, key, options) if names - SHORTLY else ("", {})
    if run:
        put_scaled(store, run, round(config.epochs * (MATCHED[key["matched"]] or 1.0)))
    for name in filter(None, (full, second, short, run, run and f"{run}_held_out")):
        put_confidence(store, name)
    seeds = draw_seeds(store, key["seeds"], seed=trial)
    rest = np.setdiff1d(np.arange(len(store)), store.rows(seeds))
    rows = []
    for *_, score, name in sorted(missing):
        target = score.removesuffix("_scaled")
        truth, where, seconds = store.score(f"{full}_{target}"), rest, 0.0
        if name == BESIDE[0]:
            values = store.score(f"{second}_{target}")
        elif name == SHORT:
            values = store.score(f"{short}_{score}")
        elif name == ASKED:
            values = store.score(f"{short}_asked_{ASKED_FOR.get(score, score)}")
        elif name == BESIDE[1]:
            values = store.score(f"{run}_{score}")
            where = np.flatnonzero(np.isfinite(values))
        elif name == BESIDE[2]:
            values = random_bits(len(store), trial, 7).astype(np.float64)
        else:
            how = METHODS[name]
            values, seconds = extrapolated(store, run, score, how, rest, trial, truth)
        figures = measure(truth[where], values[where]).to_dict()
        kept = {n: figures[n] for n in ("pearson", "spearman", "agreement", "intervals")}
        row = {
            **key,
            "score": score,
            "row": name,
            **kept,
            **(short_cost if name in SHORTLY else cost),
        }
        rows.append(row | {"seconds_extrapolating": round(seconds, 2)})
        print(json.dumps({n: row[n] for n in (*key, "score", "row", "spearman")}), flush=True)
    return rows


def full_run(store: ss.Store, config: TrainConfig, options: argparse.Namespace, number: int) -> str:
    name = f"full{number}"
    score_seeds(
        store,
        store.ids(),
        replace(config, seed=100 + number),
        folder=options.work / "runs" / name,
        name=name,
        window=WINDOW,
        accelerator=Accelerator(),
        progress=said(name),
    )
    return name


def seed_run(
    store: ss.Store, config: TrainConfig, key: dict[str, Any], options: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Train on the seeds and embed everything; return the run's name and what it cost."""
    name = f"seeds{round(100 * key['seeds'])}-{key['matched']}-{key['trial']}"
    trained, held = hold_out(draw_seeds(store, key["seeds"], seed=key["trial"]), HELD_OUT)
    epochs, share = config.epochs, MATCHED[key["matched"]]
    if share:
        sizes = {"full": len(store), "seeds": len(trained), "batch": config.batch_size}
        epochs = matched_epochs(round(share * epochs), **sizes)
    made = score_seeds(
        store,
        trained,
        replace(config, epochs=epochs, seed=key["trial"]),
        folder=options.work / "runs" / name,
        name=name,
        window=WINDOW,
        held_out=held,
        snapshots=SNAPSHOTS,
        accelerator=Accelerator(),
        progress=said(name),
    )
    begin = time.perf_counter()
    embed_store(options.work / "train.zarr", model=str(options.work / "runs" / name), name=name)
    return name, {
        "samples_trained": made["samples"],
        "steps": made["steps"],
        "seed_epochs": epochs,
        "seconds_training": made["seconds"],
        "seconds_embedding": round(time.perf_counter() - begin, 1),
    }


def short_run(
    store: ss.Store, config: TrainConfig, key: dict[str, Any], options: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Train on everything for about as many steps as the seed run; return its name and cost."""
    share = MATCHED[key["matched"]] or key["seeds"] * (1 - HELD_OUT)
    epochs = round(share * config.epochs)
    name = f"short{epochs}-{key['trial']}"
    window = matched_window(WINDOW, epochs=epochs, full_epochs=config.epochs)
    made = score_seeds(
        store,
        store.ids(),
        replace(config, epochs=epochs, seed=200 + key["trial"]),
        folder=options.work / "runs" / name,
        name=name,
        window=window,
        scores=None if 2 < window < epochs else ["el2n"],
        accelerator=Accelerator(),
        progress=said(name),
    )
    begin, store_path = time.perf_counter(), options.work / "train.zarr"
    embed_store(store_path, model=str(options.work / "runs" / name), name=name)
    specs = ["el2n", "confidence", "threshold_closeness"]
    ask_networks(store_path, name, specs, prefix=f"{name}_asked")
    return name, {
        "samples_trained": made["samples"],
        "steps": made["steps"],
        "seconds_training": made["seconds"],
        "seconds_embedding": round(time.perf_counter() - begin, 1),
    }


def put_scaled(store: ss.Store, run: str, full_epochs: int) -> None:
    """Store Dynamic Uncertainty with the full run's window, as long in steps."""
    for name in (run, f"{run}_held_out"):
        recorder = Recorder.load(store, name)
        window = matched_window(WINDOW, epochs=recorder.epochs, full_epochs=full_epochs)
        values = np.full(len(store), np.nan)
        measured = ss.scores.dynamic_uncertainty(recorder.signal("p_true"), window)
        values[store.rows(recorder.ids)] = measured
        store.put_score(f"{name}_dyn_unc_scaled", values)


def put_confidence(store: ss.Store, run: str) -> None:
    """Store it of a run that was made before it was among the usual scores."""
    if f"{run}_confidence" not in store.scores:
        recorder, values = Recorder.load(store, run), np.full(len(store), np.nan)
        values[store.rows(recorder.ids)] = -ss.scores.confidence(recorder.signal("p_true"))
        store.put_score(f"{run}_confidence", values)


def extrapolated(
    store: ss.Store, run: str, score: str, how: dict[str, Any], rest: Any, trial: int, truth: Any
) -> tuple[Any, float]:
    """Return predictions of the rest, (n,), and the seconds of it; `told` learns the truth."""
    begin = time.perf_counter()
    points = store.embedding(run).astype(np.float32)
    readable, wanted = np.isfinite(points).all(axis=1), np.zeros(len(points), dtype=np.bool_)
    wanted[rest] = True
    k = usual_k(how["method"])
    settings = {"k": k, "weights": "exp", "seed": trial, "readable": readable, **how}
    method, networks = settings.pop("method"), settings.pop("networks", 0)
    told, alone = settings.pop("told", False), settings.pop("alone", False)
    task = make_task(store, method, score=f"{run}_{score}", embedding=run, **settings)
    task = replace(
        task,
        values=np.where(np.isfinite(task.values), truth, np.nan) if told else task.values,
        fit_beside=last_networks(task.fit_beside, networks),
        predict_beside=last_networks(task.predict_beside, networks),
    )
    task = held_out_alone(task) if alone else task
    values = np.full(len(points), np.nan)
    values[rest] = task.predict(store.embedding_rows(run), wanted)
    return values, time.perf_counter() - begin


def held_out_alone(task: Task) -> Task:
    """Return the same, learned from held-out seeds: of trained ones the signals are hidden."""
    beside = dict(task.fit_beside)
    trained = beside.pop("trained")
    hidden = np.where(trained[:, None, None], np.nan, beside["signals"])
    return replace(task, fit_beside=beside | {"signals": hidden})


def last_networks(beside: dict[str, Any], networks: int) -> dict[str, Any]:
    """Return the same with signals of so many networks, the last ones; 0 leaves all."""
    return {n: a[:, -networks:] if n == "signals" else a for n, a in beside.items()}


def said(name: str) -> Any:
    def progress(done: int, total: int, note: str = "") -> None:
        if done % 200 == 0:
            print(name, done, total, note, time.strftime("%T"), flush=True)

    return progress


if __name__ == "__main__":
    main()
