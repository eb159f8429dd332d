"""The graph network at size: gathering in a training step, inference, and memory at 1.28 M nodes.

    python benchmarks/gnn_scale.py [--parts step inference memory]

Neighbours are drawn at random, which is harder on caches than neighbours of real embeddings, and
the search for them is not in these figures (see `knn_scale.py`). Each part runs in a process of its
own; steps and inferences alternate with their peer, medians. Writes `records/gnn_scale.json`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from shardsieve.extrapolate.graph import coefficients
from shardsieve.extrapolate.inference import forward
from shardsieve.extrapolate.layers import KINDS
from shardsieve.extrapolate.sampling import Sampler

RECORD = Path(__file__).parent / "records" / "gnn_scale.json"
DIM, K, NODES = 512, 20, 1_281_167
SIZES = (DIM, 512, 256, 1)
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in parser.parse_args().parts:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            record[name] = pool.apply(PARTS[name])
        print(name, json.dumps(record[name], indent=1), flush=True)
        record["about"] = {"threads": THREADS, "k": K, "dim": DIM, "layers": SIZES}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


def made(nodes: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Any]:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x = torch.empty((nodes, DIM), dtype=dtype)
    for start in range(0, nodes, 65_536):
        x[start : start + 65_536] = torch.randn(min(65_536, nodes - start), DIM).relu()
    ids = torch.randint(nodes, (nodes, K))
    weights = torch.rand(nodes, K)
    return x, (ids, weights)


def make_layers(kind: str) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(map(KINDS[kind], SIZES, SIZES[1:]))


def step() -> dict[str, Any]:
    """Share of a training step that draws and gathers neighbours: 100,000 nodes, 128 roots."""
    x, (ids, weights) = made(100_000)
    graph = (ids, *coefficients(ids, weights))
    return {kind: steps_of(kind, x, graph) for kind in KINDS}


def steps_of(kind: str, x: torch.Tensor, graph: Any) -> dict[str, Any]:
    layers = make_layers(kind)
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    sampler = Sampler(layers, x, graph, fan_out=(10, 10), draw=draw)
    gathering, whole = [], []
    for _ in range(8):
        roots, target = torch.randint(len(x), (128,), generator=draw), torch.rand(128)
        begin = time.perf_counter()
        around = sampler.around(roots)
        gathering.append(time.perf_counter() - begin)
        outputs = sampler.outputs(around, lambda h: functional.dropout(h.relu(), 0.5))
        optimizer.zero_grad()
        functional.mse_loss(outputs, target).backward()
        optimizer.step()
        whole.append(time.perf_counter() - begin)
    shares = [a / b for a, b in zip(gathering, whole, strict=True)][2:]
    return {
        "step, ms": round(1000 * statistics.median(whole[2:]), 1),
        "gathering, ms": round(1000 * statistics.median(gathering[2:]), 1),
        "share gathering": round(statistics.median(shares), 3),
    }


@torch.no_grad()
def inference() -> dict[str, Any]:
    """All nodes through three layers, 20,000 nodes: layer-wise, and GCNConv on the full batch."""
    nodes = 20_000
    x, (ids, weights) = made(nodes)
    layers = make_layers("gcn")
    graph = coefficients(ids, weights)
    edges = torch.stack([ids.flatten(), torch.arange(nodes).repeat_interleave(K)])

    def full_batch() -> torch.Tensor:
        hidden = x
        for layer in layers:
            hidden = hidden if layer is layers[0] else hidden.relu()
            hidden = layer(hidden, edges, weights.flatten())
        return hidden[:, 0]

    def layer_wise() -> torch.Tensor:
        return forward(layers, x, ids, *graph)

    torch.testing.assert_close(layer_wise(), full_batch(), rtol=1e-3, atol=1e-4)
    seconds: dict[str, list[float]] = {"layer-wise": [], "GCNConv, full batch": []}
    for _ in range(3):
        for name, run in (("layer-wise", layer_wise), ("GCNConv, full batch", full_batch)):
            begin = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - begin, 3))
    ours, theirs = (statistics.median(seconds[name]) for name in seconds)
    return {"nodes": nodes, "seconds": seconds, "times faster": round(theirs / ours, 2)}


def memory() -> dict[str, Any]:
    """Seconds and peak memory of inference over 1.28 M nodes, whose features are float16."""
    x, (ids, weights) = made(NODES, torch.float16)
    graph = coefficients(ids, weights)
    before = peak()
    begin = time.perf_counter()
    found = forward(make_layers("gcn"), x, ids, *graph)
    assert bool(found.isfinite().all())
    return {
        "nodes": NODES,
        "seconds": round(time.perf_counter() - begin, 1),
        "features, MB": x.nbytes >> 20,
        "neighbours and factors, MB": (ids.nbytes + sum(g.nbytes for g in graph)) >> 20,
        "peak before, MB": before,
        "peak, MB": peak(),
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


PARTS = {"step": step, "inference": inference, "memory": memory}

if __name__ == "__main__":
    main()
