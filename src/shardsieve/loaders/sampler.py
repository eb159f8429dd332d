"""`PrunedShardSampler`: the kept sample ids of an epoch, in shard-aware order."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from shardsieve._errors import ShardsieveError
from shardsieve.keepset import KeepSet, keep_set_of, refuse_selection
from shardsieve.loaders.asking import (
    Asking,
    HandedOut,
    called_by,
    numbered_by_loader,
    who_asks,
)
from shardsieve.loaders.moving import StepCount, kept_of
from shardsieve.loaders.passing import Pass, Share
from shardsieve.loaders.planned import (
    OrderSettings,
    checked_epoch,
    ids_of_epoch,
    refuse_another_plan,
)
from shardsieve.plan import TAILS, Steps, World, checked_world
from shardsieve.policy.base import Policy
from shardsieve.policy.inbox import together
from shardsieve.scores.inputs import one_of, whole_number
from shardsieve.store.store import Store, refuse_path

_LOG = logging.getLogger("shardsieve")


class PrunedShardSampler(Sampler[int]):
    """Yields the ids of kept samples; give it to a `DataLoader` over a `ShardDataset`.

    The order depends on the store, keep set, seed and epoch alone: not on ranks, workers or batch
    size (with locality groups on the global batch too). With several processes every kept sample is
    read exactly once over all ranks in equally many steps, under `accelerator.prepare` (which deals
    batches out) as in a plain loop (where the sampler takes the share of `torch.distributed`'s rank
    itself, or of `world`).

    With `tail="uneven"` the last step's batches may be shorter; a loader with `drop_last=True` gets
    what `tail="drop"` gives. `gather_for_metrics` needs equal batches: use `tail="pad"` for
    evaluation; repeated rows come last, have `__weight__` 0 and are trimmed.

    Attributes:
        keep_set: What this epoch keeps.
        epoch: Set by `set_epoch`.
    """

    _start: int
    _block: int | None
    _pass: Pass | None

    def __init__(
        self,
        store: Store,
        *,
        keep_fraction: float = 1.0,
        score: str | None = None,
        rule: str = "top",
        keep_set: KeepSet | str | None = None,
        policy: Policy | None = None,
        seed: int = 0,
        shuffle: str = "window",
        window: int | None = None,
        groups: int = 1,
        tail: str = "uneven",
        batch_size: int | None = None,
        world: World | None = None,
        **selection: Any,
    ) -> None:
        """Choose the keep set and the order.

        Args:
            store: An open store.
            keep_fraction: In `(0, 1]`.
            score: Name of a stored score, which samples of a `ShardDataset` then carry.
            rule: As in `select`; see `selection` for the options of the rules.
            keep_set: Use this one, or the stored one of this name, instead of selecting.
            policy: Chooses the keep set of every epoch instead; give it losses with `update`.
            seed: Of the order, and of rules that draw.
            shuffle: `window` (of shards), `global` (every kept sample anywhere: for shards that are
                sorted by class) or `none`.
            window: Shards shuffled together; 0 keeps the order of the shards. Left out: so many
                that their kept samples fill the space of 16 whole shards. Of a `.beton` these are
                pages, and left out so many that they hold 2048 kept rows, at least 16.
            groups: Blocks of neighbouring shards, one per node: a node whose ranks follow each
                other mostly reads the shards of its own block, in every epoch.
            tail: `uneven`, `pad` or `drop`.
            batch_size: Of one rank, and that of its loader; found from the `DataLoader` when left
                out.
            world: Found from Accelerate or `torch.distributed` when left out.
            **selection: Further arguments of `select`, such as `threshold` and `hard_cutoff`.

        Raises:
            TypeError: If `selection` holds what `select` does not take, or something stands beside
                a keep set or policy that would choose another one.
        """
        refuse_path(store)
        one_of("tail", tail, TAILS)
        if batch_size is not None:
            whole_number("batch_size", batch_size, 1)
        if policy is not None and not isinstance(policy, Policy):
            raise TypeError(f"policy must be one, such as InfoBatch(), got {policy!r}")
        self.policy = policy
        selection |= {"keep_fraction": keep_fraction, "score": score, "rule": rule, "seed": seed}
        if policy is not None:
            refuse_selection("policy", selection | {"keep_set": keep_set})
            policy.bind(store)
            self.keep_set = kept_of(store, policy.choose(0))
        else:
            self.keep_set = keep_set_of(store, keep_set, **selection)
            if score is not None:
                store.sample_scores[score] = store.score(score)
        self._score = score
        self.order = OrderSettings(seed, shuffle, window, groups)
        self.store, self.tail = store, tail
        self.batch_size, self.world = batch_size, checked_world(world)
        self._seen = Asking()
        self.epoch = 0
        # How far it is ahead of a loader's own count of passes, and whether that is to be seen.
        self._ahead, self._told = 0, False
        self._warned = self._warned_of_cut = False
        self._asked_by: HandedOut | None = None
        self._pass = None
        self._begin(0)

    def __repr__(self) -> str:
        by = "" if self.policy is None else f", policy={self.policy!r}"
        return f"PrunedShardSampler({self.store!r}, {self.keep_set!r}{by}, epoch={self.epoch})"

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; going to another one starts at its beginning.

        With a policy every rank must call it: losses are joined here, once per epoch. The loaders
        of Accelerate and Fabric call it for every pass, and count on from the epoch that was chosen
        or loaded. A torch loader's iterator that was made before raises when it goes on.

        Raises:
            ValueError: If it is below 0, or no whole number.
        """
        if numbered_by_loader():
            epoch = self._epoch_of(epoch)
        else:
            self._told = True
        self._go_to(epoch)

    def update(self, ids: ArrayLike, losses: ArrayLike) -> None:
        """Give the policy a batch's losses: integer ids (b,) and unweighted losses (b,)."""
        if self.policy is not None:
            self.policy.update(ids, losses, repeats=self.tail == "pad")

    def steps(self, epochs: int | None = None) -> StepCount:
        """Return the steps on every rank.

        Args:
            epochs: From epoch 0 on; None counts the epoch under way.

        Returns:
            An int with `low` and `high`: the three are equal where the count is known before
            training; with a policy that goes by losses the int is the expected count. That a
            loader has `drop_last` is known once it has asked: before, `tail="drop"` must say so.

        Raises:
            ValueError: If the batch size is not known: it was not given, and no loader has asked.
        """
        asking = self._asking(self._seen)
        if asking.batch_size is None:
            raise ValueError(
                "batch_size must be known to count steps, got None; give it to PrunedShardSampler"
            )
        if epochs is None:
            return StepCount.exactly(len(self._steps(asking, 0)))
        if epochs < 0:
            raise ValueError(f"epochs must be at least 0, got {epochs}")
        if self.policy is None:
            return StepCount.exactly(epochs * len(self._steps(asking, 0)))
        world = self._own_world(asking)
        size = asking.batch_size
        expected = [self.policy.expect(epoch) for epoch in range(epochs)]
        tail = self._tail(asking)
        return StepCount.over(expected, lambda n: len(Steps(n, size, world.size, tail)))

    @property
    def planned_samples(self) -> int:
        """Samples of the next pass over all ranks where it is padded, else 0: nothing to trim."""
        return len(self.keep_set) - self._next_start() if self.tail == "pad" else 0

    def __len__(self) -> int:
        asking = self._asking(who_asks(self))
        self._seen = Asking(asking.batch_size, drops_last=asking.drops_last)
        steps = self._steps(asking, 0)
        if asking.dealt_over > 1:
            return len(steps) * steps.global_batch
        world = self._own_world(asking)
        return steps.rank_length(world.rank)

    def __iter__(self) -> Iterator[int]:
        asking = self._asking(who_asks(self))
        self._seen = Asking(asking.batch_size, drops_last=asking.drops_last)
        world = self._own_world(asking)
        if asking.handed_out is not None:
            asking.handed_out.refuse_to_follow(self._asked_by)
        self._asked_by = asking.handed_out
        if asking.number is not None:
            self._go_to(self._epoch_of(asking.number))
        self._warn_of_standing_still()
        self._start = self._next_start()
        asking.refuse_another_count(self._start, policy=self.policy is not None)
        if self._block is None:
            self._block = self._steps(asking, 0).global_batch
        parts = ids_of_epoch(
            self.store, self.keep_set, self.order, self.epoch, self._block, self._start
        )
        self._pass = Pass(
            self._steps(asking, self._start),
            handed_out=asking.handed_out,
            batched=asking.batch_size is not None,
        )
        own = Share(world, dealt=asking.dealt_over > 1, tail=self.tail)
        return self._pass.ids(parts, own, self.keep_set, self._score)

    def state_dict(self, *, steps_done: int | None = None) -> dict[str, Any]:
        """Return where the epoch stands, as JSON-ready numbers; with a policy, its arrays too.

        The state is the same on every rank; with a policy only after all of them called
        `policy.sync()`, see its `state_dict`. What a torch loader (also under Accelerate) has
        handed to the loop counts as trained on, not what its workers asked for ahead.

        Args:
            steps_done: Steps that training finished in this pass; needed where something other than
                a torch loader stands between sampler and loop.

        Raises:
            ShardsieveError: If Accelerate's `save_state` asks on several ranks, and the policy did
                not `sync` since it took in losses.
            ValueError: If steps were done and the batch size is not known: it was not given, and
                the loader has batches of its own.
        """
        asked = called_by("torchdata")  # it counts what it hands out itself
        done = 0 if self._pass is None else self._pass.places_done(steps_done, asked=asked)
        state = {
            "plan": self._plan_name(),
            "epoch": self.epoch,
            "samples_done": min(self._start + done, len(self.keep_set)),
            "block": self._block,
        }
        if self.policy is None:
            return state
        if self.policy.holds_its_own and called_by("accelerate"):
            raise ShardsieveError(
                "save_state keeps the main process' state alone, and the policy holds losses that "
                "were not joined; call sampler.policy.sync() on every process before"
            )
        learned = self.policy.latest_state() if asked else self.policy.state_dict()
        return {**state, "policy": learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any world or batch size; a refused state changes nothing.

        With a policy every rank must call it, and all of them raise what one refuses.

        Raises:
            StoreMismatchError: If the state belongs to another store, keep set, seed, shuffle,
                window or number of groups.
            ValueError: If it is no state.
        """
        own = self._plan_name()
        if self.policy is None:
            refuse_another_plan(state, own, "sampler")
        else:
            together(lambda: refuse_another_plan(state, own, "sampler"))
        if self.policy is not None:
            self.policy.load_state_dict(state.get("policy", {}))
        self.epoch, self._told = int(state["epoch"]), True
        self._begin(int(state["samples_done"]), state.get("block"), by="load_state_dict")
        if self.policy is not None:
            self.keep_set = kept_of(self.store, self.policy.again(self.epoch))

    # Inside ---------------------------------------------------------------------------------

    def _epoch_of(self, number: int) -> int:
        """Return the epoch of a pass that a loader of Accelerate or Fabric begins and numbers."""
        if self._told:
            self._ahead = self.epoch - number
        elif number + self._ahead == self.epoch and self._pass is not None and self._pass.empty:
            self._ahead += 1  # Accelerate does not count it
        self._told = False
        return number + self._ahead

    def _go_to(self, epoch: int) -> None:
        if (epoch := checked_epoch(epoch)) == self.epoch:
            return
        # An epoch that the policy refuses is not the sampler's: asked again, it is refused again.
        choice = self.policy.choose(epoch) if self.policy is not None else None
        self._warn_of_a_cut()
        self.epoch = epoch
        self._begin(0, by=f"set_epoch({epoch})")
        if choice is not None:
            self.keep_set = kept_of(self.store, choice)

    def _begin(self, start: int, block: int | None = None, *, by: str = "") -> None:
        """Let the next pass start at a place; the epoch began with global batches of `block`."""
        if self._pass is not None:
            self._pass.followed_by = by
        self._start, self._block, self._pass = start, block, None

    def _next_start(self) -> int:
        """Return where the next pass begins: one after a whole one at the beginning."""
        return 0 if self._pass is not None and self._pass.whole else self._start

    def _warn_of_standing_still(self) -> None:
        if self.policy is None or self._pass is None or not self._pass.whole or self._warned:
            return
        self._warned = True
        _LOG.warning(
            "epoch %d is passed over again, and the policy's keep set stays what it was; call "
            "sampler.set_epoch(epoch) before every epoch",
            self.epoch,
        )

    def _warn_of_a_cut(self) -> None:
        if self.policy is None or self._pass is None or self._warned_of_cut:
            return
        done, total = self._pass.extent()
        if 0 < done < total:
            self._warned_of_cut = True
            _LOG.warning(
                "epoch %d was left after %d of %d samples, and the policy goes without the losses "
                "of the others; a trainer that counts the steps of one epoch alone cuts keep sets "
                "that grow (see docs/training.md)",
                self.epoch,
                done,
                total,
            )

    def _asking(self, asking: Asking) -> Asking:
        if self.batch_size and asking.batch_size not in (None, self.batch_size):
            raise ValueError(
                f"batch_size of PrunedShardSampler must be what its loader gives one rank, "
                f"{asking.batch_size}, got {self.batch_size}; leave it out"
            )
        return replace(asking, batch_size=self.batch_size or asking.batch_size)

    def _tail(self, asking: Asking) -> str:
        # A loader that drops what is not whole would drop it on some ranks only.
        return "drop" if asking.drops_last and self.tail == "uneven" else self.tail

    def _own_world(self, asking: Asking) -> World:
        if asking.dealt_over > 1:
            if self.world is not None and self.world.size > 1:
                raise ShardsieveError(
                    f"world={self.world} splits the kept samples over ranks, and "
                    "accelerator.prepare would do it again; leave world out"
                )
            return World(asking.rank, asking.dealt_over)
        if self.world is not None:
            return self.world
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    def _steps(self, asking: Asking, start: int) -> Steps:
        world = self._own_world(asking)
        left = len(self.keep_set) - start
        # Nobody batches: each rank's whole share counts as one batch.
        tail = self._tail(asking)
        share = left // world.size if tail == "drop" else -(-left // world.size)
        return Steps(left, asking.batch_size or max(share, 1), world.size, tail)

    def _plan_name(self) -> str:
        keep = self.keep_set.digest if self.policy is None else str(self.policy.settings())
        return f"{self.store.fingerprint}/{keep}/{self.order.name}"
