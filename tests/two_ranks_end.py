"""One of two real processes: end while a thread of the group has yet to get at Python's lock."""

import mmap
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from shardsieve.train.launch import make_accelerator


def main(path):
    accelerator = make_accelerator()
    network = accelerator.prepare(torch.nn.Linear(2, 1))
    network(torch.ones(1, 2)).sum().backward()
    gathered, mine = [torch.zeros(1), torch.zeros(1)], torch.ones(1)
    with Path(path).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 1)
    dist.barrier()
    if accelerator.process_index == 0:
        time.sleep(0.5)
        dist.all_gather(gathered, mine)
        shared[0] = 1
        accelerator.end_training()
        return
    # From here on no other thread gets the lock. The group's lets go of these tensors once the
    # other rank has come, for which it needs it; then the network goes.
    sys.setswitchinterval(1000)
    work = dist.all_gather(gathered, mine, async_op=True)
    del work, gathered, mine
    accelerator.end_training()
    while not shared[0]:
        pass
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
