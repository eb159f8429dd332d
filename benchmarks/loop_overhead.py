"""What the training loop adds to a bare PyTorch loop, what part of an epoch and joining take.

    python benchmarks/loop_overhead.py FOLDER

Fashion-MNIST, light network, batches of 64, no loader workers, one thread. Epochs of all kinds
alternate; a row is the median of `--rounds`. Processor seconds count, as the machine is shared;
wall seconds stand beside them. Joining is timed between two real processes. Writes
`records/loop_overhead.json`.
"""

import argparse
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import normalised
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loading import make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import light

RECORD = Path(__file__).parent / "records" / "loop_overhead.json"
JOINED = (60_000, 1_281_167)
KEPT = (0.7, 0.5, 0.3, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = opened(options)
    config = TrainConfig(epochs=1000, batch_size=64, size=28, channels=1)
    full = ss.select(store, keep_fraction=1.0)
    policy = ss.InfoBatch(0.0, num_epochs=1000)  # drops nothing: what joining the losses adds
    kinds: dict[str, Callable[[], Any]] = {
        "bare loop": bare_epochs(store, full, config).__next__,
        "loop": trained(store, full, config).__next__,
        "loop with a policy": trained(store, policy, config).__next__,
    }
    for fraction in KEPT:
        part = ss.select(store, rule="random", keep_fraction=fraction)
        kinds[f"loop, keep {fraction}"] = trained(store, part, config).__next__
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for number in range(options.rounds + 1):
        for name, epoch in kinds.items():
            cpu, wall = time.process_time(), time.perf_counter()
            epoch()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number:  # the first round warms up
                times[name].append(spent)
    rows = [row(name, taken, times) for name, taken in times.items()]
    joins = [joining(n) for n in JOINED]
    about = {"samples": len(store), "rounds": options.rounds, "cores": os.cpu_count()}
    RECORD.write_text(json.dumps({"about": about, "rows": rows, "joining": joins}, indent=1) + "\n")
    for one in (*rows, *joins):
        print(json.dumps(one))


def opened(options: argparse.Namespace) -> ss.Store:
    if not (options.folder / "shards" / "classes.json").is_file():
        pack("fashion-mnist", options.folder / "shards", samples_per_shard=1000, overwrite=True)
    shards = sorted(map(str, (options.folder / "shards").glob("train-*.tar")))
    return ss.index(shards[: options.samples // 1000], options.folder / "loop.zarr")


def bare_epochs(store: ss.Store, keep: Any, config: TrainConfig) -> Iterator[None]:
    """The loop that everybody writes, with the same loader and learning rates."""
    loader, sampler = make_loader(store, keep, config)
    model = light(10, 1)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10**6)
    for epoch in range(config.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for batch in loader:
            loss = cross_entropy(model(normalised(batch.images)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield


def trained(store: ss.Store, keep: Any, config: TrainConfig) -> Iterator[int]:
    trainer = Trainer(light(10, 1), store, keep, config, make_accelerator())
    return trainer.epochs()


def row(name: str, taken: list[Any], times: dict[str, list[Any]]) -> dict[str, Any]:
    bare = "loop" if name.startswith("loop, keep") else "bare loop"
    ratios = [[a[k] / b[k] for a, b in zip(taken, times[bare], strict=True)] for k in (0, 1)]
    return {
        "epoch": name,
        "cpu seconds": round(median(t[0] for t in taken), 3),
        "wall seconds": round(median(t[1] for t in taken), 3),
        "over": bare,
        "cpu ratio": round(median(ratios[0]), 3),
        "cpu ratios": [round(r, 3) for r in ratios[0]],
        "wall ratio": round(median(ratios[1]), 3),
    }


def joining(n: int) -> dict[str, Any]:
    """Join the losses of n samples over two processes, as `set_epoch` does once per epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    ranks = [spawn.Process(target=join, args=(rank, port, n, queue)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    seconds = [queue.get() for _ in ranks]
    for rank in ranks:
        rank.join()
    return {
        "losses": n,
        "processes": 2,
        "cpu seconds per epoch": round(max(s[0] for s in seconds), 3),
        "wall seconds per epoch": round(max(s[1] for s in seconds), 3),
    }


def join(rank: int, port: int, n: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    from shardsieve.policy.inbox import Inbox

    inbox, mine = Inbox(), np.arange(rank, n, 2)
    losses = np.random.default_rng(rank).gamma(2, 1, len(mine))
    inbox.load([mine[:0], losses[:0]])
    inbox._waiting = [
        (mine[at : at + 256], losses[at : at + 256]) for at in range(0, len(mine), 256)
    ]
    dist.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    inbox.join(None)
    rows, _ = inbox.take()
    assert len(rows) == n
    queue.put((time.process_time() - cpu, time.perf_counter() - wall))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
