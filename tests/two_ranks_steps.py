"""One of two real processes: count steps, and what was promised, for every tail and rule."""

import json
import sys
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

import shardsieve as ss

EPOCHS = 4
KINDS = {
    "static": lambda: {"keep_fraction": 0.4, "rule": "random"},
    "random": lambda: {"policy": ss.RandomDynamic(0.4)},
    "ucb": lambda: {"policy": ss.UCB(0.4, period=2)},
    "infobatch": lambda: {"policy": ss.InfoBatch(0.5, num_epochs=EPOCHS)},
    "seta": lambda: {"policy": ss.SeTa(0.1, alpha=0.6, num_epochs=EPOCHS)},
}


def main(store_path, out):
    accelerator = Accelerator(cpu=True)
    store, rows = ss.open_store(store_path, mode="r"), []
    losses = np.random.default_rng(0).gamma(2, 1, 10**4)
    for tail in ("uneven", "pad", "drop"):
        for kind, make in KINDS.items():
            for prepared in (False, True):
                sampler = ss.PrunedShardSampler(store, tail=tail, batch_size=4, **make())
                planned = sampler.steps(EPOCHS)
                loader = DataLoader(ss.ShardDataset(store), 4, sampler=sampler, collate_fn=list)
                loader = accelerator.prepare(loader) if prepared else loader
                steps = 0
                for epoch in range(EPOCHS):
                    sampler.set_epoch(epoch)
                    expected = sampler.steps()
                    here = 0
                    for batch in loader:
                        ids = np.array([s["__id__"] for s in batch if s["__weight__"]], np.int64)
                        sampler.update(ids, losses[ids])
                        here += 1
                    assert here == expected == len(loader)
                    steps += here
                bounds = [planned.low, int(planned), planned.high]
                rows.append([tail, kind, prepared, steps, bounds])
    Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(rows))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
