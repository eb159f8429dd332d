"""The ledger: what the workers of a loader read, in shared memory."""

from dataclasses import astuple

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from shardsieve.io.counts import Counts
from shardsieve.loaders.shared import shared
from shardsieve.policy.inbox import world_size

# More than any machine runs: two in one row would lose counts. Torch copies 32 KiB and more with
# OpenMP, which hangs in a process that was forked after its parent had used it.
_WORKERS = 1000


class Ledger:
    """Bytes kept and read, requests and retries, of every worker of a loader.

    Row 0 is the main process, row 1 + w worker w. Only the process of a row writes it.
    """

    def __init__(self) -> None:
        self._rows = shared(torch.zeros((1 + _WORKERS, 4), dtype=torch.int64))

    def add(self, counts: Counts) -> None:
        """Add what this process read."""
        info = get_worker_info()
        row = 0 if info is None else 1 + info.id % _WORKERS
        self._rows.numpy()[row] += (counts.kept, counts.read, counts.requests, counts.retries)

    @property
    def total(self) -> Counts:
        """What this rank read."""
        return Counts(*self._rows.sum(dim=0).tolist())

    @property
    def workers(self) -> list[Counts]:
        """What the main process and each worker read, up to the last one that read anything."""
        used = int((self._rows.any(dim=1).nonzero().max() + 1) if self._rows.any() else 0)
        return [Counts(*row) for row in self._rows[:used].tolist()]

    def over_ranks(self) -> Counts:
        """Return what all ranks read; every rank must call it."""
        if world_size() == 1:
            return self.total
        found: list[tuple[int, ...]] = [()] * world_size()
        dist.all_gather_object(found, astuple(self.total))
        return sum((Counts(*one) for one in found), Counts())
