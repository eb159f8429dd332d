"""One of several real processes: fit graph networks and extrapolate stores, together or alone."""

import pathlib
import sys

import numpy as np

from shardsieve.commands.appending import append_score
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.filling import ranks_of
from shardsieve.extrapolate import GNN
from shardsieve.store import open_store
from shardsieve.train.ending import end_processes
from shardsieve.train.launch import make_accelerator

# A last batch of one root, of which one rank has none; neighbours are drawn.
HOW = {"k": 6, "epochs": 3, "fan_out": (4, 4), "batch_size": 18}
SEEDS = 61


def clouds():
    """Points on a line in 4 dimensions, and a score that varies smoothly along it."""
    generator = np.random.default_rng(0)
    along = generator.uniform(0, 6, 160)
    points = np.stack([along, np.sin(along), np.cos(along), along / 2], axis=1)
    return (points + generator.normal(0, 0.05, points.shape)).astype("f4"), np.sin(along)


def predictions(ranks):
    """What each network predicts of the rest, by its name."""
    points, values = clouds()
    found = {}
    for layer in ("gcn", "sage", "gat"):
        model = GNN(layer=layer, ranks=ranks, **HOW)
        model.fit(points[:SEEDS], values[:SEEDS], rest=points[SEEDS:])
        found[f"{layer}, rest"] = model.predict_rest()
    model = GNN(ranks=ranks, **HOW).fit(points[:SEEDS], values[:SEEDS])
    found["all"] = model.predict(points[SEEDS:])
    for layer in ("gcn", "gat"):
        model = GNN(graph="seeds", layer=layer, ranks=ranks, **HOW)
        model.fit(points[:SEEDS], values[:SEEDS])
        found[f"{layer}, seeds"] = model.predict(points[SEEDS:])
    return found


def main(store, out):
    fetched = []  # the names of classes
    sys.addaudithook(
        lambda event, what: event == "open" and "classes.json" in str(what[0]) and fetched.append(1)
    )
    accelerator = make_accelerator()
    rank = accelerator.process_index
    found = predictions(ranks_of(accelerator))
    for graph in ("all", "seeds"):
        how = {"method": "gnn", "k": 6, "folds": 2, "graph": graph}
        made = extrapolate_score(pathlib.Path(store), "seed", graph, "e", **how)
        found[f"{graph}, stored"] = open_store(store, mode="r").score(graph)
        found[f"{graph}, pearson"] = np.array(made["pearson"])
    accelerator.wait_for_everyone()  # until all have read what is spoilt now
    if rank == 0:
        open_store(store).score_array("seeds")[1, 2:4] = np.nan  # two of the rest
    accelerator.wait_for_everyone()
    assert append_score(pathlib.Path(store), "seeds")["predicted"] == 2
    found["seeds, appended"] = open_store(store, mode="r").score("seeds")
    assert bool(fetched) == accelerator.is_main_process
    np.savez(f"{out}/{accelerator.num_processes}_{rank}.npz", **found)
    end_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
