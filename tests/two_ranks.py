"""One of two real processes: read an epoch and write down the ids that this rank saw."""

import json
import sys
from pathlib import Path

import torch
import webdataset as wds
from accelerate import Accelerator
from torch.utils.data import DataLoader

import shardsieve as ss


def ids_of(samples):
    return torch.tensor([sample["__id__"] for sample in samples])


def main(store_path, out, tail, prepared):
    accelerator = Accelerator(cpu=True)
    store = ss.open_store(store_path, mode="r")
    keep = ss.select(store, rule="random", keep_fraction=0.7)
    if prepared == "pipeline":
        pipeline = wds.WebDataset(store.urls, shardshuffle=2)
        loader = DataLoader(pipeline, batch_size=4, collate_fn=ids_of, num_workers=1)
        loader = accelerator.prepare(ss.prune(loader, store, keep_set=keep, tail=tail))
    else:
        sampler = ss.PrunedShardSampler(store, keep_set=keep, tail=tail)
        loader = DataLoader(
            ss.ShardDataset(store), sampler=sampler, batch_size=4, collate_fn=ids_of, num_workers=1
        )
    if prepared == "prepared":
        loader = accelerator.prepare(loader)
    seen, gathered, ends, steps = [], [], [], 0
    for ids in loader:
        seen += ids.tolist()
        steps += 1
        ends.append(accelerator.gradient_state.end_of_dataloader)
        if tail == "pad" and prepared != "plain":
            gathered += accelerator.gather_for_metrics(ids).tolist()
    result = {"world": accelerator.num_processes, "seen": seen, "gathered": gathered}
    result |= {"steps": steps, "promised": -(-len(keep) // 8), "keep": keep.ids().tolist()}
    result["ends"] = ends
    if prepared != "pipeline":
        assert len(loader) == steps
    Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
