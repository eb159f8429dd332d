"""Losses on their way to a policy: they wait where they were seen and are joined over all ranks."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.scores.inputs import integers, plain, real
from shardsieve.store.store import Store

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Losses = tuple[Rows, Floats]

_LOG = logging.getLogger("shardsieve")
_MOST_NAMED = 8


class Inbox:
    """Rows and losses of one rank that wait, and those of all ranks that were joined.

    A loss that is not finite is kept as infinity.
    """

    def __init__(self) -> None:
        self._on_device: list[tuple[Any, Any, bool]] = []
        self._waiting: list[Losses] = []
        self._joined: list[Losses] = []
        self._trouble: Exception | None = None

    @property
    def not_finite(self) -> int:
        """Joined losses that are not finite."""
        return sum(int(np.isinf(losses).sum()) for _, losses in self._joined)

    @property
    def waits(self) -> bool:
        """Whether this rank holds losses that were not joined."""
        return bool(self._waiting or self._on_device)

    def add(self, ids: ArrayLike, losses: ArrayLike, store: Store, *, repeats: bool) -> None:
        """Take in a batch of this rank; see `Policy.update`."""
        if _is_on_device(ids) or _is_on_device(losses):
            self._on_device.append((_detached(ids), _detached(losses), repeats))
            return
        try:
            self._waiting.append(_checked(ids, losses, store, repeats))
        except ValueError as error:
            # One rank that stops alone would leave the others waiting for it.
            if world_size() == 1:
                raise
            self._trouble = self._trouble or _of_this_rank(error)

    def join(self, store: Store) -> int:
        """Join what all ranks took in; return how many of it is not finite. A collective call."""
        self._fetch(store)
        rows, losses = _concatenated(self._waiting)
        self._waiting = []
        if world_size() > 1:
            parts = _gathered((self._trouble, rows, losses))
            raise_first([part[0] for part in parts])
            rows, losses = _concatenated([part[1:] for part in parts])
        self._joined.append((rows, losses))
        return int(np.isinf(losses).sum())

    def take(self) -> Losses:
        """Return what was joined, each row once and ascending, and forget it."""
        rows, losses = _concatenated(self._joined)
        self._joined = []
        # A padded step may repeat a sample on another rank: the first copy counts.
        rows, first = np.unique(rows, return_index=True)
        return rows, losses[first]

    def state(self, store: Store) -> list[torch.Tensor]:
        """Return all that waits as tensors (rows, losses)."""
        self._fetch(store)
        return [torch.from_numpy(x) for x in _concatenated([*self._joined, *self._waiting])]

    def load(self, state: Sequence[Any]) -> None:
        """Hold what the states of all ranks hold, and nothing else. A collective call."""
        rows, losses = (np.asarray(array) for array in state)
        if world_size() > 1:
            rows, losses = _of_all(_gathered((rows, losses)))
        self._joined = [(rows, losses)]
        self._waiting, self._on_device, self._trouble = [], [], None

    def _fetch(self, store: Store) -> None:
        fetched, self._on_device = self._on_device, []
        for ids, losses, repeats in fetched:
            self.add(plain(ids), plain(losses), store, repeats=repeats)


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def together(check: Callable[[], None]) -> None:
    """Check something on every rank; where one refuses, all raise what it says.

    A collective call: a rank that stops alone would leave the others waiting for it.

    Raises:
        ShardsieveError: As `check` does, or ValueError.
    """
    trouble = None
    try:
        check()
    except (ShardsieveError, ValueError) as error:
        if world_size() == 1:
            raise
        trouble = _of_this_rank(error)
    if world_size() > 1:
        raise_first(_gathered(trouble))


def raise_first(troubles: Sequence[Exception | None]) -> None:
    """Raise the first of what ranks have to say, if there is any."""
    for trouble in troubles:
        if trouble is not None:
            raise trouble


def _of_this_rank(error: Exception) -> Exception:
    return type(error)(f"rank {dist.get_rank()}: {error}")


def _gathered(mine: Any) -> list[Any]:
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, mine)
    return parts


def _checked(ids: ArrayLike, losses: ArrayLike, store: Store, repeats: bool) -> Losses:
    wanted = integers("ids", ids, cure="a float loses large ids")
    values = np.asarray(real("losses", losses), dtype=np.float64)
    if wanted.shape != values.shape or wanted.ndim != 1:
        raise ValueError(
            f"losses must have one value per id, got {values.shape} for {wanted.shape}; "
            "use reduction='none'"
        )
    own = wanted >= 0
    wanted, values = wanted[own], values[own]
    found, counts = np.unique(wanted, return_counts=True)
    if not repeats and (counts > 1).any():
        raise ValueError(f"ids must come once per batch, got {found[counts > 1][0]} twice")
    rows = store.rows(wanted)
    bad = ~np.isfinite(values)
    if bad.any():
        _LOG.warning("the loss of %s", _named(wanted[bad], values[bad]))
        values = np.where(bad, np.inf, values)
    return rows, values


def _named(ids: Rows, losses: Floats) -> str:
    """Say which losses of a batch are not finite; of a network that diverged these are all."""
    said = [f"sample id {one} is {loss}" for one, loss in zip(ids, losses, strict=True)]
    named, more = ", of ".join(said[:_MOST_NAMED]), len(said) - _MOST_NAMED
    return f"{named}, {more} more of the batch are not finite" if more > 0 else named


def _of_all(parts: Sequence[Losses]) -> Losses:
    """Return what states hold together: all ranks may have been given one, or each its own."""
    first = parts[0]
    if all(
        np.array_equal(one, other) for part in parts for one, other in zip(part, first, strict=True)
    ):
        return first
    rows, losses = _concatenated(parts)
    # What had been joined before stands in each of them.
    once = np.unique(rows, return_index=True)[1]
    return rows[once], losses[once]


def _concatenated(parts: Sequence[tuple[Rows, Floats]]) -> tuple[Rows, Floats]:
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    rows, losses = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(losses)


def _is_on_device(values: Any) -> bool:
    return isinstance(values, torch.Tensor) and values.device.type != "cpu"


def _detached(values: Any) -> Any:
    return values.detach().clone() if isinstance(values, torch.Tensor) else values
