"""What `prune` reads from the stages of a webdataset pipeline."""

import pytest
import webdataset as wds
from webdataset import filters

import shardsieve as ss
from shardsieve.loaders.stages import (
    batch_size_of,
    inexact_stages,
    makes_batches,
    refuse_caches,
    refuse_second_split,
    source_of,
    takes_batches_apart,
)

TARS = ["a.tar", "b.tar"]


def built(*before, behind=()):
    return [wds.SimpleShardList(TARS), *before, wds.tarfile_to_samples(), *behind]


def ready(**options):
    return wds.WebDataset(TARS, **{"shardshuffle": False, **options}).pipeline


@pytest.mark.parametrize(
    ("stages", "shuffled"),
    [
        (built(), False),
        (built(wds.shuffle()), True),
        (built(wds.shuffle(100)), True),
        (built(wds.shuffle(bufsize=100)), True),
        (built(wds.shuffle(0)), False),
        (built(wds.shuffle(bufsize=0)), False),
        (built(wds.shuffle(100), wds.shuffle(0)), True),
        (built(filters.detshuffle(100)), True),
        (built(filters.detshuffle(0)), False),
        ([wds.SimpleShardList(TARS, seed=0), wds.tarfile_to_samples()], True),
        (ready(), False),
        (ready(shardshuffle=100), True),
        (ready(shardshuffle=100, detshuffle=True), True),
    ],
)
def test_shards_are_shuffled_where_the_pipeline_shuffles_them(stages, shuffled):
    assert source_of(stages).shuffled == shuffled


def test_samples_carry_a_local_path_where_the_pipelines_opener_gives_one(tmp_path):
    assert not source_of(built()).local_paths
    assert source_of(ready()).local_paths
    assert source_of(ready(cache_dir=str(tmp_path), cache_size=10**6)).local_paths


def test_every_stage_behind_the_reader_stays_but_the_check_of_emptiness():
    first, second = wds.map(str), wds.batched(4)
    assert source_of(built(behind=[first, second])).rest == [first, second]
    checks = [first, wds.compat.check_empty]  # one that somebody asked for
    assert source_of(built(behind=checks)).rest == checks
    for checked in (True, False):
        whole = wds.WebDataset(TARS, shardshuffle=False, empty_check=checked).compose(first, second)
        assert source_of(whole.pipeline).rest == [first, second]


def test_handler_and_choice_of_files_are_the_readers_own():
    def chosen(name):
        return True

    for given in ((wds.ignore_and_stop, chosen), (wds.ignore_and_stop,), ()):
        how = dict(zip(("handler", "select_files"), given, strict=False))
        for reader in (wds.tarfile_to_samples(*given), wds.tarfile_to_samples(**how)):
            source = source_of([wds.SimpleShardList(TARS), reader])
            assert source.handler is (given[0] if given else filters.reraise_exception)
            assert source.select_files is (chosen if len(given) > 1 else None)
    assert source_of(built()).urls == TARS


def test_shards_may_be_named_by_dictionaries():
    named = [{"url": url} for url in TARS]
    assert source_of([named, wds.tarfile_to_samples(), wds.map(str)]).urls == TARS


def test_the_first_stage_that_batches_says_how():
    assert batch_size_of([wds.map(str), wds.batched(3, partial=False), wds.batched(4)]) == (
        3,
        False,
    )
    assert batch_size_of([wds.map(str)]) == (None, True)
    for apart in (wds.unbatched(), filters.unlisted()):
        assert batch_size_of([wds.batched(5), apart, wds.map(str), wds.batched(4)]) == (4, True)
        assert batch_size_of([wds.batched(5), apart]) == (5, True)
        twice = [wds.batched(5), apart, wds.batched(4), apart]
        assert batch_size_of(twice) == (5, True)
        assert takes_batches_apart(twice)
        assert not makes_batches(twice)


def test_a_stage_that_is_refused_is_counted_from_the_list_of_shards():
    with pytest.raises(ss.ShardsieveError, match=r"^stage 2 of the pipeline, .* stands before"):
        source_of(built(wds.split_by_worker, wds.map(str)))


def grouped(*args):
    return [wds.SimpleShardList(TARS), wds.pipelinefilter(wds.tariterators.group_by_keys)(*args)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([TARS, wds.tarfile_to_samples()], r"begin with a list of shards, got list; .*List\(urls"),
        ([wds.RandomMix([]), wds.map(str)], "got RandomMix; .* or prune each pipeline that it"),
        ([*ready(resampled=True)[:1], *built()[1:]], "resampled=False, and give .*'window'"),
        (built(str), "stands before the tar reader.* shuffles shards with shuffle='window'"),
        ([wds.SimpleShardList([*TARS, "pipe:c"]), *built()[1:]], "pipe:c has no byte ranges"),
        ([*built()[:1], wds.tarfile_to_samples(None, None, str.lower)], "rename_files changes"),
        (grouped(wds.tariterators.base_plus_ext, False), "lcase of group_by_keys changes"),
    ],
)
def test_what_would_be_lost_of_a_source_is_refused(stages, message):
    with pytest.raises(ss.ShardsieveError, match=message):
        source_of(stages)


@pytest.mark.parametrize("kind", [filters.Cached, filters.LMDBCached])
def test_a_cache_is_refused_by_its_name_and_place(kind):
    cache = object.__new__(kind)  # that of LMDB needs a library
    with pytest.raises(ss.ShardsieveError, match=rf"^stage 2 .*, {kind.__name__}, gives again"):
        refuse_caches([wds.map(str), cache])
    refuse_caches([wds.map(str)])


def test_stages_that_hold_samples_back_or_leave_some_out_are_named():
    stages = [wds.map(str), wds.rsample(0.5), wds.select(bool), wds.shuffle(8), wds.batched(2)]
    stages += [filters.detshuffle(8), wds.slice(0, None, 2)]
    assert sorted(inexact_stages(stages)) == ["detshuffle", "rsample", "select", "shuffle", "slice"]
    assert inexact_stages([wds.map(str), wds.batched(2)]) == []


@pytest.mark.parametrize(
    ("stage", "ranks", "workers", "refused"),
    [
        (wds.split_by_node, 2, 1, True),
        (wds.split_by_node, 1, 2, False),
        (wds.split_by_worker, 2, 1, True),
        (wds.split_by_worker, 1, 2, True),
        (wds.split_by_worker, 1, 1, False),
        (wds.slice(0, None, 2), 2, 1, True),
        (wds.slice(0, None, 2), 1, 2, False),
        (wds.slice(1, 9, 1), 2, 2, False),
        (wds.slice(1, 9, None), 2, 2, False),
        (wds.slice(1, 9), 2, 2, False),
        (wds.slice(9), 2, 2, False),
    ],
)
def test_a_stage_that_splits_over_ranks_or_workers_is_refused_where_there_are_several(
    stage, ranks, workers, refused
):
    stages = [wds.map(str), stage]
    if not refused:
        refuse_second_split(stages, ranks=ranks, workers=workers)
        return
    with pytest.raises(ss.ShardsieveError, match=r"^stage 2 of the pruned pipeline, .* again"):
        refuse_second_split(stages, ranks=ranks, workers=workers)
