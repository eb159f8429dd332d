"""One pass over a sampler: what it hands out, and how far it has come."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardsieve._errors import ShardsieveError
from shardsieve.keepset import KeepSet
from shardsieve.loaders.asking import HandedOut
from shardsieve.loaders.planned import Ids, PlannedId, weighted_ids
from shardsieve.plan import PADDING, Steps, World


@dataclass(frozen=True, slots=True)
class Share:
    """What of every step a process is handed.

    Attributes:
        world: Its place among the ranks.
        dealt: Whether it is handed the batches of all ranks in turn, of which Accelerate gives
            batch i to rank i % world.
        tail: `uneven`, `pad` or `drop`.
    """

    world: World
    dealt: bool
    tail: str


@dataclass
class Pass:
    """One iteration over the sampler.

    Attributes:
        steps: From where it started.
        handed_out: Counts the batches that the loop was given, where a torch loader asks.
        batched: Whether the batch size is known.
        asked: Places asked for so far, over all ranks.
        whole: Whether it was asked for to its end.
        followed_by: The call that let another pass begin since.
    """

    steps: Steps
    handed_out: HandedOut | None
    batched: bool
    asked: int = 0
    whole: bool = False
    followed_by: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it is over and held nothing, as after the state of an epoch's end."""
        return self.whole and len(self.steps) == 0

    def ids(
        self, parts: Iterator[Ids], share: Share, keep: KeepSet, score: str | None
    ) -> Iterator[int]:
        """Yield the ids of a share of the epoch's order, which comes in parts.

        Dealt out, all batches are whole, as Accelerate would repeat samples to fill the tail:
        `ShardDataset` takes `PADDING` out again.
        """
        steps, world = self.steps, share.world
        workers = 1 if self.handed_out is None else max(self.handed_out.workers, 1)
        ranks = list(range(world.size)) if share.dealt else [world.rank]
        left = len(steps) * steps.global_batch if share.dealt else steps.rank_length(world.rank)
        batches = self._batches(parts, ranks, share, keep, score)
        # A worker's next batch comes after one for each of the others.
        for done, batch in _looking_ahead(batches, workers * len(ranks)):
            self._refuse_to_go_on()
            mine = batch[:left]
            left -= len(mine)
            if not self.batched and world.size == 1:
                yield from self._counted(mine, score)
                continue
            yield from mine[:-1]
            self.asked = steps.places_done(done)
            yield from mine[-1:]
        self.whole = True

    def places_done(self, steps_done: int | None, *, asked: bool) -> int:
        """Return the places done, over all ranks: after so many steps, or else as counted.

        Args:
            steps_done: What a trainer says, if it counts itself.
            asked: Count what was asked for, not what the loop was given.

        Raises:
            ValueError: If steps are to be counted and the batch size is not known.
        """
        counted = self.handed_out is not None if steps_done is None else steps_done > 0
        if counted and not self.batched:
            raise ValueError(
                "batch_size must be known to count what was trained on, got None; "
                "give it to PrunedShardSampler"
            )
        if steps_done is not None:
            return self.steps.places_done(steps_done)
        if asked or self.handed_out is None:
            return self.asked
        return self.steps.places_done(self.handed_out.place())

    def extent(self) -> tuple[int, int]:
        """Return how many places a loop was given, 0 if unknown, and how many there are."""
        total = self.steps.places_done(len(self.steps))
        if self.handed_out is None or not self.batched:
            return 0, total
        # Accelerate's loader begins its next pass before it says so: nothing was held back then.
        over = self.handed_out.count(held_back=True) >= len(self.steps)
        return total if over else self.steps.places_done(self.handed_out.count()), total

    def _refuse_to_go_on(self) -> None:
        """Refuse a loader whose iterator is older than the epoch or place: it gives another's."""
        if self.followed_by is not None and self.handed_out is not None:
            raise ShardsieveError(
                f"the loader's iterator was made before {self.followed_by} and gives other "
                "samples; call that before iter(loader): under Lightning in train_dataloader (see "
                "docs/training.md), with Accelerate's use_stateful_dataloader before prepare"
            )

    def _counted(self, ids: list[int], score: str | None) -> Iterator[int]:
        """Yield ids of a pass that nobody batches or shares: every one of them is a place."""
        for one in ids:
            self.asked += 1
            yield one if score is None else _told(one, score=score)

    def _batches(
        self, parts: Iterator[Ids], ranks: list[int], share: Share, keep: KeepSet, score: str | None
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (whole steps done after it, batch); fillers come after the samples.

        Only the batches of this rank say what their samples carry.
        """
        first: list[int] | None = None
        for step, ids in _by_step(self.steps, parts):
            first = ids.tolist() if first is None else first
            offset = self.steps.bounds(step)[0]
            for rank in ranks:
                begin, end = self.steps.share(step, rank)
                part, own = ids[begin - offset : end - offset], rank == share.world.rank
                batch = weighted_ids(keep, part) if own else part.tolist()
                if not batch and share.tail == "uneven":
                    batch = [PlannedId(int(ids[0]), weight=0.0)]
                batch = _filled(batch, self.steps.batch_size, first if share.tail == "pad" else [])
                if score is not None and own:
                    batch = _hinted(batch, score=score)
                yield step + (rank == ranks[-1]), batch


def _by_step(steps: Steps, parts: Iterator[Ids]) -> Iterator[tuple[int, Ids]]:
    """Yield (step, ids of all ranks in that step)."""
    held = np.zeros(0, dtype=np.int64)
    for step in range(len(steps)):
        start, stop = steps.bounds(step)
        taken, size = [held], len(held)
        while size < stop - start:
            taken.append(next(parts))
            size += len(taken[-1])
        held = np.concatenate(taken) if len(taken) > 1 else held
        yield step, held[: stop - start]
        held = held[stop - start :]


def _filled(batch: list[int], size: int, repeated: list[int]) -> list[int]:
    """Return a batch of `size` ids: repeats of these, without weight, or `PADDING`."""
    missing = size - len(batch)
    fillers = (repeated * (missing // len(repeated) + 1))[:missing] if repeated else []
    batch = batch + [PlannedId(one, weight=0.0) for one in fillers]
    return batch + [PADDING] * (size - len(batch))


def _looking_ahead(
    batches: Iterator[tuple[int, list[int]]], distance: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield the same, with the ids of the batch so far ahead on each batch's first id."""
    waiting: deque[tuple[int, list[int]]] = deque()
    for done, batch in batches:
        waiting.append((done, batch))
        if len(waiting) > distance:
            ahead = np.array(batch, dtype=np.int64)
            yield waiting[0][0], _hinted(waiting[0][1], ahead=ahead)
            waiting.popleft()
    yield from waiting


def _hinted(batch: list[int], **hints: Any) -> list[int]:
    """Return the batch with more hints on its first id."""
    return [_told(batch[0], **hints), *batch[1:]]


def _told(one: int, **hints: Any) -> PlannedId:
    known = vars(one) if isinstance(one, PlannedId) else {}
    return PlannedId(one, **(known | hints))
