"""What the worker processes of a loader know together."""

import torch


class SharedIds:
    """A small set of sample ids in shared memory, filled by the workers of one loader.

    Attributes:
        most: Ids it holds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._slots = torch.full((max(most, 1),), -1, dtype=torch.int64)
        self._slots.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, sample_id: int) -> bool:
        """Put an id in, if it is not there; return whether there was room."""
        # Each id has its own first slot: workers hardly ever meet, and then one id is put in later.
        for step in range(self.most):
            slot = (sample_id + step) % self.most
            if int(self._slots[slot]) in (-1, sample_id):
                self._slots[slot] = sample_id
                return True
        return False

    def ids(self) -> list[int]:
        """Return the ids, ascending."""
        return sorted({i for i in self._slots.tolist() if i >= 0})
