"""Existing webdataset pipelines with their source replaced: only kept byte ranges are read."""

import logging
import sys
from collections.abc import Iterator
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
from shardsieve.loaders.asking import caller_of
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
        return in_a_pass(self, self.epoch_items(), self.workers)

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


def in_a_pass(pipeline: wds.DataPipeline, items: int, workers: int = 1) -> int:
    """Return the items of a pass of an epoch's: `with_epoch` and `repeat` are each worker's."""
    repeated = items if pipeline.repetitions == sys.maxsize else items * pipeline.repetitions
    if pipeline.repetitions == 1 or pipeline.nsamples <= 0:
        return int(repeated)
    cut = pipeline.nsamples * workers
    return int(cut if pipeline.repetitions == sys.maxsize else min(cut, repeated))


def _only_shards_of(urls: list[str], store: Store, keep: KeepSet) -> tuple[KeepSet, list[str]]:
    """Return the keep set within these shards, and every store shard's name in the pipeline."""
    place = {_name(url): shard for shard, url in enumerate(store.urls)}
    place |= {_name(url): shard for shard, url in enumerate(store.places)}
    strange = [url for url in urls if _name(url) not in place]
    if strange:
        raise StoreMismatchError(
            f"shard {strange[0]} of the pipeline is not in {store.path}; "
            "index all shards of the pipeline"
        )
    if len({place[_name(url)] for url in urls}) < len(urls):
        raise ShardsieveError("the pipeline names a shard twice; name each once")
    names, read = list(store.places), np.zeros(store.num_shards, dtype=bool)
    for url in urls:
        shard = place[_name(url)]
        names[shard], read[shard] = url, True
    return keep.within(read), names


def _name(url: str) -> str:
    parsed = urlparse(url)
    return str(Path(parsed.path).resolve()) if parsed.scheme in ("", "file") else url
