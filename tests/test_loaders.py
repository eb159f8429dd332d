import json
import os
import resource
import weakref
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset as wds
from accelerate import PartialState
from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher
from tars import write_shards, write_tar
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

import shardsieve as ss
from shardsieve.io import local
from shardsieve.io.counts import Counts
from shardsieve.loaders import ledger


@pytest.fixture
def store(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [9, 1, 14, 6]), tmp_path / "s.zarr")
    store.put_score("up", range(30))
    return store


def loader_of(store, sampler, workers=0, decode=None):
    data = ss.ShardDataset(store, decode, score="up")
    return DataLoader(
        data,
        sampler=sampler,
        batch_size=4,
        num_workers=workers,
        collate_fn=list,
    )


def ids_of(loader):
    return [[sample["__id__"] for sample in batch] for batch in loader]


def flat(batches):
    return [sample_id for batch in batches for sample_id in batch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_kept_sample_is_read_once_over_all_ranks(store, world, workers):
    seen, steps = [], set()
    for rank in range(world):
        sampler = ss.PrunedShardSampler(
            store, keep_fraction=0.7, score="up", world=ss.World(rank, world)
        )
        loader = loader_of(store, sampler, workers)
        batches = ids_of(loader)
        assert len(batches) == len(loader)
        seen += flat(batches)
        steps.add(len(batches))
    assert sorted(seen) == sampler.keep_set.ids().tolist()
    assert len(seen) == 21
    assert len(steps) == 1


def test_the_order_depends_on_seed_and_epoch_but_not_on_workers(store):
    def order(seed=0, epoch=0, workers=0):
        sampler = ss.PrunedShardSampler(store, seed=seed)
        sampler.set_epoch(epoch)
        return ids_of(loader_of(store, sampler, workers))

    assert order() == order(workers=2)
    assert len({json.dumps(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("tail", ["uneven", "pad", "drop"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_batches_dealt_by_accelerate_keep_the_plan(store, world, tail):
    seen, steps = [], set()
    data = ss.ShardDataset(store)
    for rank in range(world):
        sampler = ss.PrunedShardSampler(store, keep_fraction=0.7, score="up", tail=tail)
        dealt = BatchSamplerShard(BatchSampler(sampler, 4, False), world, rank)
        batches = list(dealt)
        assert len(batches) == len(dealt)
        seen += [s["__id__"] for batch in batches for s in data.__getitems__(batch)]
        steps.add(len(batches))
    kept = sampler.keep_set.ids().tolist()
    assert len(steps) == 1
    if tail == "uneven":
        assert sorted(seen) == kept
    elif tail == "pad":
        assert set(seen) == set(kept)
        assert len(seen) == steps.pop() * 4 * world
    else:
        assert len(seen) == len(set(seen)) == 21 // (4 * world) * 4 * world
        assert set(seen) <= set(kept)


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_loader_that_drops_its_last_batch_drops_it_on_every_rank(store, kind, world):
    data = ss.ShardDataset(store)
    for kept in range(14, 31):
        keep = ss.KeepSet.from_ids(store, store.ids()[:kept])
        whole, seen = kept // (3 * world), []
        for rank in range(world):
            sampler = ss.PrunedShardSampler(store, keep_set=keep, world=ss.World(rank, world))
            loader = kind(data, 3, sampler=sampler, drop_last=True, collate_fn=list)
            batches = ids_of(loader)
            assert len(batches) == len(loader) == sampler.steps() == whole
            seen += flat(batches)
        assert len(seen) == len(set(seen)) == whole * 3 * world


class HandedOn:
    """A sampler around a sampler, as people write them."""

    def __init__(self, sampler):
        self.inner = sampler

    def __iter__(self):
        yield from self.inner

    def __len__(self):
        return len(self.inner)


def test_the_batches_of_a_sampler_in_another_one_are_as_many_on_every_rank(store):
    keep, lengths = ss.KeepSet.from_ids(store, store.ids()[:9]), []
    for rank in range(2):
        sampler = ss.PrunedShardSampler(store, keep_set=keep, world=ss.World(rank, 2))
        data, how = ss.ShardDataset(store), {"sampler": HandedOn(sampler), "collate_fn": list}
        loader = DataLoader(data, 4, **how)
        batches = ids_of(loader)
        lengths += [len(loader), len(batches)]
        assert sampler.state_dict()["samples_done"] == 9
    assert lengths == [2] * 4  # five samples and four would be two batches and one


class Endless(BatchSampler):
    """As timm's and others' loaders whose workers stay."""

    def __iter__(self):
        while True:
            yield from super().__iter__()


def test_a_sampler_of_batches_may_stand_for_the_sampler(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.7, score="up")
    want = ids_of(loader_of(store, sampler))
    batches = BatchSampler(sampler, 4, drop_last=False)
    loader = DataLoader(ss.ShardDataset(store), sampler=batches, batch_size=None, collate_fn=list)
    iterator = iter(loader)
    found = [[sample["__id__"] for sample in next(iterator)]]
    assert sampler.state_dict()["samples_done"] == 4
    assert found + ids_of(iterator) == want


def test_the_batch_size_is_that_of_one_rank_also_where_accelerate_splits_batches(store):
    sampler = ss.PrunedShardSampler(store, batch_size=8)
    split = BatchSamplerShard(BatchSampler(sampler, 8, False), 2, 0, split_batches=True)
    with pytest.raises(ValueError, match=r"gives one rank, 4, got 8; leave it out$"):
        list(DataLoader(ss.ShardDataset(store), batch_sampler=split, collate_fn=list))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_begins_an_epoch_before_the_end_of_another_is_refused(store, workers):
    batches = Endless(ss.PrunedShardSampler(store), 4, False)
    data, how = ss.ShardDataset(store), {"batch_sampler": batches, "num_workers": workers}
    given = iter(DataLoader(data, collate_fn=list, **how))
    with pytest.raises(ss.ShardsieveError, match=r"MultiEpochs.*persistent_workers=True"):
        [next(given) for _ in range(9)]


@pytest.mark.parametrize(
    ("kind", "size"), [(DataLoader, None), (StatefulDataLoader, 4), (StatefulDataLoader, None)]
)
def test_workers_that_stay_may_be_asked_before_their_loader_counts_anew(store, kind, size):
    sampler, data = ss.PrunedShardSampler(store), ss.ShardDataset(store)
    how = {"num_workers": 2, "persistent_workers": True}
    how["collate_fn"] = list if size else lambda sample: [sample]
    loader = kind(data, batch_size=size, sampler=sampler, **how)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = iter(loader)
        found = [next(batches)]
        assert sampler.state_dict()["samples_done"] == (size or 1)
        found += batches
        assert sorted(flat(ids_of(found))) == store.ids().tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_accelerate_deals_whole_batches_of_a_loader_that_drops_its_last(store, world):
    seen = []
    for rank in range(world):
        sampler = ss.PrunedShardSampler(store)
        seen += flat(BatchSamplerShard(BatchSampler(sampler, 4, True), world, rank))
    assert len(seen) == len(set(seen)) == 30 // (4 * world) * 4 * world


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stop", range(6))
def test_stopping_anywhere_changes_nothing(store, stop, world):
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.7, score="up", seed=3)
    sampler.set_epoch(2)
    whole = flat(ids_of(loader_of(store, sampler)))
    state = json.loads(json.dumps(sampler.state_dict(steps_done=stop)))
    rest = []
    for rank in range(world):
        fresh = ss.PrunedShardSampler(
            store, keep_fraction=0.7, score="up", seed=3, world=ss.World(rank, world)
        )
        if stop == 5 and world == 2:
            continue  # one sample is left: fewer than the ranks
        fresh.load_state_dict(state)
        rest += flat(ids_of(loader_of(store, fresh)))
    if rest:
        assert sorted(rest) == sorted(whole[stop * 4 :])
    if world == 1:
        assert rest == whole[stop * 4 :]
    assert state["samples_done"] == stop * 4


def test_a_state_of_another_plan_is_refused(store):
    of_windows, of_groups = ({"window": n} for n in (0, 2)), ({"groups": n} for n in (2, 3))
    plans = [{}, {"seed": 1}, {"shuffle": "global"}, *of_windows, *of_groups]
    for one, other in permutations(plans, 2):
        state = ss.PrunedShardSampler(store, **one).state_dict()
        with pytest.raises(ss.StoreMismatchError, match="belongs to another plan"):
            ss.PrunedShardSampler(store, **other).load_state_dict(state)


def test_samples_are_webdatasets_raw_dictionaries(store):
    sample = ss.ShardDataset(store, score="up")[128 + 3]
    assert sample["__key__"] == "02-0003"
    assert sample["__url__"] == store.urls[2]
    assert sample["cls"] == b"2"
    assert len(sample["jpg"]) == 300 + 97 * 3
    assert (sample["__id__"], sample["__weight__"], sample["__score__"]) == (131, 1.0, 13.0)
    unscored = ss.ShardDataset(store)[128 + 3]
    assert np.isnan(unscored.pop("__score__"))
    assert unscored == {k: v for k, v in sample.items() if k != "__score__"}
    with pytest.raises(IndexError, match="got 9; give the loader sampler=PrunedShardSampler"):
        list(DataLoader(ss.ShardDataset(store), collate_fn=list))  # counts from 0, as torch does


def test_a_loop_over_a_dataset_meets_every_sample(store):
    # Ids have gaps between shards, where Python would take the data set to be over.
    assert [sample["__id__"] for sample in ss.ShardDataset(store)] == store.ids().tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_carry_the_score_that_the_sampler_selects_by(store, workers):
    data = ss.ShardDataset(store)  # made before it is known
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    how = {"batch_size": 4, "collate_fn": list, "num_workers": workers}
    ids, scores = store.ids().tolist(), store.score("up").tolist()
    for batch in DataLoader(data, sampler=sampler, **how):
        for sample in batch:
            assert sample["__score__"] == scores[ids.index(sample["__id__"])]
    store.put_score("down", -store.score("up"))
    told = ss.ShardDataset(store, score="down")[128 + 3]
    assert told["__score__"] == -13.0


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_two_samplers_carry_the_score_of_their_own(store, workers):
    """Also in batches whose size no sampler is told."""
    store.put_score("down", -store.score("up"))
    up, down = (ss.PrunedShardSampler(store, score=name) for name in ("up", "down"))
    ids, scores = store.ids().tolist(), store.score("up").tolist()

    class Fours:
        def __iter__(self):
            taken = iter(up)
            return iter(lambda: list(islice(taken, 4)), [])

    how = {"collate_fn": list, "num_workers": workers}
    loaders = [DataLoader(ss.ShardDataset(store), batch_sampler=Fours(), **how)]
    loaders += [DataLoader(ss.ShardDataset(store), 4, sampler=one, **how) for one in (up, down)]
    for loader, sign in zip(loaders, (1, 1, -1), strict=True):
        for sample in flat(loader):
            assert sample["__score__"] == sign * scores[ids.index(sample["__id__"])]


def test_a_sample_that_cannot_be_decoded_is_named(store):
    def decode(sample):
        raise OSError("no image")

    with pytest.raises(ss.UnreadableSampleError, match=r"sample 00-0001 of shard .*s-000\.tar"):
        ss.ShardDataset(store, decode)[1]


def test_a_loader_reads_only_the_bytes_of_kept_samples(store, monkeypatch):
    data, read = ss.ShardDataset(store), []
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda f, n, o: read.append(n) or whole(f, n, o))
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    list(DataLoader(data, sampler=sampler, batch_size=4, collate_fn=list))
    shard, position = divmod(sampler.keep_set.ids(), store.rows_per_shard)
    assert sum(read) == store.ranges[shard, position, 1].sum()
    assert len(read) == 15


def test_only_files_read_in_order_are_left_to_readahead(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "big.tar", [(f"{i:03d}.jpg", bytes(64 << 10)) for i in range(80)])
    store, told = ss.index(path, tmp_path / "s.zarr"), []
    monkeypatch.setattr(local, "_in_memory", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", lambda *how: told.append(how[1:]))
    data, ids = ss.ShardDataset(store), store.ids()
    data.__getitems__(ids[:40:2].tolist())
    ranges = [(*pair, os.POSIX_FADV_WILLNEED) for pair in store.ranges[0, :40:2].tolist()]
    assert told == [(0, 0, os.POSIX_FADV_RANDOM), *ranges]
    told.clear()
    data.__getitems__(ids[:40].tolist())
    data.__getitems__(ids[40:].tolist())
    assert told == [(0, 0, os.POSIX_FADV_SEQUENTIAL)]
    told.clear()
    data.__getitems__(ids[[3, 70]].tolist())
    assert told[0] == (0, 0, os.POSIX_FADV_RANDOM)
    assert len(told) == 3


def test_a_batch_of_more_shards_than_stay_open_is_read_ahead_from_its_own_files(store, monkeypatch):
    told = []

    def told_about(file, offset, length, advice):
        if advice == os.POSIX_FADV_WILLNEED:
            told.append(str(Path(f"/proc/self/fd/{file}").readlink()))

    monkeypatch.setattr(local, "_MAX_OPEN", 2)
    monkeypatch.setattr(local, "_in_memory", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", told_about)
    ss.ShardDataset(store).__getitems__(store.ids().tolist())
    assert sorted(told) == sorted(np.repeat(store.urls, store.samples))


def test_a_loop_that_was_left_holds_no_samples(store):
    sampler = ss.PrunedShardSampler(store)
    loader = loader_of(store, sampler)
    data = weakref.ref(loader.dataset)
    for _ in zip(range(2), loader, strict=False):
        pass
    del loader
    assert data() is None
    assert sampler.state_dict()["samples_done"] == 8


def test_the_variables_of_a_training_loop_are_not_kept(store):
    sampler, batch = ss.PrunedShardSampler(store), torch.zeros(3)
    pruned = ss.prune(wds.WebDataset(store.urls, shardshuffle=False), store)
    seen = weakref.ref(batch)
    sampler.set_epoch(1)
    pruned.set_epoch(1)
    len(sampler), next(iter(sampler))
    del batch
    assert seen() is None


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_from_before_the_epoch_does_not_go_on(store, workers):
    sampler = ss.PrunedShardSampler(store)
    loader = loader_of(store, sampler, workers)
    batches = iter(loader)
    next(batches)
    sampler.set_epoch(0)
    next(batches)
    sampler.set_epoch(1)
    with pytest.raises(ss.ShardsieveError, match=r"made before set_epoch\(1\).*call that before"):
        list(batches)
    assert sorted(flat(ids_of(loader))) == store.ids().tolist()


def test_the_next_batch_is_begun_before_this_one_is_decoded(store, monkeypatch):
    data, calls = ss.ShardDataset(store), []
    monkeypatch.setattr(data.reader, "prefetch", lambda r: calls.append(sum(len(x) for _, x in r)))
    data.decode = lambda sample: calls.append("decode") or sample
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.4, score="up")
    list(DataLoader(data, 4, sampler=sampler, collate_fn=list))
    decode = ["decode"] * 4
    assert calls == [4, 4, *decode, 4, 4, *decode, 4, *decode]


def test_workers_may_be_spawned(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    how = {"num_workers": 1, "multiprocessing_context": "spawn"}
    loader = DataLoader(ss.ShardDataset(store), 4, sampler=sampler, collate_fn=list, **how)
    ids = flat(ids_of(loader))
    assert sorted(ids) == sampler.keep_set.ids().tolist()
    assert loader.dataset.ledger.total.kept == sampler.keep_set.nbytes(store)


def test_padding_weighs_nothing(store):
    batches = []
    for rank in range(2):
        sampler = ss.PrunedShardSampler(store, tail="pad", world=ss.World(rank, 2))
        batches += list(loader_of(store, sampler))
    samples = [sample for batch in batches for sample in batch]
    assert {len(batch) for batch in batches} == {4}
    assert sum(s["__weight__"] for s in samples) == 30
    assert sorted(s["__id__"] for s in samples if s["__weight__"]) == store.ids().tolist()


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda s: BatchSamplerShard(BatchSampler(s, 4, False), 2, 0), "leave world out"),
        (lambda s: Wrapped(s), "use_distributed_sampler=False"),
    ],
)
def test_a_second_split_by_hand_is_refused(store, wrap, message):
    sampler = ss.PrunedShardSampler(store, world=ss.World(0, 2))
    with pytest.raises(ss.ShardsieveError, match=message):
        list(wrap(sampler))


class Wrapped(DistributedSampler):
    """What trainers put around a sampler that they do not know."""

    def __init__(self, sampler):
        super().__init__(range(8), num_replicas=2, rank=0, shuffle=False)
        self.inner = sampler

    def __iter__(self):
        return iter(list(self.inner)[self.rank :: self.num_replicas])


def test_reading_everything_on_rank_0_is_refused(store):
    loader = loader_of(store, ss.PrunedShardSampler(store))
    PartialState(cpu=True)
    dispatcher = DataLoaderDispatcher(loader.dataset, batch_sampler=loader.batch_sampler)
    with pytest.raises(ss.ShardsieveError, match="dispatch_batches=True reads every sample"):
        list(dispatcher)


def test_torch_generators_are_left_alone(store):
    before = torch.get_rng_state()
    list(ss.PrunedShardSampler(store, keep_fraction=0.5, score="up"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_memory_of_a_batch_is_used_again(tmp_path):
    members = [(f"{i:03d}.jpg", bytes([i]) * (300 << 10)) for i in range(32)]
    store = ss.index(write_tar(tmp_path / "big.tar", members), tmp_path / "s.zarr")
    data = ss.ShardDataset(store)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        data.__getitems__(range(32))
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # Every one of the 2,400 pages would be met anew.
    assert min(faults() for _ in range(5)) < 200


def test_numbers_of_numpy_are_numbers(store):
    big = np.int64(2**40)
    ours, theirs = (
        ss.PrunedShardSampler(store, policy=ss.RandomDynamic(0.5, seed=seed), seed=seed)
        for seed in (2**40, big)
    )
    ours.set_epoch(3)
    theirs.set_epoch(np.int64(3))
    assert list(theirs) == list(ours)
    state = theirs.state_dict(steps_done=0)
    assert json.loads(json.dumps(state["epoch"])) == 3
    ours.load_state_dict(state)


def test_no_two_workers_write_one_row_of_the_ledger(store, monkeypatch):
    made = ss.ShardDataset(store).ledger
    for worker in (None, 0, 64, 1023):
        info = None if worker is None else SimpleNamespace(id=worker)
        monkeypatch.setattr(ledger, "get_worker_info", lambda info=info: info)
        made.add(Counts(kept=1, read=2, requests=3, retries=4))
    assert made.total == Counts(4, 8, 12, 16)
    assert [row.kept for row in made.workers].count(1) == 4


@pytest.mark.parametrize("place", [str, Path], ids=["text", "path"])
@pytest.mark.parametrize(
    "call",
    [
        lambda path: ss.select(path, keep_fraction=0.5, rule="random"),
        lambda path: ss.PrunedShardSampler(path, keep_fraction=0.5, rule="random"),
        lambda path: ss.ShardDataset(path),
        lambda path: ss.prune(wds.WebDataset("a.tar", shardshuffle=False), path),
    ],
    ids=["select", "PrunedShardSampler", "ShardDataset", "prune"],
)
def test_the_path_of_a_store_is_refused_with_the_cure(place, call):
    with pytest.raises(TypeError, match=r"must be open, got its path; pass open_store\('s.zarr'\)"):
        call(place("s.zarr"))
