"""One of several real processes: train under policies, stop in mid-epoch and save, or go on."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import shardsieve as ss

EPOCHS, BATCH = 7, 4
STOP = 4, 2  # epoch, steps
POLICIES = {
    "infobatch": lambda: ss.InfoBatch(0.5, num_epochs=EPOCHS, seed=2),
    "ucb": lambda: ss.UCB(0.4, period=2, seed=2),
    "epsilon-greedy": lambda: ss.EpsilonGreedy(0.4, period=2, seed=2),
    "seta": lambda: ss.SeTa(0.1, alpha=0.6, num_epochs=EPOCHS, seed=2),
}


def loss_of(epoch, ids):
    """Losses as a network would give them: of the sample and the epoch, not of the batch."""
    losses = np.random.default_rng(epoch).gamma(2, 1, 10**4)
    if epoch == STOP[0]:
        losses[::3] = np.nan
    return losses[ids]


def trained(store, policy, state_path, *, stop, own=False):
    """Train; return what this process was given by epoch.

    Losses are joined before the state is saved. With `own`, where every process keeps one, only
    those of the epoch's first step are.
    """
    sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=BATCH)
    if state_path.exists():
        sampler.load_state_dict(torch.load(state_path, weights_only=True))
    loader = DataLoader(ss.ShardDataset(store), BATCH, sampler=sampler, collate_fn=list)
    epochs = {}
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        kept = sampler.keep_set.ids()
        here = {"keep": kept.tolist(), "seen": []}
        if sampler.keep_set.weights is not None:
            here["weights"] = sampler.keep_set.weights.tolist()
        epochs[str(epoch)] = here
        for number, batch in enumerate(loader, start=1):
            ids = np.array([sample["__id__"] for sample in batch if sample["__weight__"]])
            sampler.update(ids, loss_of(epoch, ids))
            here["seen"] += ids.tolist()
            if stop and epoch == STOP[0] and number == (1 if own else STOP[1]):
                policy.sync()
            if stop and (epoch, number) == STOP:
                torch.save(sampler.state_dict(), state_path)
                return epochs
    policy.sync()
    here["not_finite"] = policy.not_finite
    return epochs


def main(store_path, out, stop, own=""):
    accelerator = Accelerator(cpu=True)
    # Joined, a state is the same on every rank: any of them may be kept.
    last = accelerator.num_processes - 1
    mine = stop == "stop" and accelerator.process_index != last
    name_of = f"{{}}.{accelerator.process_index}.pt" if own or mine else "{}.pt"
    store = ss.open_store(store_path, mode="r")
    given = {}
    for name, make in POLICIES.items():
        state = Path(out, name_of.format(name))
        given[name] = trained(store, make(), state, stop=stop == "stop", own=bool(own))
        accelerator.wait_for_everyone()
    path = Path(out, f"{stop}-{accelerator.process_index}.json")
    path.write_text(json.dumps({"world": accelerator.num_processes, "given": given}))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
