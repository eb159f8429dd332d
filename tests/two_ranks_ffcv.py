"""One of two real processes: read a keep set with FFCV, write down the ids that this rank saw."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from ffcv.loader import Loader

import shardsieve as ss
from shardsieve.loaders.ffcv import prune_loader


def main(folder, out):
    torch.distributed.init_process_group("gloo")
    np.random.seed(torch.distributed.get_rank())  # noqa: NPY002  # FFCV draws a seed from it
    loader = Loader(
        f"{folder}/train.beton",
        batch_size=32,
        num_workers=1,
        distributed=True,
        drop_last=False,
        os_cache=False,
    )
    store = ss.open_store(f"{folder}/s.zarr", mode="r")
    seen = {}
    for how in ("pages", "loader"):
        pruned = prune_loader(loader, store, keep_fraction=0.655, rule="random", order=how)
        seen[how] = [[b.ids.tolist() for b in pruned] for _ in range(2)]
        assert len(pruned) == len(seen[how][0])
        states = [None, None]
        torch.distributed.all_gather_object(states, pruned.state_dict())
        assert states[0] == states[1]
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
