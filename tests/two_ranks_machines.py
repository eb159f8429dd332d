"""One of two ranks of one launch, each in a folder of its own, as on a machine of its own.

Writes what the checks of a launch refused, and that all ranks are still in step afterwards.
"""

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from accelerate.utils import gather_object
from tars import write_shards

import shardsieve as ss
from shardsieve._errors import MissingDependencyError
from shardsieve.commands.running import run_recipe
from shardsieve.commands.scoring import score_unsupervised_store
from shardsieve.commands.sources import store_of
from shardsieve.train import machines, subset
from shardsieve.train.config import TrainConfig
from shardsieve.train.ending import end_processes
from shardsieve.train.launch import make_accelerator
from shardsieve.train.machines import check_same, check_shared, enter_run, on_all, open_together
from shardsieve.train.runfolder import RunFolder

TURTLE = {"seed_fraction": 1.0, "per_class": False, "embedding": None, "classes": 2, "seed": 0}
TURTLE |= {"window": 3, "scores": None, "epochs": 4}


def refused(call):
    try:
        call()
    except (ss.ShardsieveError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def bad_on(bad, rank):
    if rank in bad:
        raise ValueError("no luck")


def without_scipy_on(bad, rank, accelerator, store):
    def need_matching():
        if rank == bad:
            raise MissingDependencyError("scipy is missing")

    subset.need_matching = need_matching
    opened = ss.open_store(store, mode="r")
    keep = ss.select(opened, rule="random", keep_fraction=0.5)
    config = TrainConfig(epochs=1, size=8, channels=1, pseudo_labels="mine")
    how = {"folder": "run", "accelerator": accelerator, "test": opened}
    subset.train_subset(opened, keep, config, **how)


def main(store, shared):
    accelerator = make_accelerator()
    rank = accelerator.process_index
    own = Path(shared, f"machine{rank}")
    shutil.copytree(store, own / "copy.zarr")
    if rank == 0:
        shutil.copytree(store, own / "alone.zarr")
    ss.index(write_shards(own / "other", [3 + rank]), own / "other.zarr")
    os.chdir(own)
    machines._SECONDS = 0.2  # these folders are not slow to be seen
    for name, seed in (("same", 0), ("other", rank)):
        train = f"{{seed: {seed}}}\nselect: {{rule: random}}\n"
        Path(f"{name}.yaml").write_text(f"work: work\ndata: {{store: {store}}}\ntrain: {train}")
    opened, run = partial(open_together, accelerator), RunFolder(Path(shared, "new/run"))
    calls = {
        "all see it": partial(check_shared, accelerator, {"run": Path(shared, "new/run")}),
        "own folder": partial(enter_run, accelerator, RunFolder("runs/half"), {"epochs": 1}),
        "store to write": partial(opened, Path("copy.zarr")),
        "store to read": partial(opened, Path("copy.zarr"), mode="r"),
        "shards of a copy": partial(store_of, ss.open_store(store).urls[0], Path("copy.zarr")),
        "shards of none": partial(store_of, ss.open_store(store).urls[0], Path("new.zarr")),
        "store of one": partial(opened, Path("alone.zarr"), mode="r"),
        "other store": partial(opened, Path("other.zarr"), mode="r"),
        "nobody can write": partial(check_shared, accelerator, {"run": Path("/proc/nothing/here")}),
        "same": partial(check_same, accelerator, {"seed": 0, "rate": 0.1}),
        "other rate": partial(check_same, accelerator, {"seed": 0, "rate": 0.1 + rank}),
        "one says more": partial(check_same, accelerator, {"a": 0, "b": 0} if rank else {"a": 0}),
        "other run": partial(enter_run, accelerator, run, {"epochs": 1 + rank}),
        "bad on one": partial(on_all, accelerator, partial(bad_on, [1], rank)),
        "bad on all": partial(on_all, accelerator, partial(bad_on, [0, 1], rank)),
        "part of one": partial(without_scipy_on, 1, rank, accelerator, store),
        "taken name": partial(score_unsupervised_store, Path(store), name="mine", **TURTLE),
        "own work": partial(run_recipe, Path("same.yaml")),
        "own recipe": partial(run_recipe, Path("other.yaml")),
    }
    said = {}
    for name, call in calls.items():
        said[name] = refused(call)
        assert gather_object([name]) == [name] * 2
    Path(shared, f"{rank}.json").write_text(json.dumps(said))
    end_processes()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
