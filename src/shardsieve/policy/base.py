"""What every policy is: choose an epoch's samples, take in losses, save and go on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import StoreMismatchError
from shardsieve.order import is_whole, uniform
from shardsieve.policy.inbox import Floats, Inbox, Rows, together, world_size
from shardsieve.policy.latest import LatestState
from shardsieve.scores.inputs import plain_number, refuse_no_state, whole_number
from shardsieve.store.store import Store

_STATE = ("policy", "store", "arrays", "waiting", "not_finite")


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
    each array in `_arrays`, and 16 bytes per loss that waits; for the moment in which an epoch is
    chosen, up to eight times 8 bytes per sample more. Tensors on a device are left there until
    losses are joined: no step waits for them.

    A sample whose loss is not finite is named in a warning and counted in `not_finite`; policies
    that go by losses keep it until its loss is finite again.

    Attributes:
        seed: Of every draw.
        not_finite: Losses joined so far that were NaN or infinite, over all ranks.
    """

    def __init__(self, *, seed: int = 0) -> None:
        if not is_whole(seed):
            raise ValueError(f"seed must be a whole number, got {seed!r}")
        self.seed = int(seed)
        self.not_finite = 0
        self._store: Store | None = None
        self._inbox = Inbox()
        self._latest: LatestState | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it; a number of numpy's as a plain one, for no JSON and no state holds such."""
        super().__setattr__(name, plain_number(value))

    def __repr__(self) -> str:
        how = (f"{key}={value!r}" for key, value in self.settings().items() if key != "policy")
        return f"{type(self).__name__}({', '.join(how)})"

    # For everybody --------------------------------------------------------------------------

    def bind(self, store: Store) -> None:
        """Take on a store; a policy serves one store."""
        if self._store is not None and self._store.fingerprint != store.fingerprint:
            raise StoreMismatchError("the policy serves another store already; make a new one")
        if self._store is None:
            self._begin(store)
            self._store = store

    def choose(self, epoch: int) -> Choice:
        """Join what the ranks took in and return the epoch's samples; every rank must call it."""
        self._refuse_unbound()
        self._learn()
        return self._choose(epoch)

    def again(self, epoch: int) -> Choice:
        """Return the samples of the epoch under way, as after a restart; joins nothing."""
        self._refuse_unbound()
        return self._choose(epoch)

    def update(self, ids: ArrayLike, losses: ArrayLike, *, repeats: bool = False) -> None:
        """Take in the losses of a batch of this rank; of an id that comes again, the first counts.

        Args:
            ids: int64 (b,), sample ids; negative ones (padding) are left out.
            losses: float (b,), unweighted, per sample.
            repeats: The batch was filled up: an id may come again in it.

        Raises:
            ValueError: If the shapes differ, an id is not in the store, or an id comes twice
                without `repeats`. With several ranks, or tensors on a device, all ranks raise it
                when they next join.
        """
        self._inbox.add(ids, losses, self.store, repeats=repeats)

    @property
    def holds_its_own(self) -> bool:
        """Whether other ranks' states lack losses of this one, from which the policy learns."""
        learns = type(self)._take_in is not Policy._take_in
        return learns and world_size() > 1 and self._inbox.waits

    def sync(self) -> None:
        """Join what all ranks took in; every rank must call it, as before a checkpoint.

        Raises:
            ValueError: On every rank, if a rank was given bad losses; see `update`.
        """
        self.not_finite += self._inbox.join(self.store)

    def state_dict(self) -> dict[str, Any]:
        """Return all that later choices depend on; on several ranks call `sync` first.

        Without, a state holds the losses of its own rank since the last epoch began: every rank
        must save and load its own then.

        Tensors and plain values: `torch.load` reads it with `weights_only=True`.
        """
        self._refuse_unbound()
        arrays = {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}
        return {
            "policy": self.settings(),
            "store": self.store.fingerprint,
            "arrays": arrays,
            "waiting": self._inbox.state(self.store),
            "not_finite": self.not_finite - self._inbox.not_finite,
        }

    def latest_state(self) -> LatestState:
        """Return `state_dict` as it will be when it is saved, until this policy learns or loads."""
        if self._latest is None:
            self._latest = LatestState(self.state_dict)
        return self._latest

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; every rank must call it. One that is refused changes nothing.

        Raises:
            StoreMismatchError: On every rank, if one was given a state of another store or another
                policy, showing both.
            ValueError: On every rank, if one was given no state.
        """
        together(lambda: self.refuse_another(state))
        self._settle()
        for name, array in self._arrays().items():
            array[:] = np.asarray(state["arrays"][name])
        self._inbox.load(state["waiting"])
        self.not_finite = int(state["not_finite"]) + self._inbox.not_finite

    def refuse_another(self, state: Mapping[str, Any]) -> None:
        """Check that a state belongs to this policy and its store.

        Raises:
            StoreMismatchError: If it does not, showing both; if another release saved it.
            ValueError: If it is no state.
        """
        refuse_no_state("policy", state, _STATE)
        for name, own in (("store", self.store.fingerprint), ("policy", self.settings())):
            if state[name] != own:
                raise StoreMismatchError(
                    f"the state belongs to another {name}\n  state: {state[name]}\n  here:  {own}"
                )
        for name, array in self._arrays().items():
            if np.shape(state["arrays"].get(name)) != array.shape:
                raise StoreMismatchError(
                    f"the state lacks what the policy holds as {name!r}: another release saved it; "
                    "begin without it, or go on with that release"
                )

    def learned(self) -> Floats:
        """Return what the policy learned, for `store.put_score`: after the last epoch, every rank.

        Returns:
            float64 (n,), aligned with `store.ids()`, higher is kept first; NaN where it learned
            nothing or the last loss was not finite. Moving averages have their start, 1, where no
            loss came.

        Raises:
            ValueError: If the policy does not go by losses, or has no store yet.
        """
        self._refuse_unbound()
        self._learn()
        values = self._learned()
        return np.where(np.isfinite(values), values, np.nan)

    def to_score(self, name: str) -> None:
        """Store `learned()` as a static score; every rank must call it, and rank 0 writes.

        Raises:
            ValueError: As `learned`; on every rank, if the name has other characters.
            StoreMismatchError: On every rank, if the name stands for another definition.
        """
        values = self.learned()

        def written() -> None:
            if world_size() == 1 or dist.get_rank() == 0:
                self.put_learned(self.store, name, values)

        together(written)

    def check_score(self, store: Store, name: str) -> None:
        """Refuse before a training what `to_score` would refuse after it.

        Raises:
            ValueError: If the policy does not go by losses, or the name has other characters.
            StoreMismatchError: If the name stands for another definition.
        """
        self.check_learns()
        store.check_score(name, self.definition())

    def check_learns(self) -> None:
        """Raise ValueError if the policy does not go by losses, and so learns no score."""
        if type(self)._learned is Policy._learned:
            self._learned()

    def put_learned(self, store: Store, name: str, values: Floats) -> None:
        """Store values that `learned` returned, here or in an earlier process."""
        made = {"definition": self.definition(), "settings": self.settings()}
        store.put_score(name, values, provenance=made)

    def definition(self) -> str:
        """Return what a score that the policy learned is called by: name and settings."""
        settings = self.settings()
        how = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "policy")
        return f"{settings['policy']}({how})"

    @property
    def store(self) -> Store:
        """The store it is bound to."""
        self._refuse_unbound()
        assert self._store is not None
        return self._store

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return name and settings, JSON-ready; two policies with the same ones choose alike."""

    @abstractmethod
    def expect(self, epoch: int) -> Expected:
        """Return how many samples an epoch keeps, before anything is known of its losses."""

    # For policies ---------------------------------------------------------------------------

    def _refuse_unbound(self) -> None:
        if self._store is None:
            raise ValueError("the policy must be bound to a store; give it to PrunedShardSampler")

    def _begin(self, store: Store) -> None:  # noqa: B027
        """Make the arrays for a store, if there are any."""

    @abstractmethod
    def _choose(self, epoch: int) -> Choice:
        """Return the epoch's samples from what was taken in."""

    def _take_in(self, rows: Rows, losses: Floats) -> None:  # noqa: B027
        """Learn from losses; infinite ones say that the loss was not finite."""

    def _learned(self) -> Floats:
        """Return one score per sample, higher is kept first."""
        raise ValueError(f"{type(self).__name__} learns no score; leave policy_score out")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _learn(self) -> None:
        self.sync()
        self._settle()  # now, as it is to hold what all ranks saw
        self._take_in(*self._inbox.take())

    def _settle(self) -> None:
        """Let a state that was asked for stay as it is: what comes is no longer of it."""
        if self._latest is not None:
            self._latest.settle()
        self._latest = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_latest": None}


def highest(values: Floats, count: int, *key: int) -> Rows:
    """Return the rows of the `count` highest values, ascending; ties are drawn by the key."""
    order = np.lexsort((uniform(len(values), *key), -values))
    return np.sort(order[:count]).astype(np.int64)


def in_unit(name: str, value: float) -> float:
    """Return a value that lies in `[0, 1)`."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return value


def is_last_part(epoch: int, num_epochs: int | None, delta: float) -> bool:
    """Return whether an epoch is among the last (1 - delta) of the run: at least the last one.

    With delta 1 none is.

    >>> [is_last_part(epoch, 6, 0.875) for epoch in (4, 5)]
    [False, True]
    >>> is_last_part(5, 6, 1)
    False
    >>> is_last_part(55, 100, 0.55)
    True
    """
    if num_epochs is None or delta == 1:
        return False
    # 100 * 0.55 is 55.00000000000001: a hair is no epoch.
    return epoch >= min(num_epochs * delta - 1e-9, num_epochs - 1)


def check_schedule(num_epochs: int | None, delta: float) -> None:
    """Refuse a length of the run, or a share of it, that is none."""
    if num_epochs is not None:
        whole_number("num_epochs", num_epochs, 1)
    if not 0 <= delta <= 1:
        raise ValueError(f"delta must lie in [0, 1], got {delta}")


def check_epoch(epoch: int, num_epochs: int | None) -> None:
    """Refuse an epoch beyond the schedule's length."""
    if num_epochs is not None and epoch >= num_epochs:
        raise ValueError(f"epoch must be below num_epochs={num_epochs}, got {epoch}; plan longer")
