"""One of several real processes: train an epoch, write down every step's ids, save after steps."""

import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import shardsieve as ss


def ids_of(samples):
    return torch.tensor([s["__id__"] for s in samples if s["__weight__"]], dtype=torch.int64)


def main(store_path, out, start, kind, end):
    """Go on from the state file `start`, if it is there, and log to `out`.

    With `waits` as its end it never makes the last step: whoever kills it is not too late.
    """
    accelerator, out = Accelerator(cpu=True), Path(out)
    store = ss.open_store(store_path, mode="r")
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.7, rule="random", seed=4, groups=2)
    if Path(start).exists():
        sampler.load_state_dict(json.loads(Path(start).read_text()))
    data = ss.ShardDataset(store)
    loader = DataLoader(data, 4, sampler=sampler, collate_fn=ids_of, num_workers=2)
    loader = accelerator.prepare(loader) if kind == "prepared" else loader
    with (out / f"rank{accelerator.process_index}.jsonl").open("w") as log:
        for step, ids in enumerate(loader, start=1):
            if end == "waits":
                time.sleep(0.05 if step < len(loader) else 600)
            # All ranks meet in every step, as in training: unequal steps would hang.
            accelerator.reduce(torch.ones(1), "sum")
            log.write(json.dumps(ids.tolist()) + "\n")
            log.flush()
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                partial = out / "state.partial"
                partial.write_text(json.dumps(sampler.state_dict()))
                os.replace(partial, out / "state.json")  # noqa: PTH105
    (out / f"done{accelerator.process_index}of{accelerator.num_processes}").touch()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
