"""Keep sets that move: a policy's choice as a keep set, its weights for the loader's workers."""

from collections.abc import Callable, Iterable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from shardsieve.keepset import KeepSet
from shardsieve.policy.base import Choice, Expected
from shardsieve.store.store import Store


def put_choice(store: Store, choice: Choice) -> KeepSet:
    """Return a choice as a keep set, and show its weights to running loader workers."""
    show_weights(store, choice.rows, choice.weights)
    return KeepSet.from_ids(store, store.ids()[choice.rows])


def with_weights_shown(store: Store, keep: KeepSet) -> KeepSet:
    """Return a keep set whose weights, if it has any, the loader's workers see."""
    if keep.weights is not None:
        show_weights(store, store.rows(keep.ids()), keep.weights)
    return keep


def show_weights(
    store: Store, rows: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> None:
    """Give running loader workers the weights of these rows; all others weigh 1.

    `store.epoch_weights` is a float32 tensor (n,) in shared memory, filled anew for each epoch.
    """
    if store.epoch_weights is None:
        # Before the first weights are needed: workers that run already must see them.
        store.epoch_weights = torch.ones(len(store)).share_memory_()  # type: ignore[no-untyped-call]
    store.epoch_weights.fill_(1)
    if weights is not None:
        store.epoch_weights[torch.from_numpy(rows)] = torch.from_numpy(weights)


class StepCount(int):
    """A number of steps; an int for schedules, with bounds where it is only expected.

    Attributes:
        low: There are never fewer.
        high: Nor more.
    """

    low: int
    high: int

    @classmethod
    def exactly(cls, steps: int) -> Self:
        """Return a count that is known."""
        return cls._made(steps, steps, steps)

    @classmethod
    def over(cls, epochs: Iterable[Expected], steps: Callable[[int], int]) -> Self:
        """Return the count over epochs, each of as many steps as its samples make."""
        rows = [(steps(round(e.kept)), steps(e.low), steps(e.high)) for e in epochs]
        return cls._made(*(sum(row[i] for row in rows) for i in range(3)))

    @classmethod
    def _made(cls, expected: int, low: int, high: int) -> Self:
        count = cls(expected)
        count.low, count.high = low, high
        return count
