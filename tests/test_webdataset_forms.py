"""Pipelines and loaders in the forms in which webdataset's users build them."""

import pytest
import webdataset as wds
from tars import write_shards

import shardsieve as ss

# webdataset leaves its files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def urls(tmp_path):
    return [str(path) for path in write_shards(tmp_path / "d", [9, 1, 14, 6])]


@pytest.fixture
def store(urls, tmp_path):
    store = ss.index(urls, tmp_path / "s.zarr")
    store.put_score("up", range(30))
    return store


def pipeline_of(urls):
    return wds.WebDataset(urls, shardshuffle=False)


def wrapped(pipeline):
    return wds.DataPipeline(wds.FluidWrapper(pipeline).to_tuple("__id__"), wds.batched(4))


@pytest.mark.parametrize("loaded", ["not", "outside", "inside"])
def test_a_pipeline_in_another_one_is_pruned_with_it(urls, store, loaded):
    pipeline = wds.WebDataset(urls, shardshuffle=2)
    if loaded == "inside":
        pipeline = wds.DataPipeline(wrapped(wds.WebLoader(pipeline, batch_size=None)))
    else:
        pipeline = wrapped(pipeline)
        pipeline = wds.WebLoader(pipeline, batch_size=None) if loaded == "outside" else pipeline
    keep = ss.select(store, keep_fraction=0.5, score="up")
    for rank in range(2):
        pruned = ss.prune(pipeline, store, keep_set=keep, seed=1, world=ss.World(rank, 2))
        assert len(pruned) == 2
        batches = [ids.tolist() for (ids,) in pruned]
        sampler = ss.PrunedShardSampler(
            store, keep_set=keep, seed=1, batch_size=4, world=ss.World(rank, 2)
        )
        assert [one for batch in batches for one in batch] == list(sampler)


def test_a_pipeline_that_repeats_inside_another_one_is_refused(urls, store):
    with pytest.raises(ss.ShardsieveError, match=r"got WebDataset; .* prune each pipeline"):
        ss.prune(wrapped(pipeline_of(urls).with_epoch(9)), store)
