"""What the stages of a webdataset pipeline do: which of them pruning replaces, and which refuse."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from webdataset import DataPipeline, cache, compat, filters, shardlists, tariterators

from shardsieve._errors import ShardsieveError
from shardsieve.shards.names import refuse_pipe

# Those that hold samples back, or leave some out, by what they are called in a pipeline.
_INEXACT = {
    "shuffle": filters._shuffle,
    "select": filters._select,
    "rsample": filters._rsample,
    "slice": itertools.islice,
}
_UNBATCHED = (filters._unbatched, filters._unlisted)
_NODE_SPLITTERS = (shardlists.split_by_node, shardlists.single_node_only)
_SPLITTERS = (*_NODE_SPLITTERS, shardlists.split_by_worker)
_ITERATING = ("__iter__", "iterator", "iterator1", "invoke")
# How the store has put members together.
_GROUPING = {"keys": tariterators.base_plus_ext, "lcase": True, "suffixes": None}
Handler = Callable[[Exception], bool]


@dataclass(frozen=True)
class Source:
    """What the source stages of a pipeline were asked to do.

    Attributes:
        urls: Shards, in the pipeline's order.
        shuffled: Whether shards were shuffled.
        local_paths: Whether samples carry `__local_path__`.
        handler: Of errors.
        select_files: Predicate on member names, or None.
        rest: The stages that stay.
        for_all: Whether every rank was given all samples, as nothing splits by node.
    """

    urls: list[str]
    shuffled: bool
    local_paths: bool
    handler: Handler
    select_files: Callable[[str], bool] | None
    rest: list[Any]
    for_all: bool


def flat(pipeline: DataPipeline) -> DataPipeline:
    """Return the pipeline with the stages of another one that it begins with, as a wrapper's."""
    first = pipeline.pipeline[0] if pipeline.pipeline else None
    if not isinstance(first, DataPipeline) or first.repetitions != 1 or _own_method(first):
        return pipeline
    whole = copy.copy(pipeline)
    whole.pipeline = [*flat(first).pipeline, *pipeline.pipeline[1:]]
    return whole


def refuse_own_iteration(pipeline: DataPipeline) -> None:
    """Check that a pipeline is iterated as webdataset's own are: a pruned one is of our class.

    Raises:
        ShardsieveError: If its class does more, naming it.
    """
    name = _own_method(pipeline)
    if name is not None:
        raise ShardsieveError(
            f"{type(pipeline).__name__} has a method {name} of its own, which a pruned pipeline "
            "does not have; do the same in a stage, as by .map(function) or .compose(function)"
        )


def source_of(stages: list[Any]) -> Source:
    """Read the source stages; see docs/design.md for what is replaced.

    Raises:
        ShardsieveError: If a stage would silently be lost, naming it and the way out.
    """
    urls, local_paths = _urls(stages[0]) if stages else [], False
    reading, end = _reading(None), _end_of_reader(stages)
    shuffled = getattr(stages[0], "seed", None) is not None
    for place, stage in enumerate(stages[1:end], start=1):
        if isinstance(stage, (cache.StreamingOpen, cache.FileCache)):
            local_paths = True
        elif _calls(stage, filters._shuffle) or isinstance(stage, filters.detshuffle):
            shuffled = shuffled or _buffer(stage) > 0
        elif _calls(stage, tariterators.tar_file_expander, tariterators.tarfile_samples):
            reading = _reading(stage)
        elif _calls(stage, tariterators.group_by_keys):
            _refuse_another_grouping(stage)
        elif stage not in _SPLITTERS and not _calls(stage, tariterators.url_opener):
            raise ShardsieveError(
                f"stage {place} of the pipeline, {stage}, stands before the tar reader, which is "
                "replaced; remove it (prune splits by itself, and shuffles shards with "
                "shuffle='window'), or move it behind"
            )
    rest = stages[end:]
    if rest and rest[0] is compat.check_empty:
        rest = rest[1:]  # a worker may have no batch to read
    unsplit = [stage for stage in rest if stage not in _SPLITTERS]  # samples may be split, too
    for_all = not any(stage in _NODE_SPLITTERS for stage in stages)
    return Source(urls, shuffled, local_paths, *reading, unsplit, for_all)


def refuse_second_split(stages: list[Any], *, ranks: int, workers: int) -> None:
    """Check that no stage behind a pruned source splits its samples over ranks or workers again.

    Args:
        stages: Those behind the source.
        ranks: Of the run; on one a stage that takes every other sample splits nothing.
        workers: Of the loader.

    Raises:
        ShardsieveError: If one does, naming it.
    """
    for place, stage in enumerate(stages, start=1):
        strided = _calls(stage, itertools.islice) and stage.args[2:] not in ((), (1,), (None,))
        again = ranks > 1 and (stage in _SPLITTERS or strided)
        if again or (workers > 1 and stage is shardlists.split_by_worker):
            raise ShardsieveError(
                f"stage {place} of the pruned pipeline, {stage}, splits the samples again: each "
                "rank and worker has its own share already; remove it"
            )


def refuse_caches(stages: list[Any]) -> None:
    """Check that no stage behind a pruned source gives again what an earlier pass gave.

    Raises:
        ShardsieveError: If one does, naming it.
    """
    for place, stage in enumerate(stages, start=1):
        if isinstance(stage, (filters.Cached, filters.LMDBCached)):
            raise ShardsieveError(
                f"stage {place} behind the tar reader, {type(stage).__name__}, gives again what it "
                "was given in an earlier pass, also samples that are not kept; remove it"
            )


def batch_size_of(stages: list[Any]) -> tuple[int | None, bool]:
    """Return (batch size, whether a smaller last batch is kept) of the stage that batches.

    That is the first `batched`; where batches are taken apart, the first one behind, if any.
    """
    for stage in [*_behind_unbatched(stages), *stages]:
        if _calls(stage, filters._batched):
            given = _given(stage, "batchsize", "collation_fn", "partial")
            return int(given.get("batchsize", 20)), bool(given.get("partial", True))
    return None, True


def makes_batches(stages: list[Any]) -> bool:
    """Return whether batches that one of the stages made come out of them."""
    return batch_size_of(_behind_unbatched(stages))[0] is not None


def takes_batches_apart(stages: list[Any]) -> bool:
    """Return whether samples come out of stages that are given batches."""
    return len(_behind_unbatched(stages)) < len(stages) and not makes_batches(stages)


def items_of(samples: int, stages: list[Any], items: int | None = None) -> int:
    """Return how many items stages make: batches, where one makes such, or samples.

    Args:
        samples: That go in.
        stages: Of a pipeline; those that drop or add samples are not known.
        items: In which they go in, if not one by one.
    """
    items = samples if items is None else items
    for stage in stages:
        size, partial = batch_size_of([stage])
        if size is not None:
            items = -(-samples // size) if partial else samples // size
            samples = samples if partial else items * size
        elif _calls(stage, *_UNBATCHED):
            items = samples
    return items


def inexact_stages(stages: list[Any]) -> list[str]:
    """Return the names of the stages behind which batches do not tell how far a source was read."""
    found = [name for one in stages for name, stage in _INEXACT.items() if _calls(one, stage)]
    return found + ["detshuffle" for one in stages if isinstance(one, filters.detshuffle)]


def _behind_unbatched(stages: list[Any]) -> list[Any]:
    """Return the stages behind the last one that takes batches apart; all, where none does."""
    places = [place for place, one in enumerate(stages, start=1) if _calls(one, *_UNBATCHED)]
    return stages[max(places, default=0) :]


def _own_method(pipeline: DataPipeline) -> str | None:
    """Return the method of iterating that its class has another one of, if any."""
    kind = type(pipeline)
    other = (name for name in _ITERATING if getattr(kind, name) is not getattr(DataPipeline, name))
    return next(other, None)


def _end_of_reader(stages: list[Any]) -> int:
    for place, stage in enumerate(stages, start=1):
        if _calls(stage, tariterators.group_by_keys, tariterators.tarfile_samples):
            return place
    raise ShardsieveError(
        "the pipeline must read tars by webdataset's own tarfile_to_samples, got no such stage; "
        "put it in the place of another reader"
    )


def _urls(stage: Any) -> list[str]:
    if isinstance(stage, shardlists.SimpleShardList):
        urls = list(stage.urls)
    elif isinstance(stage, list) and all(isinstance(item, dict) for item in stage):
        urls = [item["url"] for item in stage]
    elif isinstance(stage, shardlists.ResampledShards):
        raise ShardsieveError(
            "a resampled pipeline draws shards with replacement, so no epoch is defined; build it "
            "with resampled=False, and give prune shuffle='window'"
        )
    else:
        raise ShardsieveError(
            f"the pipeline must begin with a list of shards, got {type(stage).__name__}; begin it "
            "with wds.SimpleShardList(urls) and give prune shuffle='window' where it shuffled "
            "them, or prune each pipeline that it reads"
        )
    for url in urls:
        refuse_pipe(url)
    return urls


def _reading(stage: Any) -> tuple[Handler, Callable[[str], bool] | None]:
    given = _given(stage, "handler", "select_files", "rename_files")
    if given.get("rename_files") is not None:
        raise ShardsieveError(
            "rename_files changes which members form a sample, and the store knows their own "
            "names; rename fields behind the reader with .rename() or .map()"
        )
    return given.get("handler", filters.reraise_exception), given.get("select_files")


def _refuse_another_grouping(stage: Any) -> None:
    given = _given(stage, *_GROUPING)
    other = [name for name, usual in _GROUPING.items() if given.get(name, usual) != usual]
    if other:
        raise ShardsieveError(
            f"{other[0]} of group_by_keys changes which members form a sample, and the store knows "
            "their own names; choose members by select_files, or behind the reader"
        )


def _given(stage: Any, *names: str) -> dict[str, Any]:
    args, kw = getattr(stage, "args", ()), getattr(stage, "kw", {})  # a bare function has neither
    return {**dict(zip(names, args, strict=False)), **kw}


def _buffer(stage: Any) -> int:
    if isinstance(stage, filters.detshuffle):
        return int(stage.bufsize)
    return int(_given(stage, "bufsize").get("bufsize", 1000))


def _calls(stage: Any, *functions: Any) -> bool:
    return getattr(stage, "f", stage) in functions
