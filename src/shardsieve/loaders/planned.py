"""What the loaders of kept samples share: the order they follow, its name, and ids with hints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import StoreMismatchError
from shardsieve.epoch import SHUFFLES, EpochOrder, Places, default_window
from shardsieve.keepset import KeepSet
from shardsieve.loaders.pages import ordered_rows
from shardsieve.order import is_whole
from shardsieve.scores.inputs import one_of, whole_number
from shardsieve.store.store import Store

Ids = NDArray[np.int64]

# Looking into a shard costs as much for one place of it as for all.
_AT_ONCE = 16_384


class PlannedId(int):
    """A sample id that says more to whoever reads it; anywhere else it is a plain integer.

    Attributes:
        weight: Loss weight of the sample; 0 where it only fills up a batch.
        score: Name of the score that the samples of this batch carry, or None.
        ahead: int64 ids of the batch that this worker will be asked for next, or None.
    """

    weight: float
    score: str | None
    ahead: Ids | None

    def __new__(
        cls,
        value: int,
        weight: float = 1.0,
        score: str | None = None,
        ahead: Ids | None = None,
    ) -> "PlannedId":
        """Return the id with its hints."""
        made = super().__new__(cls, value)
        made.weight, made.score, made.ahead = weight, score, ahead
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return PlannedId, (int(self), self.weight, self.score, self.ahead)


def weighted_ids(keep: KeepSet, ids: Ids) -> list[int]:
    """Return kept ids as integers that carry their weights, where these are not 1."""
    weights, plain = keep.weights_of(ids), list[int](ids.tolist())
    if weights is None:
        return plain
    pairs = zip(plain, weights.tolist(), strict=True)
    return [one if weight == 1 else PlannedId(one, weight) for one, weight in pairs]


@dataclass(frozen=True, slots=True)
class OrderSettings:
    """What decides the order of every epoch, besides the keep set.

    Attributes:
        seed: Any integer.
        shuffle: `window`, `global` or `none`; see `EpochOrder`.
        window: Shards shuffled together; 0 is no shuffling, None what fills the space of 16 whole
            shards.
        groups: Locality groups; see `EpochOrder`.
    """

    seed: int
    shuffle: str = "window"
    window: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        one_of("shuffle", self.shuffle, SHUFFLES)
        if not is_whole(self.seed):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        if self.window is not None and not (is_whole(self.window) and self.window >= 0):
            raise ValueError(f"window must be at least 0 shards, got {self.window!r}")
        if not is_whole(self.groups) or self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups!r}")

    @property
    def name(self) -> str:
        """Stands for the settings in a saved state."""
        size = "" if self.shuffle != "window" else "auto" if self.window is None else self.window
        groups = f"/groups{self.groups}" if self.groups > 1 else ""
        return f"seed{self.seed}/{self.shuffle}{size}{groups}"

    def epoch(self, keep: KeepSet, num_samples: int, epoch: int, block: int) -> EpochOrder:
        """Return one epoch's order of a keep set of a store of so many samples."""
        window = default_window(num_samples, len(keep)) if self.window is None else self.window
        shuffle = "none" if window == 0 else self.shuffle
        how = {"shuffle": shuffle, "groups": self.groups, "block": block}
        return EpochOrder(keep.counts, self.seed, epoch, window, **how)  # type: ignore[arg-type]


def ordered_ids(keep: KeepSet, order: EpochOrder, start: int = 0) -> Iterator[Ids]:
    """Yield the sample ids of an order from place `start` on, in parts."""
    for shard, ordinal in _joined(order.windows(start)):
        yield keep.ids_at(shard, ordinal)


def _joined(parts: Iterator[Places]) -> Iterator[Places]:
    """Yield the same places in larger parts: those of locality groups are single steps."""
    held, size = list[Places](), 0
    for part in parts:
        held.append(part)
        size += len(part[0])
        if size >= _AT_ONCE:
            yield _one(held)
            held, size = [], 0
    if held:
        yield _one(held)


def _one(parts: list[Places]) -> Places:
    shard, ordinal = (np.concatenate(column) for column in zip(*parts, strict=True))
    return shard, ordinal


def ids_of_epoch(
    store: Store, keep: KeepSet, settings: OrderSettings, epoch: int, block: int, start: int = 0
) -> Iterator[Ids]:
    """Yield the ids of one epoch from place `start` on; windows of a `.beton` are of pages."""
    if store.kind == "ffcv" and settings.shuffle == "window" and settings.groups == 1:
        how = {"seed": settings.seed, "epoch": epoch}
        return iter([ordered_rows(store, keep.ids(), **how, window=settings.window)[start:]])
    return ordered_ids(keep, settings.epoch(keep, len(store), epoch, block), start)


def checked_epoch(epoch: Any) -> int:
    """Return what may be chosen as an epoch.

    Raises:
        ValueError: If it is no whole number, or below 0.
    """
    if not is_whole(epoch):
        raise ValueError(f"epoch must be a whole number, got {epoch!r}")
    if epoch < 0:
        raise ValueError(f"epoch must be at least 0, got {epoch}; the first one is 0")
    return int(epoch)


def refuse_another_plan(state: Any, own: str, what: str) -> None:
    """Check that something is a saved state, and of this plan.

    Raises:
        StoreMismatchError: If it is of another plan, showing both.
        ValueError: If it is no state at all, or lacks a place.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"state must be what state_dict of a {what} returned, got {state!r}")
    if state.get("plan") != own:
        raise StoreMismatchError(
            f"the {what}'s state belongs to another plan\n  state: {state.get('plan')}\n"
            f"  {what}: {own}\nuse the store, keep set, seed, shuffle and window of then"
        )
    for name in ("epoch", "samples_done"):
        whole_number(f"{name} of the {what}'s state", state.get(name), 0)
