"""Existing webdataset pipelines with their source replaced: only kept byte ranges are read."""

import copy
import functools
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import webdataset as wds
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from torch.utils.data import get_worker_info

from shardsieve._errors import ShardsieveError, StoreMismatchError
from shardsieve.io.spans import Storage
from shardsieve.keepset import KeepSet, keep_set_of
from shardsieve.loaders.accelerated import RegisteredIterator
from shardsieve.loaders.asking import HandedOut, caller_of
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.planned import OrderSettings, checked_epoch
from shardsieve.loaders.pruned_source import PrunedSource
from shardsieve.loaders.stages import (
    batch_size_of,
    flat,
    inexact_stages,
    items_of,
    makes_batches,
    refuse_caches,
    refuse_own_iteration,
    refuse_second_split,
    source_of,
    takes_batches_apart,
)
from shardsieve.plan import TAILS, World, checked_world
from shardsieve.scores.inputs import one_of, whole_number
from shardsieve.store.store import Store

_LOG = logging.getLogger("shardsieve")


def prune_pipeline(
    pipeline: wds.DataPipeline,
    store: Store,
    *,
    score: str | None = None,
    keep_set: KeepSet | str | None = None,
    seed: int = 0,
    shuffle: str | None = None,
    window: int | None = None,
    groups: int = 1,
    tail: str = "uneven",
    batch_size: int | None = None,
    world: World | None = None,
    storage: Storage | None = None,
    on_error: str = "raise",
    max_unreadable: int = 100,
    **selection: Any,
) -> "PrunedPipeline":
    """Return a copy of a pipeline whose source reads only kept samples.

    Shard list, splitting by node and worker, shard shuffle and tar reading are replaced; all later
    stages stay. Samples have webdataset's own fields, and `__id__`, `__weight__`, `__score__`.

    Every kept sample is read once over all ranks and workers. With a batch size (that of the
    pipeline's `batched` stage, or the argument) ranks take equally many batches, and a
    worker whole ones, so that the batches do not change with the number of workers, as long as no
    stage before `batched` drops or reorders samples. Without, ranks differ by at most one sample.
    Behind a stage that holds samples back or leaves some out (`.shuffle(1000)`, `.select(...)`)
    neither equal batches nor an exact `state_dict` in mid-epoch can be promised. Under Accelerate
    prune the loader: one made over a pruned pipeline does not tell where a pass ends.

    A sample that cannot be read goes to the pipeline's own `handler`; with `on_error="skip"` it is
    named in a warning, counted and left out. Where ranks count on it, another sample with
    `__weight__` 0 takes its place.

    Args:
        pipeline: Begins with a list of shards of the store, all or some of them.
        store: An open store.
        score: Name of a stored score; samples carry it as `__score__`.
        keep_set: Use this one, or the stored one of this name, instead of selecting.
        seed: Of the order, and of `rule="random"`.
        shuffle: `window`, `global` or `none`, as in `PrunedShardSampler`. By default `window`
            where the pipeline shuffled shards or a window is given, else `none`.
        window: As in `PrunedShardSampler`.
        groups: As in `PrunedShardSampler`.
        tail: `uneven`, `pad` (samples that fill up the last batches have `__weight__` 0) or `drop`.
        batch_size: Of what makes batches behind the pipeline, per rank.
        world: Found from the environment or `torch.distributed` when left out.
        storage: What reading costs where the shards lie; by their kind when left out.
        on_error: `raise` or `skip`, as in `ShardDataset`.
        max_unreadable: Most samples to skip.
        **selection: `keep_fraction`, `rule` and the others of `select`; everything is kept when
            left out.

    Raises:
        ShardsieveError: If a stage cannot be kept, or a shard is not in the store.
        ValueError: If an argument is out of range.
    """
    one_of("tail", tail, TAILS)
    if batch_size is not None:
        whole_number("batch_size", batch_size, 1)
    pipeline = flat(pipeline)
    source = source_of(pipeline.pipeline)
    refuse_own_iteration(pipeline)
    refuse_caches(source.rest)
    # Beside a keep set the score is what samples carry.
    by = {"score": score} if keep_set is None else {}
    chosen = {"keep_fraction": 1.0, "seed": seed, **by, **selection}
    kept = keep_set_of(store, keep_set, **chosen)
    keep, urls = _only_shards_of(source.urls, store, kept)
    shuffled = source.shuffled or window is not None
    order = OrderSettings(seed, shuffle or ("window" if shuffled else "none"), window, groups)
    data = ShardDataset(
        store, score=score, storage=storage, on_error=on_error, max_unreadable=max_unreadable
    )
    size, partial = batch_size_of(source.rest)
    if batch_size is None and not partial and tail == "uneven":
        tail = "drop"
    how: dict[str, Any] = {"tail": tail, "batch_size": batch_size or size}
    reader = PrunedSource(data, keep, order, source, urls, **how, world=checked_world(world))
    reader.inexact = tuple(inexact_stages(source.rest))
    if source.for_all and world is None and reader.own_world().size > 1:
        _LOG.warning(
            "every rank has its share of the kept samples, and the pipeline gave all to each, as "
            "nothing in it splits by node; say world=ss.World(0, 1) for all on every rank, as "
            "where one evaluates alone, or put wds.split_by_node into the pipeline"
        )
    pruned = PrunedPipeline.__new__(PrunedPipeline)
    pruned.__dict__.update(pipeline.__dict__)
    pruned.pipeline = [reader, *source.rest]
    return pruned


def prune_loader(loader: Any, store: Store, **options: Any) -> Any:
    """Return a copy of a `WebLoader` or torch `DataLoader` over a pruned pipeline.

    `accelerator.prepare` leaves it as it is: it is split over the ranks already. Its `state_dict()`
    counts the batches that the loop has been given.
    """
    if isinstance(loader, wds.DataPipeline):
        stages = loader.pipeline[1:]
        refuse_caches(stages)
        size, partial = batch_size_of(stages)
        if size is not None:
            options = {"batch_size": size, "tail": "uneven" if partial else "drop", **options}
        inner = prune_loader(loader.pipeline[0], store, **options)
        refuse_own_iteration(loader)
        inner_size = batch_size_of(inner.dataset.pipeline[1:])[0] or loader.pipeline[0].batch_size
        inner.dataset.source.inexact += tuple(inexact_stages(stages))
        remade = None not in (size, inner_size) and size != inner_size and inner.num_workers > 1
        if remade or takes_batches_apart(stages):
            # Batches that are made again mix the workers' ones.
            inner.dataset.source.inexact += ("unbatched",)
        outer = PrunedWebLoader.__new__(PrunedWebLoader)
        outer.__dict__.update(loader.__dict__)
        outer.pipeline, outer.counts_batches = [inner, *stages], makes_batches(stages)
        if outer.counts_batches:
            del inner.__dict__["_get_iterator"]  # its batches are counted, not what workers give
            if _goes_on(inner.dataset):
                inner.dataset.source.inexact += ("repeat",)
        warn_of_long_passes(outer)
        return outer
    if not isinstance(loader.dataset, wds.DataPipeline):
        raise TypeError(
            f"loader must read a webdataset pipeline, got {type(loader.dataset).__name__}; prune "
            "the pipelines inside it, or use PrunedShardSampler with ShardDataset"
        )
    if loader.batch_size is not None:
        options.setdefault("batch_size", loader.batch_size)
        options.setdefault("tail", "drop" if loader.drop_last else "uneven")
    pruned = copy.copy(loader)
    own, source = pruned.__dict__, prune_pipeline(loader.dataset, store, **options)
    source.workers = max(loader.num_workers, 1)
    source.source.batched_inside = _hands_out_batches(loader)
    if _goes_on(source) and (loader.batch_size is not None or source.source.is_uneven):
        # Its batches hold samples of two epochs, or ranks come to an epoch's end one by one.
        source.source.inexact += ("repeat",)
    # A DataLoader refuses a new dataset, and its sampler says no more than "go on".
    own["dataset"], own["_iterator"] = source, None
    own["_is_accelerate_prepared"] = True
    own["_handed_out"] = None
    own["_get_iterator"] = _method_of(pruned, _registered_iterator)
    own["state_dict"] = _method_of(pruned, _loader_state)
    for name in ("set_epoch", "load_state_dict"):
        own[name] = getattr(pruned.dataset, name)
    warn_of_long_passes(source)
    return pruned


def _goes_on(pipeline: wds.DataPipeline) -> bool:
    """Return whether `repeat` lets a pass go on through epochs, and no `with_epoch` cuts it."""
    return bool(pipeline.repetitions != 1 and pipeline.nsamples <= 0)


def _method_of(loader: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Bind a function to a loader that does not hold itself by it.

    A loader in a cycle is found by the garbage collector, which takes the workers' queues apart
    before the workers were told to end: torch then waits 5 seconds for each.
    """
    weakly = weakref.ref(loader)

    @functools.wraps(function)
    def method(**options: Any) -> Any:
        return function(weakly(), **options)

    return method


def _registered_iterator(loader: Any) -> Any:
    def made() -> Any:
        iterator = type(loader)._get_iterator(loader)
        loader.__dict__["_handed_out"] = HandedOut(iterator)
        return iterator

    begin, batches = loader.dataset.source.begin_pass, _hands_out_batches(loader)
    return RegisteredIterator(made, functools.partial(begin, batches=batches))


def _hands_out_batches(loader: Any) -> bool:
    return loader.batch_size is not None or makes_batches(loader.dataset.pipeline[1:])


def _loader_state(loader: Any, *, samples_done: int | None = None) -> dict[str, Any]:
    """Return where the epoch stands, JSON-ready and the same on every rank.

    Args:
        loader: Made by `prune_loader`.
        samples_done: Over all ranks in this pass; left out, what the loop has been given counts.
    """
    source, handed = loader.dataset.source, loader.__dict__["_handed_out"]
    state: dict[str, Any]
    if samples_done is not None:
        state = source.state_dict(samples_done)
    else:
        items = handed.place() if handed is not None and source.begun else 0
        batches, on = _hands_out_batches(loader), loader.dataset.repetitions != 1
        state = source.state_after(items, batches=batches, on=on)
    return state


class PrunedWebLoader(wds.WebLoader):  # type: ignore[misc]
    """A `WebLoader` that reads kept samples only; made by `prune`.

    Attributes:
        counts_batches: Whether its own stages made batches when it was pruned: these are counted
            then, and else what its workers give, also where `.batched` is added later.
    """

    counts_batches: bool

    _given = 0  # batches that were made behind the workers, in this pass

    def __len__(self) -> int:
        """Return what one rank gives in an epoch over all its workers: batches, or samples.

        Trainers that find no length ask for a batch more than they train on, and a state counts it.
        Stages that drop or add samples are not known to it.
        """
        return _in_a_pass(self, self.epoch_items())

    def epoch_items(self) -> int:
        """Return what one rank gives of each kept sample once."""
        inner, stages = self.pipeline[0], self.pipeline[1:]
        items = len(inner.dataset)  # a loader that was asked for its own warns where it has more
        if inner.batch_size is not None:
            stages = [wds.batched(inner.batch_size, partial=not inner.drop_last), *stages]
        elif makes_batches(inner.dataset.pipeline[1:]):
            return items_of(inner.dataset.source.rank_samples(), stages, items)
        return items_of(items, stages)

    @property
    def dataset(self) -> Any:
        """Refuse to be taken for a torch loader, as by Accelerate's `skip_first_batches`."""
        raise AttributeError(
            "a pruned WebLoader has no `dataset` of its batches, which skip_first_batches asks "
            "for; go on by its state instead: loader.load_state_dict(state)"
        )

    def iterator1(self) -> Iterator[Any]:
        """Iterate the items of one pass; batches that are made behind the workers are counted."""
        found: Iterator[Any] = self._counted() if self.counts_batches else super().iterator1()
        return found

    def state_dict(self, *, samples_done: int | None = None) -> dict[str, Any]:
        """Return where the epoch stands, JSON-ready and the same on every rank.

        Args:
            samples_done: Over all ranks in this pass; left out, what the loop was given counts.
        """
        source = self.pipeline[0].dataset.source
        state: dict[str, Any]
        if samples_done is None and self.counts_batches:
            state = source.state_after(self._given if source.begun else 0, batches=True)
        else:
            state = self.pipeline[0].state_dict(samples_done=samples_done)
        return state

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, as `PrunedPipeline.set_epoch` does."""
        self.pipeline[0].set_epoch(epoch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any number of ranks and workers."""
        inside = self.pipeline[0].dataset
        inside.source.load_state_dict(state, on=self.repetitions != 1 or inside.repetitions != 1)

    def _counted(self) -> Iterator[Any]:
        begin = functools.partial(self.pipeline[0].dataset.source.begin_pass, batches=True)
        self._given = 0
        for batch in RegisteredIterator(super().iterator1, begin):
            self._given += 1
            yield batch


class PrunedPipeline(wds.WebDataset):  # type: ignore[misc]
    """A webdataset pipeline that reads kept samples only; made by `prune`.

    Attributes:
        workers: Of the loader that it was pruned with: each makes a pass of its own.
    """

    workers: int = 1

    @property
    def source(self) -> "PrunedSource":
        """The first stage."""
        found: PrunedSource = self.pipeline[0]
        return found

    def __len__(self) -> int:
        """Return what one rank gives in an epoch over all its workers: batches, or samples.

        Stages that drop or add samples are not known to it.
        """
        return _in_a_pass(self, self.epoch_items(), self.workers)

    def epoch_items(self) -> int:
        """Return what one rank gives of each kept sample once."""
        return items_of(self.source.rank_samples(), self.pipeline[1:])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, also in loader workers that are running already.

        Raises:
            ValueError: If it is below 0, or no whole number.
        """
        caller, world = caller_of(), self.source.own_world()
        if world.size > 1 and isinstance(caller, (DataLoaderDispatcher, IterableDatasetShard)):
            raise ShardsieveError(
                "this pipeline is split over the ranks already and accelerator.prepare would do it "
                "again; give prepare the pruned loader instead: "
                "ss.prune(DataLoader(pipeline, ...), store, ...)"
            )
        self.source.set_epoch(checked_epoch(epoch))

    @property
    def ledger(self) -> Ledger:
        """What all workers of this rank read."""
        return self.source.ledger

    @property
    def unreadable(self) -> list[int]:
        """Ids of the samples skipped so far, over all workers of this rank, ascending."""
        return self.source.data.unreadable

    def iterator(self) -> Iterator[Any]:
        """Iterate the stages, unless one would split the samples again, or repeat a pass."""
        refuse_caches(self.pipeline[1:])
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        ranks = self.source.own_world().size
        refuse_second_split(self.pipeline[1:], ranks=ranks, workers=workers)
        if info is not None and self.repetitions != 1:
            # Workers end an epoch one by one: a state that each of them gives knows no turns.
            stage = "repeat" if self.nsamples <= 0 else "with_epoch"
            if stage not in self.source.inexact:  # of a worker that stays, in every pass
                self.source.inexact += (stage,)
        self.source.begin_turns()
        return self._epochs()

    def _epochs(self) -> Iterator[Any]:
        """Iterate as webdataset does, but go on where it is the turn of other workers alone."""
        for _ in range(self.repetitions):
            count = 0
            for item in self.iterator1():
                yield item
                count += 1
            if count == 0 and not self.source.missed_turn():
                break

    def state_dict(self, *, samples_done: int | None = None) -> dict[str, Any]:
        """Return where the epoch stands, JSON-ready.

        Args:
            samples_done: Over all ranks, in this pass. Left out: what was taken from this very
                object; a loader with workers has a `state_dict` of its own.
        """
        batched = makes_batches(self.pipeline[1:])
        return self.source.state_dict(samples_done, batched=batched)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any number of ranks and workers."""
        self.source.load_state_dict(state, on=self.repetitions != 1)


def warn_of_long_passes(pruned: PrunedPipeline | PrunedWebLoader) -> None:
    """Warn where `with_epoch` counts more than what is kept, as it was made for everything."""
    items, kept = len(pruned), pruned.epoch_items()
    if pruned.nsamples > 0 and 0 < kept < items:
        _LOG.warning(
            "with_epoch(%d) makes a pass of %d items, and the kept samples make %d: they come "
            "again in it, and its states are not exact; leave it out (all ranks make equally many "
            "steps without it), or give it fewer",
            pruned.nsamples,
            items,
            kept,
        )


def _in_a_pass(pipeline: wds.DataPipeline, items: int, workers: int = 1) -> int:
    """Return the items of a pass of an epoch's: `with_epoch` and `repeat` are each worker's."""
    repeated = items if pipeline.repetitions == sys.maxsize else items * pipeline.repetitions
    if pipeline.repetitions == 1 or pipeline.nsamples <= 0:
        return int(repeated)
    cut = pipeline.nsamples * workers
    return int(cut if pipeline.repetitions == sys.maxsize else min(cut, repeated))


def _only_shards_of(urls: list[str], store: Store, keep: KeepSet) -> tuple[KeepSet, list[str]]:
    """Return the keep set within these shards, and every store shard's name in the pipeline."""
    place = {_name(url): shard for shard, url in enumerate(store.urls)}
    strange = [url for url in urls if _name(url) not in place]
    if strange:
        raise StoreMismatchError(
            f"shard {strange[0]} of the pipeline is not in {store.path}; "
            "index all shards of the pipeline"
        )
    if len(set(map(_name, urls))) < len(urls):
        raise ShardsieveError("the pipeline names a shard twice; name each once")
    names, read = list(store.urls), np.zeros(store.num_shards, dtype=bool)
    for url in urls:
        shard = place[_name(url)]
        names[shard], read[shard] = url, True
    return keep.within(read), names


def _name(url: str) -> str:
    parsed = urlparse(url)
    return str(Path(parsed.path).resolve()) if parsed.scheme in ("", "file") else url
