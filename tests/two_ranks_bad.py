"""One of several real processes: a loop in which one rank is given something bad."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

import shardsieve as ss
from shardsieve.cli import run

BATCH, EPOCHS = 4, 4


def together(out, work):
    """Work; a rank that stops waits for the others to stop too, which only all of them end."""
    try:
        work()
    except (ValueError, ss.ShardsieveError) as error:
        Path(out, f"{dist.get_rank()}.stopped").write_text(type(error).__name__)
        dist.barrier()
        raise


def main(store_path, out, kind):
    accelerator = Accelerator(cpu=True)
    rank, last = accelerator.process_index, accelerator.num_processes - 1
    store = ss.open_store(store_path, mode="r")
    policy = ss.InfoBatch(num_epochs=EPOCHS, seed=2)
    sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=BATCH)
    if kind == "state":
        state = sampler.state_dict()
        state["policy"]["store"] = store.fingerprint if rank < last else "another"
        sampler.load_state_dict(state)
    if kind == "nothing":
        sampler.load_state_dict(sampler.state_dict() if rank < last else None)
    if kind == "score":
        policy.to_score("no/name")
    if kind == "mended":
        gone_on_from_before(sampler, rank == last)
    for epoch in range(EPOCHS + (kind == "schedule")):
        sampler.set_epoch(epoch)
        ids = np.fromiter(sampler, np.int64)
        for number, part in enumerate(np.array_split(ids, range(BATCH, len(ids), BATCH))):
            # All ranks meet in every step, as in training.
            accelerator.reduce(torch.ones(1), "sum")
            bad = kinds_at(number, kind) if (rank, epoch) == (last, 1) else ""
            sampler.update(*spoilt(bad, part.copy(), 1.0 + part % 7, store))
    policy.sync()
    said = {"not_finite": policy.not_finite, "kept": policy.choose(EPOCHS - 1).rows.tolist()}
    Path(out, f"{rank}.json").write_text(json.dumps(said))


def gone_on_from_before(sampler, is_last):
    """Be refused by all ranks for what one was given, and load a state from before that."""
    state, ids = sampler.state_dict(), np.arange(4)
    sampler.update(*spoilt("length" if is_last else "", ids, np.ones(4), sampler.store))
    with pytest.raises(ValueError, match="losses must have one value per id"):
        sampler.policy.sync()
    sampler.load_state_dict(state)


def kinds_at(number, kind):
    """How the losses of a step are bad: of `both`, those of two steps."""
    if kind == "both":
        return {1: "length", 2: "twice"}.get(number, "")
    return kind if number == 1 else ""


def spoilt(kind, ids, losses, store):
    if kind == "length":
        return ids, losses[:-1]
    if kind == "outside":
        ids[0] = store.num_shards * store.rows_per_shard
    if kind == "twice":
        ids[0] = ids[1]
    if kind == "nan":
        losses[0] = np.nan
    return ids, losses


if __name__ == "__main__":
    sys.exit(run(lambda: together(sys.argv[2], lambda: main(*sys.argv[1:]))))
