"""Who iterates the sampler: torch's `BatchSampler` alone, or Accelerate's split of it.

A torch sampler is not told the batch size nor that `accelerator.prepare` will deal its batches out
over ranks. Both decide where an epoch's tail must be cut, so the sampler looks at the frames that
ask it for ids. Nothing is patched; `batch_size=` and `world=` say the same thing explicitly.
"""

import sys
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Asking:
    """What the asking loader will do with the ids.

    Attributes:
        batch_size: Of one rank; None when nobody batches.
        dealt_over: Ranks over which Accelerate deals whole batches, 1 when it does not.
        rank: This process' number among those ranks.
    """

    batch_size: int | None = None
    dealt_over: int = 1
    rank: int = 0


def caller_of() -> Any:
    """Return the `self` of the method that called the caller of this function, if any."""
    return sys._getframe(2).f_locals.get("self")


def who_asks() -> Asking:
    """Return what the frames above the sampler's caller say."""
    batch_size, frame = None, sys._getframe(2)
    for _ in range(_DEPTH):
        owner = frame.f_locals.get("self")
        if isinstance(owner, BatchSamplerShard):
            size = owner.batch_sampler.batch_size
            if owner.split_batches:
                size //= owner.num_processes
            return Asking(size, owner.num_processes, owner.process_index)
        if type(owner) is BatchSampler:
            batch_size = owner.batch_size
        if frame.f_back is None:
            break
        frame = frame.f_back
    return Asking(batch_size)
