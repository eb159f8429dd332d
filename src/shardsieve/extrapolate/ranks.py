"""The ranks that make one computation together."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One rank's place among those that make one computation together; by default it is alone.

    All ranks make the same calls in the same order with the same arguments. Of n rows each makes
    its `share(n)`, and `complete` hands it to the others, so that results are equal on all.

    Attributes:
        rank: This one, in `[0, size)`.
        size: How many there are. More than one need torch's process group, as `accelerate launch`
            starts it.
        device: What the group sends from: `cpu` for Gloo, a GPU for NCCL.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(
                f"rank must lie in [0, {self.size}) for {self.size} ranks, got {self.rank}; "
                "take both from the Accelerator"
            )

    @property
    def gpu(self) -> str:
        """The device if it is a CUDA one, else `cpu`: where to search, and to train on graphs."""
        return self.device if self.device.startswith("cuda") else "cpu"

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return the rows of this rank or another; over all ranks each of `count` rows once.

        >>> [Ranks(rank, 3).share(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        place = self.rank if rank is None else rank
        return slice(count * place // self.size, count * (place + 1) // self.size)

    def complete(self, rows: Tensor) -> Tensor:
        """Fill the rows of other ranks' shares with what they hold there, and return the rows."""
        for rank in range(self.size if self.size > 1 else 0):
            part = rows[self.share(len(rows), rank)]
            if len(part):
                sent = part.to(self.device)
                dist.broadcast(sent, src=rank)
                if sent is not part:
                    part.copy_(sent)
        return rows

    def agree(self, number: float) -> float:
        """Return one rank's number on all, lest rounding on other hardware parts their ways."""
        return float(self.complete(torch.tensor([number], dtype=torch.float32))[0])

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Put the sum over all ranks in place of every gradient."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).to(self.device)
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


ALONE = Ranks()
