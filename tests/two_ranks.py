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


def loader_of(store, keep, tail, kind, accelerator):
    if kind == "pipeline":
        pipeline = wds.WebDataset(store.urls, shardshuffle=2)
        loader = DataLoader(pipeline, batch_size=4, collate_fn=ids_of, num_workers=1)
        return accelerator.prepare(ss.prune(loader, store, keep_set=keep, tail=tail))
    sampler = ss.PrunedShardSampler(store, keep_set=keep, tail=tail)
    loader = DataLoader(
        ss.ShardDataset(store), sampler=sampler, batch_size=4, collate_fn=ids_of, num_workers=1
    )
    return accelerator.prepare(loader) if kind == "prepared" else loader


def read(store, tail, kind, accelerator):
    """Read an epoch; return what this rank saw."""
    keep = ss.select(store, rule="random", keep_fraction=0.7)
    loader = loader_of(store, keep, tail, kind, accelerator)
    seen, gathered, ends, steps = [], [], [], 0
    for ids in loader:
        seen += ids.tolist()
        steps += 1
        ends.append(accelerator.gradient_state.end_of_dataloader)
        if tail == "pad" and kind != "plain":
            gathered += accelerator.gather_for_metrics(ids).tolist()
    result = {"world": accelerator.num_processes, "seen": seen, "gathered": gathered}
    result |= {"steps": steps, "promised": -(-len(keep) // 8), "keep": keep.ids().tolist()}
    if kind != "pipeline":
        assert len(loader) == steps
    return {**result, "ends": ends}


def main(store_path, out, *variants):
    accelerator = Accelerator(cpu=True)
    store = ss.open_store(store_path, mode="r")
    for variant in variants:
        result = read(store, *variant.split(), accelerator)
        Path(out, f"{variant} {accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
