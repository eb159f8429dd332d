"""Keep sets that move: a policy's choice as a keep set, and how many steps are to be expected."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Self

from shardsieve.keepset import KeepSet
from shardsieve.policy.base import Choice, Expected
from shardsieve.store.store import Store


def kept_of(store: Store, choice: Choice) -> KeepSet:
    """Return a choice as a keep set."""
    return replace(KeepSet.from_ids(store, store.ids()[choice.rows]), weights=choice.weights)


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
        bounds = [(min(max(round(e.kept), e.low), e.high), e.low, e.high) for e in epochs]
        rows = [tuple(map(steps, samples)) for samples in bounds]
        return cls._made(*(sum(row[i] for row in rows) for i in range(3)))

    @classmethod
    def _made(cls, expected: int, low: int, high: int) -> Self:
        count = cls(expected)
        count.low, count.high = low, high
        return count
