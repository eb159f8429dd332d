"""What a GPU makes of it: neighbours, graph network, the trainer's step, the recorder.

    python benchmarks/on_gpu.py [--parts search graph step recorder] [--small] [--out FILE]

`search`: 1.28 M queries among 131,072 seeds, 512 numbers each (by torch, or by faiss' GPU
build where it is installed), with the recall of a sample against distances in float64.
`graph`: a GCN over all of them, edges from seeds: search, epochs, inference, and how well its
predictions on this device agree with those of a CPU on a twentieth of the nodes. `step`: images a
second of the trainer's step beside a bare PyTorch loop on the same batch, in turns, in full
precision, bf16, with channels last and compiled; both start alike, so their losses must agree up to
rounding. `recorder`: `recorder.py`'s cases. `--small` is a
trial of the script that takes a minute on two cores and writes no record. Every part is written to
`records/on_gpu.json` when it is done, so that a run that is cut short keeps what it has.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import recorder
import torch
from accelerate import Accelerator
from knn_scale import points
from torch.nn.functional import cross_entropy

from shardsieve.extrapolate import GNN, KNN
from shardsieve.extrapolate.search import has_gpu
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import Batch, normalised
from shardsieve.train.launch import make_accelerator
from shardsieve.train.nets import MODELS
from shardsieve.train.stepping import Stepper

RECORD = Path(__file__).parent / "records" / "on_gpu.json"
SEEDS, QUERIES, K, ASKED = 131_072, 1_150_095, 20, 512
DEVICE = torch.accelerator.current_accelerator() or torch.device("cpu")
# Network, classes, pixels, batch.
CASES = [("resnet18", 10, 32, 512), ("resnet50", 1000, 224, 128)]
SETTINGS: dict[str, dict[str, Any]] = {
    "full precision": {},
    "bf16": {"precision": "bf16"},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
    "bf16, channels last, compiled": {"precision": "bf16", "channels_last": True, "compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    held = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.parts:
        torch.manual_seed(0)
        held[name] = PARTS[name](1 / 64 if options.small else 1.0)
        held["about"] = about()
        print(name, json.dumps(held[name], indent=1), flush=True)
        if not options.small:
            options.out.write_text(json.dumps(held, indent=1) + "\n")


def about() -> dict[str, Any]:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else str(DEVICE)
    return {"device": name, "torch": torch.__version__, "faiss_on_gpu": has_gpu()}


def made(share: float) -> tuple[Any, Any, Any]:
    """Return seeds, queries and the seeds' scores, a smooth function of place with some noise."""
    seeds, queries = points(int(SEEDS * share), 0), points(int(QUERIES * share), 1)
    draw = np.random.default_rng(0)
    direction = draw.normal(size=seeds.shape[1])
    scores = np.tanh(seeds.astype("f4") @ direction / 8) + 0.1 * draw.normal(size=len(seeds))
    return seeds, queries, scores


def search(share: float) -> dict[str, Any]:
    seeds, queries, scores = made(share)
    knn = KNN(k=K, device=str(DEVICE)).fit(seeds, scores)
    begin = time.perf_counter()
    chosen = knn.choose(queries[:4096], len(queries))
    choosing, begin = time.perf_counter() - begin, time.perf_counter()
    predicted = knn.predict(queries)
    seconds = time.perf_counter() - begin
    right = np.mean(np.abs(nearest_mean(seeds, queries[:ASKED], scores) - predicted[:ASKED]) < 1e-3)
    sizes = {"seeds": len(seeds), "queries": len(queries), "k": K}
    figures = {"choosing_s": round(choosing, 2), "predicting_s": round(seconds, 2)}
    return {**sizes, **figures, "found_by": chosen.to_dict(), "same_prediction": float(right)}


def nearest_mean(seeds: Any, queries: Any, scores: Any) -> Any:
    """Return exp-weighted predictions from distances in float64."""
    to = {"dtype": torch.float64, "device": DEVICE}
    rows = [torch.tensor(one, **to) for one in (queries, seeds)]
    distances = torch.cdist(*rows, compute_mode="donot_use_mm_for_euclid_dist")
    apart, ids = distances.topk(K, largest=False)
    weights = torch.exp(apart[:, :1] - apart)
    found = (weights * torch.tensor(scores, **to)[ids]).sum(dim=1) / weights.sum(dim=1)
    return found.cpu().numpy()


def graph(share: float) -> dict[str, Any]:
    seeds, queries, scores = made(share)
    timed: dict[str, Any] = {"seeds": len(seeds), "nodes": len(seeds) + len(queries)}
    how: dict[str, Any] = {"k": K, "graph": "seeds", "epochs": 3, "patience": 3}
    network = GNN(**how, device=str(DEVICE))
    begin = time.perf_counter()
    network.fit(seeds, scores)
    timed["fit_3_epochs_s"], begin = round(time.perf_counter() - begin, 2), time.perf_counter()
    network.predict(queries)
    timed["predict_s"] = round(time.perf_counter() - begin, 2)
    if DEVICE.type == "cuda":
        timed["gpu_bytes"] = torch.cuda.max_memory_allocated()
    few, asked = seeds[: len(seeds) // 20 + K], queries[: len(queries) // 20]
    both = [
        GNN(**how, device=one).fit(few, scores[: len(few)]).predict(asked)
        for one in (str(DEVICE), "cpu")
    ]
    timed["agreement_with_cpu"] = float(np.corrcoef(*both)[0, 1])
    return timed


def step(share: float) -> list[dict[str, Any]]:
    """Time the trainer's step against a bare loop, in turns."""
    rows = []
    for network, classes, pixels, size in CASES:
        if share < 1:
            size, pixels = max(int(size * share), 2), min(pixels, 32)
        for name, how in SETTINGS.items():
            config = TrainConfig(model=network, batch_size=size, learning_rate=1e-3, **how)
            rows.append({"network": network, "pixels": pixels, "batch": size, "settings": name})
            rows[-1] |= steps_of(config, classes, pixels, steps=50 if share == 1 else 2)
            print(rows[-1], flush=True)
    return rows


def steps_of(config: TrainConfig, classes: int, pixels: int, *, steps: int) -> dict[str, Any]:
    accelerator = make_accelerator(precision=config.precision)
    batch = Batch(
        torch.randint(256, (config.batch_size, 3, pixels, pixels), device=DEVICE).to(torch.uint8),
        torch.randint(classes, (config.batch_size,), device=DEVICE),
        torch.arange(config.batch_size),
        torch.ones(config.batch_size, device=DEVICE),
    )
    loops = [ours(config, classes, batch, accelerator), bare(config, classes, batch)]
    losses = [loop(2 * steps) for loop in loops]  # warm, and compiled
    seconds: list[list[float]] = [[], []]
    for turn in range(6):
        for one in (turn % 2, 1 - turn % 2):
            begin = time.perf_counter()
            loops[one](steps)
            seconds[one].append(time.perf_counter() - begin)
    mine, plain = map(statistics.median, seconds)
    rate = config.batch_size * steps / mine
    over = [a / b - 1 for a, b in zip(*seconds, strict=True)]
    figures = {"images_per_s": round(rate, 1), "over_bare": round(statistics.median(over), 4)}
    return {**figures, "bare_ms": round(1000 * plain / steps, 3), "losses": losses}


def ours(
    config: TrainConfig, classes: int, batch: Batch, accelerator: Accelerator
) -> Callable[[int], float]:
    """Return the trainer's steps on one batch; they return the last loss."""
    torch.manual_seed(0)
    stepper = Stepper(MODELS[config.model](classes, 3).to(DEVICE), config, accelerator)
    stepper.model.train()

    def loop(steps: int) -> float:
        for place in range(steps):
            _, losses = stepper.batch(batch, epoch=0, place=place, share=1.0, last=True)
            stepper.update(0.5)
        return float(losses.mean())

    return loop


def bare(config: TrainConfig, classes: int, batch: Batch) -> Callable[[int], float]:
    """Return the same steps as one writes them by hand."""
    torch.manual_seed(0)
    model = MODELS[config.model](classes, 3).to(DEVICE).train()
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rate = {"lr": config.rate(0.5), "momentum": 0.9, "nesterov": True}
    optimizer = torch.optim.SGD(model.parameters(), **rate, weight_decay=config.weight_decay)
    running: Any = torch.compile(model) if config.compile else model
    half = torch.autocast(DEVICE.type, torch.bfloat16, enabled=config.precision == "bf16")

    def loop(steps: int) -> float:
        for _ in range(steps):
            images = normalised(batch.images)
            if config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with half:
                loss = cross_entropy(running(images), batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return loop


def recording(share: float) -> list[dict[str, Any]]:
    cases = recorder.CASES if share == 1 else recorder.CASES[:1]
    return [recorder.measure(*case, 8, 5 if share == 1 else 2) for case in cases]


PARTS: dict[str, Callable[[float], Any]] = {
    "search": search,
    "graph": graph,
    "step": step,
    "recorder": recording,
}

if __name__ == "__main__":
    main()
