"""Loaders over webdataset pipelines, pruned: their own stages, lengths and states."""

import copy
import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import webdataset as wds

from shardsieve.loaders.accelerated import RegisteredIterator
from shardsieve.loaders.asking import HandedOut
from shardsieve.loaders.stages import (
    batch_size_of,
    inexact_stages,
    items_of,
    makes_batches,
    refuse_caches,
    refuse_own_iteration,
    takes_batches_apart,
)
from shardsieve.loaders.webdataset import PrunedPipeline, in_a_pass, prune_pipeline
from shardsieve.store.store import Store

_LOG = logging.getLogger("shardsieve")


def prune_loader(loader: Any, store: Store, **options: Any) -> Any:
    """Return a copy of a `WebLoader` or torch `DataLoader` over a pruned pipeline.

    `accelerator.prepare` leaves it as it is: it is split over the ranks already. Its `state_dict()`
    counts the batches that the loop has been given.
    """
    if isinstance(loader, wds.DataPipeline):
        return _prune_web_loader(loader, store, **options)
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


def _prune_web_loader(loader: wds.DataPipeline, store: Store, **options: Any) -> "PrunedWebLoader":
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
        return in_a_pass(self, self.epoch_items())

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
