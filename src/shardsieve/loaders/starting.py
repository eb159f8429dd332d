"""Where the passes of a pruned pipeline start, told by one process and heard by its workers."""

from typing import NamedTuple

import torch
from torch.utils.data import get_worker_info

from shardsieve.loaders.shared import shared


class Start(NamedTuple):
    """Where a pass starts.

    Attributes:
        epoch: Of the pass.
        place: Samples of its order that were done before, over all ranks.
        block: The global batch that the epoch began with; 0 where nobody has told it.
    """

    epoch: int
    place: int = 0
    block: int = 0


class Starts:
    """The start that was told last, also to running workers; passes in a row are epochs in a row.

    Workers make the passes of a loader, or whoever iterates the pipeline itself.
    """

    def __init__(self) -> None:
        self._start, self._times = shared(torch.tensor([*Start(0)])), shared(torch.tensor([0]))
        # At how many tellings workers, this process and a loader of it began their last pass.
        self._by_workers = shared(torch.tensor([-1]))
        self._heard, self._by_loader = -1, -1
        self._begun = Start(0)  # where the last epoch of this process began

    def tell(self, start: Start) -> None:
        """Let the next pass start here."""
        self._start[:] = torch.tensor(start)
        self._times += 1

    @property
    def told(self) -> Start:
        """What was told last."""
        return Start(*self._start.tolist())

    @property
    def under_way(self) -> Start:
        """Where this process' epoch started, or where its first one will."""
        return self._begun if self._heard == self._now else self.told

    @property
    def coming(self) -> Start:
        """Where the next pass of this process will start."""
        # A loader tells each pass, of which its workers may hear while still busy with one before.
        told_each = get_worker_info() is not None and self._by_loader >= 0
        follows = self._heard == self._now and not told_each
        return Start(self._begun.epoch + 1) if follows else self.told

    def begin(self, *, on: bool = False) -> Start:
        """Begin an epoch of this process.

        Args:
            on: Whether its pass goes on with it: what was told meanwhile is of the next pass.
        """
        if not on and get_worker_info() is not None:
            self._by_workers[:] = self._times
        self._begun = Start(self._begun.epoch + 1) if on else self.coming
        self._heard = self._heard if on else self._now
        return self._begun

    def begin_by_loader(self) -> None:
        """Begin a pass of a loader, which its workers may make."""
        self._by_loader = self._now

    @property
    def begun_by_loader(self) -> bool:
        """Whether a loader has begun a pass since the last telling."""
        return self._by_loader == self._now

    @property
    def begun_by_workers(self) -> bool:
        """Whether workers have begun one."""
        return bool(self._by_workers == self._times)

    @property
    def begun(self) -> bool:
        """Whether anybody has begun one: a loader, its workers or this process."""
        return self._now in (self._by_loader, self._heard) or self.begun_by_workers

    @property
    def _now(self) -> int:
        return int(self._times)
