"""What every policy is: choose an epoch's samples, take in losses, save and go on."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingScoreError, StoreMismatchError
from shardsieve.order import random_bits
from shardsieve.store.store import Store

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_LOG = logging.getLogger("shardsieve")


class Choice(NamedTuple):
    """What one epoch trains on.

    Attributes:
        rows: int64 (k,), places among `store.ids()`, ascending.
        weights: float32 (k,), loss weights; None means ones.
    """

    rows: Rows
    weights: NDArray[np.float32] | None = None


class Expected(NamedTuple):
    """How many samples an epoch keeps: expected, and bounds that always hold."""

    kept: float
    low: int
    high: int


class Policy(ABC):
    """Chooses the samples of every epoch.

    Bound to a store, `choose(epoch)` is a function of the policy's settings, its seed, the epoch
    and the losses taken in before it, the same on every rank: losses wait on the rank that saw
    them and are joined once per epoch, by integer ids. Memory per rank: 8 bytes per sample for
    each array in `_arrays`, and 16 bytes per loss that waits.

    A sample whose loss is not finite is named in a warning, counted in `not_finite`, and kept until
    its loss is finite again.

    Attributes:
        seed: Of every draw.
        not_finite: Losses seen so far that were NaN or infinite.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.not_finite = 0
        self._store: Store | None = None
        self._waiting: list[tuple[Rows, Floats]] = []

    # For everybody --------------------------------------------------------------------------

    def bind(self, store: Store) -> None:
        """Take on a store; a policy serves one store."""
        if self._store is not None and self._store.fingerprint != store.fingerprint:
            raise StoreMismatchError("the policy serves another store already; make a new one")
        if self._store is None:
            self._store = store
            self._begin(store)

    def choose(self, epoch: int) -> Choice:
        """Join what the ranks took in and return the epoch's samples; every rank must call it."""
        self.sync()
        for rows, losses in self._waiting:
            self._take_in(rows, losses)
        self._waiting = []
        return self._choose(epoch)

    def again(self, epoch: int) -> Choice:
        """Return the samples of the epoch under way, as after a restart; joins nothing."""
        return self._choose(epoch)

    def update(self, ids: ArrayLike, losses: ArrayLike) -> None:
        """Take in the losses of a batch of this rank.

        Args:
            ids: int64 (b,), sample ids; negative ones (padding) are left out.
            losses: float (b,), unweighted, per sample.

        Raises:
            ValueError: If the shapes differ, an id is not in the store, or an id comes twice.
        """
        wanted = np.asarray(_on_cpu(ids))
        values = np.asarray(_on_cpu(losses), dtype=np.float64)
        if wanted.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers, got {wanted.dtype}; a float loses large ids")
        if wanted.shape != values.shape or wanted.ndim != 1:
            raise ValueError(
                f"losses must have one value per id, got {values.shape} for {wanted.shape}; "
                "use reduction='none'"
            )
        real = wanted >= 0
        wanted, values = wanted[real], values[real]
        found, counts = np.unique(wanted, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"ids must come once per batch, got {found[counts > 1][0]} twice")
        rows = self.store.rows(wanted)
        bad = ~np.isfinite(values)
        if bad.any():
            self.not_finite += int(bad.sum())
            _LOG.warning("the loss of sample id %d is %s", wanted[bad][0], values[bad][0])
            values = np.where(bad, np.inf, values)
        self._waiting.append((rows, values))

    def sync(self) -> None:
        """Join what all ranks took in; every rank must call it, as before a checkpoint."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._joined())
        merged = [part for part in parts if len(part[0])]
        # The first rank's copy wins where a padded step repeated a sample.
        rows = np.concatenate([p[0] for p in merged]) if merged else np.zeros(0, dtype=np.int64)
        losses = np.concatenate([p[1] for p in merged]) if merged else np.zeros(0)
        rows, first = np.unique(rows, return_index=True)
        self._waiting = [(rows, losses[first])] if len(rows) else []

    def state_dict(self) -> dict[str, Any]:
        """Return all that later choices depend on; on several ranks call `sync` first."""
        rows, losses = self._joined()
        arrays = {name: array.copy() for name, array in self._arrays().items()}
        identity = {"policy": self.settings(), "store": self.store.fingerprint}
        return {**identity, "arrays": arrays, "waiting": (rows, losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StoreMismatchError: If it belongs to another store or another policy, showing both.
        """
        for name, own in (("store", self.store.fingerprint), ("policy", self.settings())):
            if state[name] != own:
                raise StoreMismatchError(
                    f"the state belongs to another {name}\n  state: {state[name]}\n  here:  {own}"
                )
        for name, array in self._arrays().items():
            array[:] = state["arrays"][name]
        rows, losses = state["waiting"]
        self._waiting = [(np.asarray(rows), np.asarray(losses))] if len(rows) else []

    def to_score(self, name: str) -> None:
        """Store what the policy learned as a static score, NaN where it learned nothing."""
        made = {"definition": f"policy({self.settings()['policy']})", "settings": self.settings()}
        self.store.put_score(name, self._learned(), provenance=made)

    @property
    def store(self) -> Store:
        """The store it is bound to."""
        if self._store is None:
            raise ValueError("the policy must be bound to a store; give it to PrunedShardSampler")
        return self._store

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return name and settings, JSON-ready; two policies with the same ones choose alike."""

    @abstractmethod
    def expect(self, epoch: int) -> Expected:
        """Return how many samples an epoch keeps, before anything is known of its losses."""

    # For policies ---------------------------------------------------------------------------

    def _begin(self, store: Store) -> None:  # noqa: B027
        """Make the arrays for a store, if there are any."""

    @abstractmethod
    def _choose(self, epoch: int) -> Choice:
        """Return the epoch's samples from what was taken in."""

    def _take_in(self, rows: Rows, losses: Floats) -> None:  # noqa: B027
        """Learn from losses; infinite ones say that the loss was not finite."""

    def _learned(self) -> Floats:
        """Return one score per sample, higher is kept first."""
        raise ValueError(f"{type(self).__name__} learns no score; store one of its own instead")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _joined(self) -> tuple[Rows, Floats]:
        if not self._waiting:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        rows, losses = zip(*self._waiting, strict=True)
        return np.concatenate(rows), np.concatenate(losses)


class LossPolicy(Policy):
    """A policy that starts from stored scores if it is given any, else from nothing."""

    def __init__(self, *, seed: int = 0, prior: str | None = None) -> None:
        super().__init__(seed=seed)
        self.prior = prior

    def _first(self, store: Store, otherwise: float) -> Floats:
        if self.prior is None:
            return np.full(len(store), otherwise)
        values = store.score(self.prior).astype(np.float64)
        if not np.isfinite(values).all():
            raise MissingScoreError(
                f"score {self.prior!r} must be there for every sample; extrapolate it first"
            )
        return values


def lots(n: int, *key: int) -> Floats:
    """Return n uniform numbers in `[0, 1)`, a function of the key alone."""
    return np.asarray((random_bits(n, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def highest(values: Floats, count: int, *key: int) -> Rows:
    """Return the rows of the `count` highest values, ascending; ties are drawn by the key."""
    order = np.lexsort((lots(len(values), *key), -values))
    return np.sort(order[:count]).astype(np.int64)


def in_unit(name: str, value: float) -> float:
    """Return a value that lies in `[0, 1)`."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return value


def is_last_part(epoch: int, num_epochs: int | None, delta: float) -> bool:
    """Return whether an epoch is among the last (1 - delta) of the run: at least the last one.

    >>> [is_last_part(epoch, 6, 0.875) for epoch in (4, 5)]
    [False, True]
    """
    if num_epochs is None or delta == 1:
        return False
    return epoch >= min(num_epochs * delta, num_epochs - 1)


def check_epoch(epoch: int, num_epochs: int | None) -> None:
    """Refuse an epoch beyond the schedule's length."""
    if num_epochs is not None and epoch >= num_epochs:
        raise ValueError(f"epoch must be below num_epochs={num_epochs}, got {epoch}; plan longer")


def _on_cpu(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
