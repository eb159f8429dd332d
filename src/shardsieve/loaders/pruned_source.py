"""The first stage of a pruned pipeline: raw samples of one rank and worker, read by range."""

import io
import logging
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlparse

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.utils import pytorch_worker_info

from shardsieve._errors import CorruptShardError, ShardsieveError
from shardsieve.keepset import KeepSet
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.planned import (
    OrderSettings,
    ordered_ids,
    refuse_another_plan,
    weighted_ids,
)
from shardsieve.loaders.stages import Source
from shardsieve.loaders.starting import Start, Starts
from shardsieve.plan import Steps, World

_LOG = logging.getLogger("shardsieve")

_AT_ONCE = 128
_END = bytes(1024)

Ids = NDArray[np.int64]
Sample = dict[str, Any]


class PrunedSource(IterableDataset[Sample]):
    """Yields webdataset's raw samples of kept ids, for one rank and worker.

    Attributes:
        data: Reads them.
        keep: What is read.
        order: In which order.
        tail: As in `Steps`.
        batch_size: Samples that a rank takes in a row, or None.
        batched_inside: Whether workers make the batches: then a batch is one worker's. Else the
            workers take samples in turn, and the batches made behind them are the same.
        world: Explicit rank and ranks, or None.
        inexact: Later stages that hold samples back or leave some out, of which a state knows
            nothing.
    """

    batched_inside: bool = True
    inexact: tuple[str, ...] = ()

    def __init__(
        self,
        data: ShardDataset,
        keep: KeepSet,
        order: OrderSettings,
        source: Source,
        urls: list[str],
        *,
        tail: str,
        batch_size: int | None,
        world: World | None,
    ) -> None:
        self.data, self.keep, self.order = data, keep, order
        self.tail, self.batch_size, self.world = tail, batch_size, world
        self._handler, self._select = source.handler, source.select_files
        data.with_raw = self._select is not None
        self._names = [(url, _local_path(url) if source.local_paths else None) for url in urls]
        self._starts = Starts()
        self._taken = self._skip = self._first = 0
        self._spare: Sample | None = None
        self._ended, self._turn, self._goes_on, self._waits = False, 0, False, False

    @property
    def ledger(self) -> Ledger:
        """What all workers of this rank read."""
        return self.data.ledger

    def set_epoch(self, epoch: int) -> None:
        """Begin at an epoch's start, or where a state that was just loaded stands in it."""
        if self._starts.begun or epoch != self._starts.told.epoch:
            self._tell(Start(epoch))

    @property
    def is_uneven(self) -> bool:
        """Whether some ranks have a sample more in an epoch, as nothing makes batches."""
        return self.batch_size is None and len(self.keep) % self.own_world().size > 0

    @property
    def begun(self) -> bool:
        """Whether a loader has begun a pass since epoch and place were set."""
        return self._starts.begun_by_loader

    def begin_pass(self, *, batches: bool) -> tuple[int, int]:
        """Begin a pass that workers may make: passes in a row are epochs in a row.

        Args:
            batches: Whether the items of the pass are batches, or samples.

        Returns:
            The items of this rank in it, and the remainder of its end.
        """
        if self.begun:
            self._tell(Start(self._starts.told.epoch + 1))
        self._starts.begin_by_loader()
        return self.pass_size(batches=batches)

    def state_dict(
        self, samples_done: int | None = None, *, batched: bool = False
    ) -> dict[str, Any]:
        """Return epoch, place and the plan they belong to.

        Warns, once, where later stages do not let the place be told.

        Args:
            samples_done: Over all ranks, in this pass. Left out: what was taken from this object;
                inside a worker then the state is that worker's own.
            batched: Whether a later stage makes batches of what is taken.

        Raises:
            ShardsieveError: If that is left out and the workers of a loader read the pass.
        """
        start = self._starts.under_way
        if samples_done is None and get_worker_info() is not None:
            self._warn_of_inexact()
            # A worker that stays is asked before it begins, too.
            taken = self._skip if self._waits else self._given(batched)
            start = self._starts.coming if self._waits else start
            return {**self._state(start, start.place), "taken": taken}
        if samples_done is None:
            if self._starts.begun_by_workers:
                raise ShardsieveError(
                    "a pipeline does not see what its loader's workers gave to the loop; prune the "
                    "loader, ss.prune(DataLoader(pipeline, ...), store, ...), and take its state, "
                    "or say samples_done="
                )
            taken = self._given(batched) if batched else self._taken
            samples_done = self._places(start.place, taken, batches=False)
        return self._state_behind(start, samples_done)

    def state_after(self, items: int, *, batches: bool, on: bool = False) -> dict[str, Any]:
        """Return the state after so many items of this rank in this pass.

        Args:
            items: What the loop was given.
            batches: Whether they are batches, or samples.
            on: Whether the pass goes on with the epochs that follow.
        """
        start = self._starts.told if on else self._starts.under_way
        left = self._items(start.place, batches=batches)
        while on and 0 < left <= items:
            start, items = Start(start.epoch + 1), items - left
            left = self._items(0, batches=batches)
        return self._state_behind(start, self._places(start.place, items, batches=batches))

    def load_state_dict(self, state: dict[str, Any], *, on: bool = False) -> None:
        """Begin at a state's place; in a pass that goes on, behind an epoch's end."""
        refuse_another_plan(state, self._plan_name(), "pipeline")
        epoch, place, block = state["epoch"], state["samples_done"], state.get("block") or 0
        if on and self._is_over(int(place)):
            epoch, place, block = int(epoch) + 1, 0, 0
        self._tell(Start(int(epoch), int(place), int(block)))
        self._taken = self._skip = self._first = int(state.get("taken", 0))

    def own_world(self) -> World:
        """Return this process' rank and the number of ranks."""
        if self.world is not None:
            return self.world
        rank, size, _, _ = pytorch_worker_info()
        return World(rank, size)

    def rank_samples(self, start: int = 0) -> int:
        """Return the samples of this rank in an epoch, from a place on."""
        world = self.own_world()
        if self.batch_size is None:
            return len(range(world.rank, len(self.keep) - start, world.size))
        return self._steps(start).rank_length(world.rank)

    def pass_size(self, *, batches: bool) -> tuple[int, int]:
        """Return the items of this rank in the pass that begins, and the remainder of its end.

        Args:
            batches: Whether the items are batches, or samples.
        """
        start, remainder = self._starts.under_way.place, 0
        if self.batch_size is not None and self.tail == "pad":
            steps = self._steps(start)
            remainder = steps.total % steps.global_batch
        return self._items(start, batches=batches), remainder

    def begin_turns(self) -> None:
        """Begin a pass: the first item is the first worker's."""
        self._turn, self._goes_on, self._waits = 0, False, True

    def missed_turn(self) -> bool:
        """Return whether the epoch that is over was too short for this worker, and none else is."""
        return self._taken == 0 and self._items(0, batches=True) > 0

    def __iter__(self) -> Iterator[Sample]:
        _, _, worker, workers = pytorch_worker_info()
        start, worker = self._starts.begin(on=self._goes_on), (worker - self._turn) % workers
        # Now, as a later stage may not ask for all of it; in every worker alike.
        self._turn += self._items(start.place, batches=self.batched_inside)
        self._goes_on = True
        parts = _without_first(self._parts(start, worker, workers), self._skip)
        self._taken = self._first = self._skip
        self._skip, self._ended, self._waits = 0, False, False
        for ids, following in _with_next(_grouped(parts)):
            for sample in self._in_step(self._read(ids, following)):
                self._taken += 1
                if sample is not None:
                    yield sample
        self._ended = True

    # Inside ---------------------------------------------------------------------------------

    def _tell(self, start: Start) -> None:
        self._starts.tell(start)
        self._taken = self._skip = self._first = 0

    def _state(self, start: Start, done: int) -> dict[str, Any]:
        place = {"epoch": start.epoch, "block": start.block or self._block()}
        return {"plan": self._plan_name(), **place, "samples_done": done}

    def _state_behind(self, start: Start, samples_done: int) -> dict[str, Any]:
        done = min(start.place + samples_done, len(self.keep))
        gone_on = start.epoch > self._starts.told.epoch or done == len(self.keep)
        if 0 < done < len(self.keep) or (gone_on and "repeat" in self.inexact):
            self._warn_of_inexact()
        return self._state(start, done)

    def _items(self, start: int, *, batches: bool) -> int:
        """Return the batches or samples of this rank in an epoch, from a place on."""
        whole = batches and self.batch_size is not None
        return len(self._steps(start)) if whole else self.rank_samples(start)

    def _is_over(self, start: int) -> bool:
        """Return whether an epoch has nothing from a place on, for any rank."""
        return start >= len(self.keep) if self.batch_size is None else not len(self._steps(start))

    def _places(self, start: int, items: int, *, batches: bool) -> int:
        """Return the samples over all ranks once this rank has so many items, from a place on."""
        if self.batch_size is None:  # a sample is a step
            return min(items * self.own_world().size, len(self.keep) - start)
        steps = self._steps(start)
        if not batches:
            over = items >= steps.rank_length(self.own_world().rank)  # the last may be smaller
            items = len(steps) if over else items // self.batch_size
        return steps.places_done(items)

    def _warn_of_inexact(self) -> None:
        if self.inexact:
            _LOG.warning(
                "the state of this epoch is not exact: .%s() holds samples back or leaves some "
                "out, and after it is loaded some of the epoch are missing or come twice; leave "
                "it out (prune selects by itself, and shuffles with shuffle='window'), or save "
                "states between epochs",
                "(), .".join(self.inexact),
            )
        self.inexact = ()

    def _block(self) -> int:
        return (self.batch_size or 1) * self.own_world().size

    def _parts(self, start: Start, worker: int, workers: int) -> Iterator[Ids]:
        """Yield the ids of this worker, in order; ~id where a sample only fills up a step."""
        block = start.block or self._block()
        order = self.order.epoch(self.keep, len(self.data), start.epoch, block)
        made = _Places(ordered_ids(self.keep, order, start.place))
        world, total = self.own_world(), len(self.keep) - start.place
        if self.batch_size is None:
            stride = world.size * workers
            for begin in range(world.rank + worker * world.size, total, stride * _AT_ONCE):
                yield made.between(begin, min(begin + stride * _AT_ONCE, total))[::stride]
            return
        steps, given = self._steps(start.place), 0
        opening = made.first(min(steps.global_batch, total))
        for step in range(len(steps)):
            begin, end = steps.share(step, world.rank)
            ids = made.between(begin, end)
            missing = self._size(steps, step) - len(ids)
            if missing:
                ids = np.concatenate([ids, ~np.resize(opening, missing)])
            if not self.batched_inside:
                yield ids[(worker - given) % workers :: workers]
            elif step % workers == worker:
                yield ids
            given += len(ids)

    def _steps(self, start: int) -> Steps:
        left = len(self.keep) - start
        return Steps(left, self.batch_size or 1, self.own_world().size, self.tail)

    def _given(self, batched: bool) -> int:
        """Return the samples of this worker that have left it.

        webdataset's `batched` takes the next batch's first sample before it gives a batch away.
        """
        if self.batch_size is None or self._ended:
            return self._taken
        left = max(self._taken - self._first - batched, 0)
        return self._first + left // self.batch_size * self.batch_size

    def _size(self, steps: Steps, step: int) -> int:
        """Return the samples of this rank in a step, those counted that only fill it up."""
        # Later stages cut batches by count: one that lent a sample would shift those behind it.
        last = step + 1 == len(steps)
        return steps.size(step, self.own_world().rank) if last else steps.batch_size

    def _in_step(self, samples: list[Sample | None]) -> Iterable[Sample | None]:
        """Put another sample, with weight 0, where one is left out and other ranks count on it."""
        if self.batch_size is None or self.own_world().size == 1:
            return samples
        good = [s for s in samples if s is not None]
        if good:
            self._spare = good[-1]
        elif self._spare is None and samples:
            self._spare = self._found_spare()
        return [_weightless(self._spare) if s is None else s for s in samples]

    def _found_spare(self) -> Sample | None:
        """Return a kept sample that can be read, first looked for in every shard; None if none can.

        Others may read all of theirs: this rank has as many batches.
        """
        shards = np.flatnonzero(self.keep.counts)
        firsts = self.keep.ids_at(shards, np.zeros_like(shards))
        found = (self._read(one[None], None)[0] for one in [*firsts, *self.keep.ids()])
        return next((sample for sample in found if sample is not None), None)

    def _read(self, ids: Ids, following: Ids | None) -> list[Sample | None]:
        """Return the sample of every id, None for those that are left out."""
        repeated = ids < 0
        if repeated.any():
            samples = self._read(np.where(repeated, ~ids, ids), following)
            return [_weightless(s) if r else s for s, r in zip(samples, repeated, strict=True)]
        try:
            samples = self.data.aligned(weighted_ids(self.keep, ids))
        except CorruptShardError as error:
            if len(ids) > 1:
                samples = [self._read(one[None], None)[0] for one in ids]
            elif self._handler(error):
                samples = [None]
            else:
                raise
        else:
            samples = [None if s is None else self._as_webdataset(s) for s in samples]
        if following is not None:
            self.data.look_ahead(np.where(following < 0, ~following, following))
        return samples

    def _as_webdataset(self, sample: Sample) -> Sample | None:
        shard = sample["__id__"] // self.data.store.rows_per_shard
        sample["__url__"], path = self._names[shard]
        if path is None:  # where the pipeline's own opener gives none
            sample.pop("__local_path__", None)
        else:
            sample["__local_path__"] = path
        return sample if self._select is None else self._selected(sample)

    def _selected(self, sample: Sample) -> Sample | None:
        """Apply `select_files` to the members' own names, as webdataset would."""
        raw = sample.pop("__raw__")
        files = wds.tariterators.tar_file_iterator(
            io.BytesIO(raw + _END), select_files=self._select
        )
        members = list(wds.tariterators.group_by_keys({**file, "__url__": ""} for file in files))
        if not members:
            return None
        ours = {name: value for name, value in sample.items() if name.startswith("__")}
        return {**members[0], **ours}

    def _plan_name(self) -> str:
        return f"{self.data.store.fingerprint}/{self.keep.digest}/{self.order.name}"


def _local_path(url: str) -> str | None:
    parsed = urlparse(url)
    return parsed.path if parsed.scheme in ("", "file") else None


class _Places:
    """The ids at places of an order, asked for in ascending order."""

    def __init__(self, parts: Iterator[Ids]) -> None:
        self._parts, self._held, self._first = parts, np.zeros(0, dtype=np.int64), 0

    def between(self, begin: int, end: int) -> Ids:
        """Return the ids at `[begin, end)`; nothing before `begin` may be asked for any more."""
        while self._first + len(self._held) < end:
            self._held = np.concatenate([self._held, next(self._parts)])
        self._held, self._first = self._held[max(begin - self._first, 0) :], begin
        return self._held[: end - begin]

    def first(self, count: int) -> Ids:
        """Return the ids at the first places, and go on from the beginning."""
        return self.between(0, count)


def _weightless(sample: Sample | None) -> Sample | None:
    return None if sample is None else {**sample, "__weight__": 0.0}


def _grouped(parts: Iterator[Ids]) -> Iterator[Ids]:
    """Yield the same ids, at least `_AT_ONCE` together where there are so many."""
    held: list[Ids] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _AT_ONCE:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _with_next(groups: Iterator[Ids]) -> Iterator[tuple[Ids, Ids | None]]:
    """Yield every group with the one after it."""
    last: Ids | None = None
    for group in groups:
        if last is not None:
            yield last, group
        last = group
    if last is not None:
        yield last, None


def _without_first(parts: Iterator[Ids], count: int) -> Iterator[Ids]:
    """Yield the same ids without the first so many."""
    for part in parts:
        if len(part) > count:
            yield part[count:]
        count = max(count - len(part), 0)
