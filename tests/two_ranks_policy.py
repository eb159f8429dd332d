"""One of two real processes: prune by losses and write down what this rank was given."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import shardsieve as ss


def ids_of(samples):
    return torch.tensor([sample["__id__"] for sample in samples])


def main(store_path, out):
    accelerator = Accelerator(cpu=True)
    store = ss.open_store(store_path, mode="r")
    policy = ss.InfoBatch(num_epochs=6, seed=2)
    sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=4)
    loader = DataLoader(ss.ShardDataset(store), sampler=sampler, batch_size=4, collate_fn=ids_of)
    loader = accelerator.prepare(loader)
    losses = np.random.default_rng(0).gamma(2, 1, (6, len(store)))
    if not accelerator.is_main_process:
        sampler.update(store.ids()[:9], losses[0][:9])
    policy.sync()  # one rank saw something, and one nothing
    epochs, asked = [], None
    for epoch in range(6):
        sampler.set_epoch(epoch)
        if accelerator.is_main_process and asked is not None:
            torch.save(asked, Path(out, f"before{epoch}.pt"))
        asked = policy.latest_state()  # as torchdata's loader does
        seen = []
        for ids in loader:
            sampler.update(ids, losses[epoch][store.rows(ids.numpy())])
            seen += ids.tolist()
        epochs.append({"seen": seen, "keep": sampler.keep_set.ids().tolist()})
    result = {"world": accelerator.num_processes, "epochs": epochs}
    Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
