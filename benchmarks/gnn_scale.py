"""The graph network at size: gathering, inference against torch-geometric, and 1.28 M nodes.

    python benchmarks/gnn_scale.py [--parts step inference peer]
    python benchmarks/gnn_scale.py --work FOLDER --parts points search train predict
    python benchmarks/gnn_scale.py --work FOLDER --parts one_graph search_all ranks

`step`, `inference` and `peer` draw neighbours at random, which is harder on caches than neighbours
of real embeddings. `points` makes 131,072 seeds and 1,150,095 others (as `knn_scale.py` does);
`search` finds their nearest seeds, goes on where it was stopped and stops itself after `--limit`
seconds; `train` and `predict` use what was found; `one_graph` draws neighbours among all nodes;
`search_all` looks for these, of as many nodes as it can within the limit; `ranks` shares work over
processes. Each part runs in a process of its own; seconds are wall time and, beside it, processor
time, which other work on the machine moves less. Writes `records/gnn_scale.json`.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gnn_whole import WHOLE, peak, shared, timed
from torch.nn import functional

from shardsieve.extrapolate.graph import Graph
from shardsieve.extrapolate.inference import forward
from shardsieve.extrapolate.layers import KINDS
from shardsieve.extrapolate.sampling import Sampler

RECORD = Path(__file__).parent / "records" / "gnn_scale.json"
DIM, K, MEMORY = 512, 20, 8 << 30
SIZES = (DIM, 512, 256, 1)
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=[*PARTS, *WHOLE, "ranks"]
    )
    parser.add_argument("--work", type=Path, default=Path("gnn_scale_work"))
    parser.add_argument("--limit", type=float, default=600, help="Seconds of a search.")
    chosen = parser.parse_args()
    for name in chosen.parts:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        if name == "peer":  # these start their own processes
            record[name] = peer()
        elif name == "ranks":
            record[name] = shared(chosen.work)
        elif name in WHOLE:
            record[name] = apart(WHOLE[name], chosen.work, record.get(name, {}), chosen.limit)
        else:
            record[name] = apart(PARTS[name])
        print(name, json.dumps(record[name], indent=1), flush=True)
        record["about"] = {"threads": THREADS, "k": K, "dim": DIM, "layers": SIZES}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


def apart(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(part, arguments)


def made(nodes: int) -> tuple[torch.Tensor, Any]:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    x = torch.empty((nodes, DIM))
    block = torch.rand(8192, DIM)
    for start in range(0, nodes, 8192):  # the same features again and again cost the same
        x[start : start + 8192] = block[: nodes - start]
    # A node is never its own neighbour.
    ids = (torch.arange(nodes)[:, None] + torch.randint(1, nodes, (nodes, K))) % nodes
    weights = torch.rand(nodes, K)
    return x, (ids, weights)


def make_layers(kind: str) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(map(KINDS[kind], SIZES, SIZES[1:]))


def step() -> dict[str, Any]:
    """Share of a training step that draws and gathers neighbours: 50,000 nodes, 128 roots."""
    x, (ids, weights) = made(50_000)
    graph = Graph.of(ids, weights)
    return {kind: steps_of(kind, x, graph) for kind in ("gcn", "sage")}


def steps_of(kind: str, x: torch.Tensor, graph: Any) -> dict[str, Any]:
    layers = make_layers(kind)
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    sampler = Sampler(layers, x, graph, fan_out=(10, 10), draw=draw)
    gathering, whole = [], []
    for _ in range(6):
        roots, target = torch.randint(len(x), (128,), generator=draw), torch.rand(128)
        begin = time.perf_counter()
        around = sampler.around(roots)
        gathering.append(time.perf_counter() - begin)
        outputs = sampler.outputs(around, 0.5)
        optimizer.zero_grad()
        functional.mse_loss(outputs, target).backward()
        optimizer.step()
        whole.append(time.perf_counter() - begin)
    shares = [a / b for a, b in zip(gathering, whole, strict=True)][1:]
    return {
        "step, ms": round(1000 * statistics.median(whole[1:]), 1),
        "gathering, ms": round(1000 * statistics.median(gathering[1:]), 1),
        "share gathering": round(statistics.median(shares), 3),
    }


@torch.no_grad()
def inference() -> dict[str, Any]:
    """All nodes through three layers, 10,000 nodes: layer-wise, and GCNConv on the full batch."""
    nodes = 10_000
    x, (ids, weights) = made(nodes)
    layers = make_layers("gcn")
    graph = Graph.of(ids, weights)
    edges = torch.stack([ids.flatten(), torch.arange(nodes).repeat_interleave(K)])

    def full_batch() -> torch.Tensor:
        hidden = x
        for layer in layers:
            hidden = hidden if layer is layers[0] else hidden.relu()
            hidden = layer(hidden, edges, weights.flatten())
        return hidden[:, 0]

    def layer_wise() -> torch.Tensor:
        return forward(layers, x, graph)

    torch.testing.assert_close(layer_wise(), full_batch(), rtol=1e-3, atol=1e-4)
    seconds: dict[str, list[float]] = {"layer-wise": [], "GCNConv, full batch": []}
    for _ in range(3):
        for name, run in (("layer-wise", layer_wise), ("GCNConv, full batch", full_batch)):
            begin = time.perf_counter()
            run()
            seconds[name].append(round(time.perf_counter() - begin, 3))
    ours, theirs = (statistics.median(seconds[name]) for name in seconds)
    return {"nodes": nodes, "seconds": seconds, "times faster": round(theirs / ours, 2)}


def peer() -> dict[str, Any]:
    """The largest full batch that GCNConv does in 8 GB, and layer-wise inference on its graph."""
    rows: dict[str, Any] = {}
    for nodes in (32_768, 65_536, 98_304, 131_072):
        rows[str(nodes)] = apart(both_on, nodes)
        print(nodes, rows[str(nodes)], flush=True)
    return rows


@torch.no_grad()
def both_on(nodes: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    x, (ids, weights) = made(nodes)
    layers, row = make_layers("gcn"), {}
    graph = Graph.of(ids, weights)
    with timed(row, "layer-wise"):
        ours = forward(layers, x, graph)
    row["layer-wise, peak MB"] = peak()
    edges = torch.stack([ids.flatten(), torch.arange(nodes).repeat_interleave(K)])
    try:
        with timed(row, "GCNConv, full batch"):
            hidden = x
            for layer in layers:
                hidden = hidden if layer is layers[0] else hidden.relu()
                hidden = layer(hidden, edges, weights.flatten())
    except (MemoryError, RuntimeError) as error:
        return row | {"GCNConv, full batch": f"out of memory at 8 GB: {str(error)[:60]}"}
    torch.testing.assert_close(ours, hidden[:, 0], rtol=1e-3, atol=1e-4)
    return row | {"GCNConv, peak MB": peak()}


PARTS = {"step": step, "inference": inference, "peer": peer}

if __name__ == "__main__":
    main()
