"""`PrunedShardSampler`: the kept sample ids of an epoch, in shard-aware order."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from shardsieve._errors import StoreMismatchError
from shardsieve.keepset import KeepSet, select
from shardsieve.loaders.asking import Asking, who_asks
from shardsieve.loaders.moving import StepCount, put_choice
from shardsieve.plan import PADDING, TAILS, EpochOrder, Steps, World
from shardsieve.policy.base import Choice, Policy
from shardsieve.store.store import Store


class PrunedShardSampler(Sampler[int]):
    """Yields the ids of kept samples; give it to a `DataLoader` over a `ShardDataset`.

    The order depends on the store, keep set, seed and epoch alone: not on ranks, workers or batch
    size. With several processes every kept sample is read exactly once over all ranks in equally
    many steps, under `accelerator.prepare` (which deals batches out) as in a plain loop (where the
    sampler takes the share of `torch.distributed`'s rank itself, or of `world`).

    With `tail="uneven"` the last step's batches may be shorter. `gather_for_metrics` needs equal
    batches: use `tail="pad"` for evaluation; repeated rows come last and are trimmed.

    Attributes:
        keep_set: What this epoch keeps.
        epoch: Set by `set_epoch`.
    """

    def __init__(
        self,
        store: Store,
        *,
        keep_fraction: float = 1.0,
        score: str | None = None,
        rule: str = "top",
        keep_set: KeepSet | None = None,
        policy: Policy | None = None,
        seed: int = 0,
        window: int = 16,
        tail: str = "uneven",
        batch_size: int | None = None,
        world: World | None = None,
    ) -> None:
        """Choose the keep set and the order.

        Args:
            store: An open store.
            keep_fraction: In `(0, 1]`.
            score: Name of a stored score.
            rule: As in `select`.
            keep_set: Use this one instead of selecting.
            policy: Chooses the keep set of every epoch instead; give it losses with `update`.
            seed: Of the order, and of `rule="random"`.
            window: Shards shuffled together; 0 keeps the order of the shards.
            tail: `uneven`, `pad` or `drop`.
            batch_size: Of one rank; found from the `DataLoader` when left out.
            world: Found from Accelerate or `torch.distributed` when left out.
        """
        if tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
        self.policy = policy
        if policy is not None:
            policy.bind(store)
            self.keep_set = put_choice(store, policy.choose(0))
        else:
            self.keep_set = keep_set or select(
                store, keep_fraction=keep_fraction, score=score, rule=rule, seed=seed
            )
        if self.keep_set.fingerprint != store.fingerprint:
            raise StoreMismatchError(
                "the keep set was made from another shard index\n"
                f"  keep set: {self.keep_set.fingerprint}\n  store:    {store.fingerprint}"
            )
        self.store, self.seed, self.window, self.tail = store, seed, window, tail
        self.batch_size, self.world = batch_size, world
        self.epoch = 0
        self._start = 0
        self._yielded = 0
        self._global_batch = 0
        store.epoch_samples = 0 if tail == "uneven" else len(self.keep_set)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; going to another one starts at its beginning.

        With a policy every rank must call it: losses are joined here, once per epoch.
        """
        if epoch == self.epoch:
            return
        self.epoch, self._start, self._yielded = epoch, 0, 0
        if self.policy is not None:
            self._take(self.policy.choose(epoch))

    def update(self, ids: ArrayLike, losses: ArrayLike) -> None:
        """Give the policy a batch's losses: integer ids (b,) and unweighted losses (b,)."""
        if self.policy is not None:
            self.policy.update(ids, losses)

    def steps(self, epochs: int | None = None) -> StepCount:
        """Return the steps on every rank, when batch size and world are known.

        Args:
            epochs: From epoch 0 on; None counts the epoch under way.

        Returns:
            An int with `low` and `high`: the three are equal where the count is known before
            training; with a policy that goes by losses the int is the expected count.
        """
        asking = self._asking(Asking())
        if epochs is None:
            return StepCount.exactly(len(self._steps(asking, 0)))
        if self.policy is None:
            return StepCount.exactly(epochs * len(self._steps(asking, 0)))
        world = self._own_world(asking)
        size = asking.batch_size or 1
        expected = [self.policy.expect(epoch) for epoch in range(epochs)]
        return StepCount.over(expected, lambda n: len(Steps(n, size, world.size, self.tail)))

    def __len__(self) -> int:
        asking = self._asking(who_asks())
        if asking.batch_size is None:
            return len(self.keep_set)
        steps = self._steps(asking, 0)
        if asking.dealt_over > 1:
            return len(steps) * steps.global_batch
        world = self._own_world(asking)
        return steps.rank_length(world.rank)

    def __iter__(self) -> Iterator[int]:
        asking = self._asking(who_asks())
        steps = self._steps(asking, self._start)
        self._yielded, self._global_batch = 0, steps.global_batch
        if asking.dealt_over > 1:
            return self._dealt(steps)
        return self._own(steps, self._own_world(asking).rank)

    def state_dict(self, *, steps_done: int | None = None) -> dict[str, Any]:
        """Return where the epoch stands, as JSON-ready numbers; with a policy, its arrays too.

        A loader asks for ids ahead of training: pass the steps that training finished in this
        pass. Without it, the ids asked for so far count as trained on.
        """
        done = self._yielded if steps_done is None else steps_done * self._global_batch
        state = {
            "plan": self._plan_name(),
            "epoch": self.epoch,
            "samples_done": min(self._start + done, len(self.keep_set)),
        }
        return state if self.policy is None else {**state, "policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any world size or batch size.

        Raises:
            StoreMismatchError: If the state belongs to another store, keep set, seed or window.
        """
        if state["plan"] != self._plan_name():
            raise StoreMismatchError(
                f"the sampler's state belongs to another plan\n  state: {state['plan']}\n"
                f"  sampler: {self._plan_name()}\nuse the store, keep set, seed and window of then"
            )
        self.epoch, self._start = int(state["epoch"]), int(state["samples_done"])
        self._yielded = 0
        if self.policy is not None:
            self.policy.load_state_dict(state["policy"])
            self._take(self.policy.again(self.epoch))

    # Inside ---------------------------------------------------------------------------------

    def _take(self, choice: Choice) -> None:
        self.keep_set = put_choice(self.store, choice)
        self.store.epoch_samples = 0 if self.tail == "uneven" else len(self.keep_set)

    def _asking(self, asking: Asking) -> Asking:
        size = self.batch_size or asking.batch_size
        return Asking(size, asking.dealt_over, asking.rank)

    def _own_world(self, asking: Asking) -> World:
        if asking.dealt_over > 1:
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
        size = asking.batch_size or max(-(-left // world.size), 1)
        return Steps(left, size, world.size, self.tail)

    def _order(self, start: int) -> Iterator[NDArray[np.int64]]:
        order = EpochOrder(self.keep_set.counts, self.seed, self.epoch, self.window)
        for shard, ordinal in order.windows(start):
            yield self.keep_set.ids_at(shard, ordinal)

    def _by_step(self, steps: Steps) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield (step, ids of all ranks in that step)."""
        windows, held = self._order(self._start), np.zeros(0, dtype=np.int64)
        for step in range(len(steps)):
            start, stop = steps.bounds(step)
            while len(held) < stop - start:
                held = np.concatenate([held, next(windows)])
            yield step, held[: stop - start]
            held = held[stop - start :]

    def _own(self, steps: Steps, rank: int) -> Iterator[int]:
        """Yield one rank's share: whole batches, but for the last when the tail is uneven."""
        length = steps.rank_length(rank)
        for batch in self._batches(steps, [rank]):
            yield from batch[:length]
            length -= len(batch)

    def _dealt(self, steps: Steps) -> Iterator[int]:
        """Yield every rank's batches in turn, all of them whole.

        Accelerate gives batch i to rank i % world and would repeat samples to fill the tail. Here
        every batch is already full: `ShardDataset` takes `PADDING` out again.
        """
        for batch in self._batches(steps, range(steps.world_size)):
            yield from batch

    def _batches(self, steps: Steps, ranks: Iterable[int]) -> Iterator[list[int]]:
        """Yield whole batches of these ranks, step by step; fillers come after the samples."""
        first: NDArray[np.int64] | None = None
        for step, ids in self._by_step(steps):
            first = ids if first is None else first
            offset = steps.bounds(step)[0]
            for rank in ranks:
                begin, end = steps.share(step, rank)
                end = begin + steps.size(step, rank) if self.tail == "uneven" else end
                missing = steps.batch_size - (end - begin)
                repeated = first if self.tail == "pad" else np.array([PADDING])
                yield [
                    *ids[begin - offset : end - offset].tolist(),
                    *np.resize(repeated, missing).tolist(),
                ]
            self._yielded += len(ids)

    def _plan_name(self) -> str:
        keep = self.keep_set.digest if self.policy is None else str(self.policy.settings())
        return f"{self.store.fingerprint}/{keep}/seed{self.seed}/window{self.window}"
