"""How far a run is, and what it took so far."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

from shardsieve.cost import NO_COST, Cost


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
