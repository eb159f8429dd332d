"""The parts of `gnn_scale.py` over 1.28 M nodes: points, search, training, prediction."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
from knn_scale import points
from numpy.typing import NDArray
from torch import distributed, multiprocessing
from torch.nn import functional

from shardsieve.extrapolate.approximate import kind_for
from shardsieve.extrapolate.graph import Graph, edges_from, knn_graph, node_scale
from shardsieve.extrapolate.inference import apart, forward, forward_and_tables
from shardsieve.extrapolate.knn import chosen_of, finder_for
from shardsieve.extrapolate.layers import KINDS
from shardsieve.extrapolate.ranks import Ranks
from shardsieve.extrapolate.sampling import Sampler

SEEDS, REST, DIM, K = 131_072, 1_150_095, 512, 20
SIZES, BATCH, STEPS, BLOCK = (DIM, 512, 256, 1), 128, 30, 65_536
LAYERS = ("gcn", "sage", "gat")


class Stored:
    """Rows of a file, read block by block so that they take no memory."""

    def __init__(self, file: Path, count: int) -> None:
        self.file, self.shape = file, (count, DIM)

    def __getitem__(self, rows: slice) -> NDArray[np.float16]:
        first, stop, _ = rows.indices(self.shape[0])
        read = np.fromfile(self.file, np.float16, (stop - first) * DIM, offset=first * DIM * 2)
        return read.reshape(-1, DIM)


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    """Put seconds of the clock and of the processor under a name, added to what is there."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    spent = time.perf_counter() - wall, time.process_time() - processor
    before = into.get(name, {"wall, s": 0.0, "processor, s": 0.0})
    into[name] = {key: round(before[key] + s, 1) for key, s in zip(before, spent, strict=True)}


def peak() -> int:
    """Return the most memory that this process has held, in MB."""
    return getrusage(RUSAGE_SELF).ru_maxrss // 1024


def make_points(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """131,072 seeds and the rest, 512 numbers in half precision."""
    work.mkdir(parents=True, exist_ok=True)
    points(SEEDS, 0).tofile(work / "seeds.f2")
    points(REST, 1).tofile(work / "rest.f2")
    return {"seeds": SEEDS, "rest": REST}


def search(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """The seeds' neighbours among seeds, then those of the rest; saved block by block."""
    begin, found = time.perf_counter(), dict(old)
    if not (work / "graph.npz").exists():
        with timed(found, "seeds among seeds"):
            ids, weights = knn_graph(seeds_of(work), K)
        np.savez(work / "graph.npz", ids=ids, weights=weights)
        found["peak of it, MB"] = peak()
        return found
    rest, seeds = Stored(work / "rest.f2", REST), seeds_of(work)
    found["starts"] = found.get("starts", 0) + 1
    with timed(found, "codes of the seeds, all starts"):
        finder = finder_for(seeds, rest, K, kind=kind_for("auto", SEEDS, REST, DIM))
    found["rest found by"] = chosen_of(finder).to_dict()
    for start in range(0, REST, BLOCK):
        file = work / f"rest-{start}.npz"
        if file.exists() or time.perf_counter() - begin > limit:
            continue
        block = rest[start : start + BLOCK]
        with timed(found, "rest among seeds"):
            ids, weights = edges_from(finder, block, K)
        np.savez(file, ids=ids.astype(np.int32), weights=weights)
        found["rest searched"] = found.get("rest searched", 0) + len(block)
    return found | {"peak, MB": max(peak(), found.get("peak, MB", 0))}


def train(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """30 steps of 128 roots in the graph of seeds and one pass over it, scaled to an epoch."""
    rows = dict(old)
    for kind in LAYERS:
        begin = time.perf_counter()
        x, graph, target = graph_of(work)
        layers, row = make_layers(kind), {}
        draw = torch.Generator().manual_seed(0)
        with timed(row, "first sums, once"):
            sampler = Sampler(layers, x, graph, fan_out=(10, 10), draw=draw)
        steps(sampler, target, 2)
        with timed(row, f"{STEPS} steps"):
            steps(sampler, target, STEPS)
        with timed(row, "validation"):
            forward(layers, x, graph, first=sampler.first)
        rows[kind] = row | epoch_of(row) | {"peak so far, MB": peak()}
        print(kind, rows[kind], round(time.perf_counter() - begin), flush=True)
    return rows


def steps(sampler: Sampler, target: torch.Tensor, count: int) -> None:
    optimizer = torch.optim.Adam(sampler.layers.parameters(), lr=1e-3)
    for _ in range(count):
        roots = torch.randint(len(target), (BATCH,), generator=sampler.draw)
        outputs = sampler.outputs(sampler.around(roots), 0.5)
        optimizer.zero_grad()
        wanted = target[roots[sampler.ranks.share(BATCH)]]
        (functional.mse_loss(outputs, wanted, reduction="sum") / BATCH).backward()
        sampler.ranks.add_gradients(sampler.layers.parameters())
        optimizer.step()


@torch.no_grad()
def predict(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """Layer-wise inference over all nodes: tables of the seeds, then the rest block by block."""
    rows, rest = dict(old), Stored(work / "rest.f2", REST)
    for kind in LAYERS:
        x, graph, _ = graph_of(work)
        layers, row = make_layers(kind), {}
        with timed(row, "seeds, and their tables"):
            tables, _ = forward_and_tables(layers, x, graph)
        scale, done = graph.own.sqrt(), 0
        for start in range(0, REST, BLOCK):
            file = work / f"rest-{start}.npz"
            if not file.exists():
                continue
            with np.load(file) as read:
                ids, weights = torch.from_numpy(read["ids"]).long(), torch.tensor(read["weights"])
            with timed(row, "rest, read and predicted"):
                for at in range(0, len(ids), 16_384):
                    part = slice(at, min(at + 16_384, len(ids)))
                    here = torch.from_numpy(rest[start + at : start + part.stop]).float()
                    own = node_scale(weights[part])
                    edges = own[:, None] * weights[part] * scale[ids[part]]
                    outputs = apart(layers, tables, here, Graph(ids[part], edges, own.square()))
                    assert bool(outputs.isfinite().all())
            done += len(ids)
        rows[kind] = row | {"nodes": SEEDS + done, "peak so far, MB": peak()}
        print(kind, rows[kind], flush=True)
    return rows


def seeds_of(work: Path) -> NDArray[np.float32]:
    return np.fromfile(work / "seeds.f2", np.float16).reshape(SEEDS, DIM).astype(np.float32)


def graph_of(work: Path) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """Return features, the graph and a score of the seeds."""
    x = torch.from_numpy(seeds_of(work))
    with np.load(work / "graph.npz") as read:
        ids, weights = (torch.from_numpy(read[name]) for name in ("ids", "weights"))
    return x, Graph.of(ids, weights), x[:, :8].sum(dim=1)


def make_layers(kind: str) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return torch.nn.ModuleList(map(KINDS[kind], SIZES, SIZES[1:]))


def one_graph(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """GCN in one graph of all nodes, neighbours drawn at random, features in half precision."""
    total, row, x = SEEDS + REST, {}, torch.from_numpy(all_points(work))
    draw = torch.Generator().manual_seed(0)
    # A node is never its own neighbour.
    ids = torch.randint(1, total, (total, K), generator=draw)
    ids = ids.add_(torch.arange(total)[:, None]).remainder_(total)
    graph = Graph.of(ids, torch.rand((total, K), generator=draw))
    held = {"nodes": total, "features and graph, MB": peak()}
    layers = make_layers("gcn")
    with torch.no_grad(), timed(row, "inference"):
        outputs = forward(layers, x, graph)
    assert bool(outputs.isfinite().all())
    row["peak of inference, MB"] = peak()
    with timed(row, "first sums, once"):
        sampler = Sampler(layers, x, graph, fan_out=(10, 10), draw=draw)
    target = x[:SEEDS, :8].float().sum(dim=1)
    steps(sampler, target, 2)
    with timed(row, f"{STEPS} steps"):
        steps(sampler, target, STEPS)
    with torch.no_grad(), timed(row, "validation"):
        forward(layers, x, graph, first=sampler.first)
    return held | row | epoch_of(row) | {"peak, MB": peak()}


def search_all(work: Path, old: dict[str, Any], limit: float) -> dict[str, Any]:
    """All 1.28 M nodes' neighbours among all: as many as the limit allows, and scaled up."""
    begin, points, found = time.perf_counter(), all_points(work), {}
    total = len(points)
    with timed(found, "codes of all"):
        kind = kind_for("auto", total, total, DIM)
        finder = finder_for(points, points, K + 1, kind=kind)
    done, draw = 0, np.random.default_rng(0)
    found["found by"] = chosen_of(finder).to_dict()
    while done < total and time.perf_counter() - begin < limit:
        with timed(found, "searched"):
            edges_from(finder, points[np.sort(draw.integers(total, size=4096))], K + 1)
        done += 4096
    scaled = {key: round(s / done * total) for key, s in found["searched"].items()}
    return found | {"nodes searched": done, "all, scaled": scaled, "peak, MB": peak()}


def all_points(work: Path) -> NDArray[np.float16]:
    """Return seeds and rest as one array, in half precision as the graph network holds them."""
    points = np.empty((SEEDS + REST, DIM), dtype=np.float16)
    points[:SEEDS] = Stored(work / "seeds.f2", SEEDS)[:]
    for start in range(0, REST, BLOCK):
        block = Stored(work / "rest.f2", REST)[start : start + BLOCK]
        points[SEEDS + start :][: len(block)] = block
    return points


def epoch_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return what an epoch over nine tenths of the seeds costs, by the steps and one validation."""
    count = -(-(SEEDS - SEEDS // 10) // BATCH)
    spent = {
        key: round(row[f"{STEPS} steps"][key] / STEPS * count + s)
        for key, s in row["validation"].items()
    }
    return {"an epoch, scaled": spent, "steps in an epoch": count}


def shared(work: Path) -> dict[str, Any]:
    """32,768 seeds by 1, 2 and 4 ranks: what the busiest one spends."""
    rows: dict[str, Any] = {}
    for size in (1, 2, 4):
        (work / "group").unlink(missing_ok=True)
        multiprocessing.spawn(one_of, (size, work), nprocs=size)
        found = [json.loads((work / f"rank-{rank}.json").read_text()) for rank in range(size)]
        rows[f"{size} ranks"] = {
            name: max(row[name]["processor, s"] for row in found) for name in found[0]
        }
        print(size, rows[f"{size} ranks"], flush=True)
    return rows


def one_of(rank: int, size: int, work: Path) -> None:
    group = f"file://{(work / 'group').resolve()}"
    distributed.init_process_group("gloo", init_method=group, rank=rank, world_size=size)
    ranks, row, layers = Ranks(rank, size), {}, make_layers("gcn")
    few = seeds_of(work)[:32_768]
    with timed(row, "neighbours, processor s"):
        ids, weights = (torch.from_numpy(a) for a in knn_graph(few, K, ranks=ranks))
    x, graph = torch.from_numpy(few), Graph.of(ids, weights)
    draw = torch.Generator().manual_seed(0)
    with timed(row, "first sums, processor s"):
        sampler = Sampler(layers, x, graph, fan_out=(10, 10), draw=draw, ranks=ranks)
    with timed(row, "20 steps, processor s"):
        steps(sampler, x[:, :8].sum(dim=1), 20)
    with timed(row, "inference, processor s"):
        forward(layers, x, graph, ranks=ranks)
    (work / f"rank-{rank}.json").write_text(json.dumps(row))
    distributed.destroy_process_group()


WHOLE = {
    "points": make_points,
    "search": search,
    "train": train,
    "predict": predict,
    "one_graph": one_graph,
    "search_all": search_all,
}
