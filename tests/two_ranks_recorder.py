"""One of two real processes: record the same samples as one process does, each rank its share."""

import sys

import numpy as np
import torch
import torch.distributed as dist

from shardsieve.train import Recorder
from shardsieve.train.launch import make_accelerator

# Beyond 2**24 and 2**53 neighbours are one number as a float32 and as a float64.
IDS = np.array([3, 2**24, 2**24 + 1, 2**40 + 7, 2**53, 2**53 + 1, 2**53 + 2, 2**62 + 1])
CLASSES, EPOCHS = 5, 6


def outputs(epoch):
    """Logits and labels of all samples, the same in every process; one sample is missed."""
    generator = torch.Generator().manual_seed(epoch)
    logits = torch.randn(len(IDS), CLASSES, generator=generator)
    shown = torch.randperm(len(IDS), generator=generator)
    return logits, torch.arange(len(IDS)) % CLASSES, shown[shown != 1] if epoch == 3 else shown


def record(recorder, epoch, rank, world, part=slice(None)):
    """Record this rank's share of an epoch, one sample at a time."""
    logits, labels, shown = outputs(epoch)
    for row in shown[part][rank::world].tolist():
        one = slice(row, row + 1)
        recorder.record(torch.from_numpy(IDS[one]), logits[one], labels[one])


def main(out):
    accelerator = make_accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    assert world == 2
    recorder = Recorder(IDS, CLASSES)
    for epoch in range(EPOCHS):
        if epoch == 2:
            # Stopped in mid-epoch and gone on: the second half is dealt out anew.
            record(recorder, epoch, rank, world, slice(0, 3))
            state = recorder.state_dict()
            recorder = Recorder(IDS, CLASSES)
            recorder.load_state_dict(state)
            record(recorder, epoch, 1 - rank, world, slice(3, None))
        else:
            record(recorder, epoch, rank, world)
        if epoch == 4:
            # A padded step: both ranks show a sample that one of them has shown before.
            logits, labels, _ = outputs(epoch)
            recorder.record(torch.from_numpy(IDS[:1]), logits[:1] + 9.0 * rank, labels[:1])
        recorder.end_epoch()
    torch.save(recorder.state_dict(), f"{out}/{rank}.pt")
    dist.barrier()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
