"""Existing webdataset pipelines with their source replaced: only kept byte ranges are read."""

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
import webdataset as wds
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from numpy.typing import NDArray
from torch.utils.data import IterableDataset
from webdataset.utils import pytorch_worker_info

from shardsieve._errors import CorruptShardError, ShardsieveError, StoreMismatchError
from shardsieve.keepset import KeepSet, select
from shardsieve.loaders.asking import caller_of
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.stages import Source, batch_size_of, source_of
from shardsieve.plan import EpochOrder, Steps, World
from shardsieve.store.store import Store

_AT_ONCE = 64
_END = bytes(1024)


def prune_pipeline(
    pipeline: wds.DataPipeline,
    store: Store,
    *,
    keep_fraction: float = 1.0,
    score: str | None = None,
    rule: str = "top",
    keep_set: KeepSet | None = None,
    seed: int = 0,
    window: int | None = None,
    tail: str = "uneven",
    batch_size: int | None = None,
    world: World | None = None,
) -> "PrunedPipeline":
    """Return a copy of a pipeline whose source reads only kept samples.

    Shard list, splitting by node and worker, shard shuffle and tar reading are replaced; all later
    stages stay. Samples have webdataset's own fields, and `__id__`, `__weight__`, `__score__`.

    Every kept sample is read once over all ranks and workers. With a batch size (that of the
    pipeline's first `batched` stage, or the argument) ranks take equally many batches, and a
    worker whole ones, so that the batches do not change with the number of workers, as long as no
    stage before `batched` drops or reorders samples. Without, ranks differ by at most one sample.

    Args:
        pipeline: Begins with a list of shards of the store, all or some of them.
        store: An open store.
        keep_fraction: As in `select`, like `score` and `rule`.
        score: See there; samples carry it as `__score__`.
        rule: See there.
        keep_set: Use this one instead of selecting.
        seed: Of the order.
        window: Shards shuffled together; 0 keeps the store's order. By default 16 where the
            pipeline shuffled shards, else 0.
        tail: `uneven` or `drop`, as in `Steps`.
        batch_size: Of what makes batches behind the pipeline, per rank.
        world: Found from the environment or `torch.distributed` when left out.

    Raises:
        ShardsieveError: If a stage cannot be kept, or a shard is not in the store.
    """
    if tail not in ("uneven", "drop"):
        raise ValueError(f"tail must be 'uneven' or 'drop' for a pipeline, got {tail!r}")
    source = source_of(pipeline.pipeline)
    keep = keep_set or select(store, keep_fraction=keep_fraction, score=score, rule=rule, seed=seed)
    keep, urls = _only_shards_of(source.urls, store, keep)
    if batch_size is None:
        batch_size, partial = batch_size_of(source.rest)
        tail = tail if partial or tail != "uneven" else "drop"
    if window is None:
        window = 16 if source.shuffled else 0
    reader = PrunedSource(store, keep, source, urls, score=score, seed=seed, window=window)
    reader.tail, reader.batch_size, reader.world = tail, batch_size, world
    pruned = PrunedPipeline.__new__(PrunedPipeline)
    pruned.__dict__.update(pipeline.__dict__)
    pruned.pipeline = [reader, *source.rest]
    return pruned


def prune_loader(loader: Any, store: Store, **options: Any) -> Any:
    """Return a copy of a `WebLoader` or torch `DataLoader` over a pruned pipeline.

    `accelerator.prepare` leaves it as it is: it is split over the ranks already.
    """
    if isinstance(loader, wds.DataPipeline):
        inner = prune_loader(loader.pipeline[0], store, **options)
        size, _ = batch_size_of(loader.pipeline[1:])
        if size is not None and "batch_size" not in options:
            inner.dataset.source.batch_size = size
        outer = copy.copy(loader)
        outer.pipeline = [inner, *loader.pipeline[1:]]
        for name in ("set_epoch", "state_dict", "load_state_dict"):
            setattr(outer, name, getattr(inner.dataset, name))
        return outer
    if not isinstance(loader.dataset, wds.DataPipeline):
        raise TypeError(
            f"loader must read a webdataset pipeline, got {type(loader.dataset).__name__}; "
            "use PrunedShardSampler with ShardDataset for other data"
        )
    if loader.batch_size is not None:
        options.setdefault("batch_size", loader.batch_size)
        options.setdefault("tail", "drop" if loader.drop_last else "uneven")
    pruned = copy.copy(loader)
    # A DataLoader refuses a new dataset, and its sampler says no more than "go on".
    pruned.__dict__["dataset"] = prune_pipeline(loader.dataset, store, **options)
    pruned.__dict__["_iterator"] = None
    pruned.__dict__["_is_accelerate_prepared"] = True
    for name in ("set_epoch", "state_dict", "load_state_dict"):
        pruned.__dict__[name] = getattr(pruned.dataset, name)
    return pruned


class PrunedPipeline(wds.WebDataset):  # type: ignore[misc]
    """A webdataset pipeline that reads kept samples only; made by `prune`."""

    @property
    def source(self) -> "PrunedSource":
        """The first stage."""
        found: PrunedSource = self.pipeline[0]
        return found

    def __len__(self) -> int:
        """Return what one rank gives in an epoch over all its workers: batches, or samples.

        Stages that drop or add samples are not known to it.
        """
        if self.nsamples > 0:
            return int(self.nsamples)
        size, partial = batch_size_of(self.pipeline[1:])
        samples = self.source.rank_samples()
        if size is None:
            return samples
        return -(-samples // size) if partial else samples // size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, also in loader workers that are running already."""
        caller, world = caller_of(), self.source.own_world()
        if world.size > 1 and isinstance(caller, (DataLoaderDispatcher, IterableDatasetShard)):
            raise ShardsieveError(
                "this pipeline is split over the ranks already and accelerator.prepare would do it "
                "again; give prepare the pruned loader instead: "
                "ss.prune(DataLoader(pipeline, ...), store, ...)"
            )
        self.source.set_epoch(epoch)

    @property
    def ledger(self) -> Ledger:
        """What all workers of this rank read."""
        return self.source.ledger

    def state_dict(self, *, samples_done: int) -> dict[str, Any]:
        """Return where the epoch stands after so many samples over all ranks, JSON-ready."""
        return self.source.state_dict(samples_done)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` stands, on any number of ranks and workers."""
        self.source.load_state_dict(state)


class PrunedSource(IterableDataset[dict[str, Any]]):
    """The first stage of a pruned pipeline: raw samples of one rank and worker.

    Attributes:
        keep: What is read.
        tail: As in `Steps`.
        batch_size: Samples that a worker takes in a row, or None.
        world: Explicit rank and ranks, or None.
    """

    tail: str = "uneven"
    batch_size: int | None = None
    world: World | None = None

    def __init__(
        self,
        store: Store,
        keep: KeepSet,
        source: Source,
        urls: list[str],
        *,
        score: str | None,
        seed: int,
        window: int,
    ) -> None:
        self.store, self.keep, self.seed, self.window = store, keep, seed, window
        self._urls, self._handler, self._select = urls, source.handler, source.select_files
        self._local_paths = source.local_paths
        self._data = ShardDataset(store, score=score)
        # Epoch, place in it, and how often they were set; shared with running workers.
        self._told = torch.zeros(3, dtype=torch.int64)
        self._told.share_memory_()  # type: ignore[no-untyped-call]
        self._heard, self._passes = -1, 0

    @property
    def ledger(self) -> Ledger:
        """What all workers of this rank read."""
        return self._data.ledger

    def set_epoch(self, epoch: int) -> None:
        """Begin at an epoch's start, or where a loaded state stands in that epoch."""
        if epoch != int(self._told[0]):
            self._tell(epoch, 0)

    def state_dict(self, samples_done: int) -> dict[str, Any]:
        """Return epoch, place and the plan they belong to."""
        epoch, place = self._told[:2].tolist()
        done = min(place + samples_done, len(self.keep))
        return {"plan": self._plan_name(), "epoch": epoch, "samples_done": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin at a state's place."""
        if state["plan"] != self._plan_name():
            raise StoreMismatchError(
                f"the pipeline's state belongs to another plan\n  state:    {state['plan']}\n"
                f"  pipeline: {self._plan_name()}\nuse the store, keep set, seed and window of then"
            )
        self._tell(int(state["epoch"]), int(state["samples_done"]))

    def own_world(self) -> World:
        """Return this process' rank and the number of ranks."""
        if self.world is not None:
            return self.world
        rank, size, _, _ = pytorch_worker_info()
        return World(rank, size)

    def rank_samples(self) -> int:
        """Return the samples of this rank in a whole epoch."""
        world, total = self.own_world(), len(self.keep)
        if self.batch_size is None:
            return len(range(world.rank, total, world.size))
        steps = Steps(total, self.batch_size, world.size, self.tail)
        return sum(steps.size(step, world.rank) for step in range(len(steps)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, place = self._now()
        _, _, worker, workers = pytorch_worker_info()
        for ids in _grouped(self._mine(epoch, place, worker, workers)):
            yield from self._read(ids)

    # Inside ---------------------------------------------------------------------------------

    def _tell(self, epoch: int, place: int) -> None:
        self._told[0], self._told[1] = epoch, place
        self._told[2] += 1

    def _now(self) -> tuple[int, int]:
        """Return the epoch and place of this pass; passes in a row are epochs in a row."""
        epoch, place, told = self._told.tolist()
        if told != self._heard:
            self._heard, self._passes = told, 0
        self._passes += 1
        return epoch + self._passes - 1, place if self._passes == 1 else 0

    def _mine(
        self, epoch: int, start: int, worker: int, workers: int
    ) -> Iterator[NDArray[np.int64]]:
        world, held, first = self.own_world(), np.zeros(0, dtype=np.int64), 0
        spans = self._spans(len(self.keep) - start, world, worker, workers)
        windows = self._order(epoch, start)
        for begin, end, step in spans:
            while first + len(held) < end:
                held = np.concatenate([held, next(windows)])
            yield held[begin - first : end - first : step]
            held, first = held[end - first :], end

    def _spans(
        self, total: int, world: World, worker: int, workers: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield places [begin, end) with a stride, ascending."""
        if self.batch_size is None:
            stride = world.size * workers
            offset = world.rank + worker * world.size
            for begin in range(offset, total, stride * _AT_ONCE):
                yield begin, min(begin + stride * _AT_ONCE, total), stride
            return
        steps = Steps(total, self.batch_size, world.size, self.tail)
        for step in range(worker, len(steps), workers):
            begin, end = steps.share(step, world.rank)
            yield begin, max(end, begin + 1), 1

    def _order(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        order = EpochOrder(self.keep.counts, self.seed, epoch, self.window)
        for shard, ordinal in order.windows(start):
            yield self.keep.ids_at(shard, ordinal)

    def _read(self, ids: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        try:
            samples = self._data.__getitems__(ids.tolist())
        except CorruptShardError as error:
            if len(ids) > 1:
                for one in ids:
                    yield from self._read(one[None])
            elif not self._handler(error):
                raise
            return
        for sample in samples:
            kept = self._as_webdataset(sample)
            if kept is not None:
                yield kept

    def _as_webdataset(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        shard = sample["__id__"] // self.store.rows_per_shard
        url = self._urls[shard]
        sample["__url__"] = url
        parsed = urlparse(url)
        if self._local_paths and parsed.scheme in ("", "file"):
            sample["__local_path__"] = parsed.path
        if self._select is None:
            return sample
        return self._selected(sample)

    def _selected(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        """Apply `select_files` to the members' own names, as webdataset would."""
        offset, length = self._range(sample["__id__"])
        raw = self._data.reader.read(self.store.urls[self._shard(sample)], offset, length)
        files = wds.tariterators.tar_file_iterator(
            io.BytesIO(raw + _END), select_files=self._select
        )
        members = list(wds.tariterators.group_by_keys({**file, "__url__": ""} for file in files))
        if not members:
            return None
        ours = {name: value for name, value in sample.items() if name.startswith("__")}
        return {**members[0], **ours}

    def _shard(self, sample: dict[str, Any]) -> int:
        return int(sample["__id__"]) // self.store.rows_per_shard

    def _range(self, sample_id: int) -> tuple[int, int]:
        shard, position = divmod(sample_id, self.store.rows_per_shard)
        offset, length = self.store.ranges[shard, position].tolist()
        return offset, length

    def _plan_name(self) -> str:
        keep = f"{self.store.fingerprint}/{self.keep.digest}"
        return f"{keep}/seed{self.seed}/window{self.window}"


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
    names, bits = list(store.urls), np.zeros_like(keep.bits)
    for url in urls:
        shard = place[_name(url)]
        names[shard], bits[shard] = url, keep.bits[shard]
    return KeepSet(bits, keep.rows_per_shard, keep.fingerprint), names


def _name(url: str) -> str:
    parsed = urlparse(url)
    return str(Path(parsed.path).resolve()) if parsed.scheme in ("", "file") else url


def _grouped(parts: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Yield the same ids, at least `_AT_ONCE` together where there are so many."""
    held: list[NDArray[np.int64]] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _AT_ONCE:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
