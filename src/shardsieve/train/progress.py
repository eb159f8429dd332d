"""How far a run is, and what it took so far."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from shardsieve.cost import NO_COST, Cost

_ROOM = 65_536  # samples


class Progress(Protocol):
    """Told how far a run is."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Take in what is done, of how much, and what there is to say beside it."""
        ...


@dataclass
class Done:
    """What a run has done so far, over all ranks and starts.

    Attributes:
        epoch: Finished epochs.
        place: Samples done in the epoch that follows.
        steps: Optimiser steps.
        loss: Sum of the samples' losses in the epoch that follows, over all ranks.
        summed: How many samples those are.
        training: What training took; the samples of an epoch count when it is finished.
        evaluation: What evaluation took.
        history: One row per finished epoch.
    """

    epoch: int = 0
    place: int = 0
    steps: int = 0
    loss: float = 0.0
    summed: int = 0
    training: Cost = NO_COST
    evaluation: Cost = NO_COST
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Samples trained on in finished epochs."""
        return sum(row["kept"] for row in self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` wrote."""
        costs = {name: Cost(**values[name]) for name in ("training", "evaluation")}
        return cls(**{**values, **costs})


class Losses:
    """Losses of samples since they were last taken, in one tensor.

    A tensor of every step would hold on to the memory around it, which that step's images and
    gradients have left: on a CPU nearly a megabyte per step, until the epoch ends.
    """

    def __init__(self) -> None:
        self._held, self._count = torch.empty(0, 2), 0

    def add(self, losses: Tensor, counts: Tensor) -> None:
        """Take in those of a step, on the device of the ones before.

        Args:
            losses: (n,).
            counts: bool (n,): whether each is of a sample, not of what fills a batch up.
        """
        end = self._count + len(losses)
        if end > len(self._held):
            larger = torch.empty(max(_ROOM, 2 * end), 2, device=losses.device)
            larger[: self._count] = self._held[: self._count]
            self._held = larger
        self._held[self._count : end, 0] = losses
        # Beside them: to leave some out here, the host would wait for the device in every step.
        self._held[self._count : end, 1] = counts
        self._count = end

    def take(self) -> Tensor:
        """Return those that count, float64 (n,), and forget all."""
        # On the CPU: not every device has float64.
        losses, counts = self._held[: self._count].cpu().double().unbind(dim=1)
        self._count = 0
        return losses[counts > 0]
