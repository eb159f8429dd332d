"""Loaders of one opened store, at the same time: each has the weights and scores of its own."""

from itertools import chain, zip_longest

import numpy as np
import pytest
import webdataset as wds
from tars import write_shards
from torch.utils.data import BatchSampler, DataLoader

import shardsieve as ss


@pytest.fixture
def store(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [17, 30, 9]), tmp_path / "s.zarr")
    store.put_score("up", range(56))
    store.put_score("down", range(56, 0, -1))
    return store


def moved(store):
    """A sampler that has come to an epoch of which some samples weigh more."""
    sampler = ss.PrunedShardSampler(store, policy=ss.InfoBatch(0.5, seed=1), batch_size=5)
    sampler.update(store.ids(), np.arange(56) % 7)
    sampler.set_epoch(1)
    return sampler


def weighted(store):
    keep = ss.KeepSet.from_ids(store, store.ids()[::2], weights=np.linspace(0.5, 2, 28))
    return ss.PrunedShardSampler(store, keep_set=keep)


def plain(store):
    return ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random", tail="pad")


def loader_of(data, sampler, workers):
    return DataLoader(data, 5, sampler=sampler, num_workers=workers, collate_fn=list)


def by_turns(loaders):
    """The samples of each loader, of which every one gives a batch in turn."""
    rounds = list(zip_longest(*loaders, fillvalue=[]))
    return [list(chain.from_iterable(batches)) for batches in zip(*rounds, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_samples_weigh_what_their_own_sampler_says(store, workers, order):
    made = [[moved, weighted, plain][i] for i in order]
    samplers = [make(store) for make in made]
    data = ss.ShardDataset(store)
    given = by_turns([loader_of(data, sampler, workers) for sampler in samplers])
    for sampler, samples in zip(samplers, given, strict=True):
        keep = sampler.keep_set
        own = np.ones(len(keep)) if keep.weights is None else keep.weights
        found = [(s["__id__"], s["__weight__"]) for s in samples if s["__weight__"]]
        assert sorted(found) == list(zip(keep.ids().tolist(), own.tolist(), strict=True))
    assert {s["__weight__"] for s in given[made.index(moved)]} == {1.0, 2.0}


def test_a_pipeline_weighs_nothing_that_a_sampler_weighs(store):
    sampler = moved(store)
    pipeline = ss.prune(wds.WebDataset(store.urls, shardshuffle=False), store)
    assert {sample["__weight__"] for sample in pipeline} == {1.0}
    (samples,) = by_turns([loader_of(ss.ShardDataset(store), sampler, 0)])
    assert {sample["__weight__"] for sample in samples} == {1.0, 2.0}


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_carry_the_score_that_their_own_sampler_selects_by(store, workers):
    up, down = (ss.PrunedShardSampler(store, score=name) for name in ("up", "down"))
    data = ss.ShardDataset(store)
    given = by_turns([loader_of(data, sampler, workers) for sampler in (up, down)])
    for samples, wanted in zip(given, (range(56), range(56, 0, -1)), strict=True):
        found = {s["__id__"]: s["__score__"] for s in samples}
        assert found == dict(zip(store.ids().tolist(), wanted, strict=True))
    # Nothing says which of them is meant.
    assert np.isnan(data[0]["__score__"])


def test_batches_of_somebody_elses_size_carry_weights_and_scores(store):
    sampler = moved(store)
    batches = BatchSampler(iter(sampler), 3, drop_last=False)
    loader = DataLoader(ss.ShardDataset(store), batch_sampler=batches, collate_fn=list)
    found = {s["__id__"]: s["__weight__"] for batch in loader for s in batch}
    keep = sampler.keep_set
    assert found == dict(zip(keep.ids().tolist(), keep.weights.tolist(), strict=True))
    up, _ = (ss.PrunedShardSampler(store, score=name) for name in ("up", "down"))
    batches = BatchSampler(iter(up), 3, drop_last=False)
    loader = DataLoader(ss.ShardDataset(store), batch_sampler=batches, collate_fn=list)
    found = {s["__id__"]: s["__score__"] for batch in loader for s in batch}
    assert found == dict(zip(store.ids().tolist(), range(56), strict=True))
