"""States count what the loop was given: torch's loader, torchdata's, and Accelerate's."""

import copy
import io
import json
import pickle

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from tars import write_shards
from torch.utils.data import BatchSampler, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import shardsieve as ss

KEPT, BATCH = 21, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    store = ss.index(write_shards(folder / "d", [9, 1, 14, 6]), folder / "s.zarr")
    store.put_score("up", range(30))
    return store


def sampler_of(store, **how):
    return ss.PrunedShardSampler(store, keep_fraction=0.7, score="up", seed=3, **how)


def ids_of(batch):
    return [sample["__id__"] for sample in batch]


def loader_of(store, sampler, workers=0, kind=DataLoader, **how):
    data = ss.ShardDataset(store)
    return kind(data, BATCH, sampler=sampler, num_workers=workers, collate_fn=ids_of, **how)


def taken(loader, count):
    """The first batches of a pass that is then left."""
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_a_plain_loaders_workers_may_be_ahead(store, workers, stop):
    whole = list(loader_of(store, sampler_of(store)))
    sampler = sampler_of(store)
    assert taken(loader_of(store, sampler, workers), stop) == whole[:stop]
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state["samples_done"] == min(stop * BATCH, KEPT)
    fresh = sampler_of(store)
    fresh.load_state_dict(state)
    assert list(loader_of(store, fresh, workers)) == whole[stop:]
    assert fresh.state_dict()["samples_done"] == KEPT
    assert list(loader_of(store, fresh)) == whole  # the next pass is whole again


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_torchdatas_loader_goes_on_where_it_was(store, workers, stop):
    whole = list(loader_of(store, sampler_of(store)))
    loader = loader_of(store, sampler_of(store), workers, StatefulDataLoader)
    assert taken(loader, stop) == whole[:stop]
    state = json.loads(json.dumps(loader.state_dict()))
    again = loader_of(store, sampler_of(store), workers, StatefulDataLoader)
    again.load_state_dict(state)
    assert list(again) == whole[stop:]
    assert list(again) == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_is_refused_by_an_iterator_that_is_older(store, workers):
    first, later = sampler_of(store), sampler_of(store)
    taken(loader_of(store, first), 2)
    loader = loader_of(store, later, workers, StatefulDataLoader)
    loader.state_dict()  # asks for an iterator; with Accelerate, `prepare` does
    later.load_state_dict(first.state_dict())
    with pytest.raises(ss.ShardsieveError, match=r"made before load_state_dict .* before prepare"):
        list(loader)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [2, 6])
def test_accelerate_saves_and_loads_a_pass(store, tmp_path, stateful, workers, stop):
    def prepared():
        how = DataLoaderConfiguration(use_stateful_dataloader=stateful)
        accelerator = Accelerator(cpu=True, dataloader_config=how)
        sampler = sampler_of(store)
        if not stateful:
            accelerator.register_for_checkpointing(sampler)
        return accelerator, accelerator.prepare(loader_of(store, sampler, workers))

    whole = list(loader_of(store, sampler_of(store)))
    accelerator, loader = prepared()
    for number, batch in enumerate(loader, start=1):
        assert batch == whole[number - 1]
        if number == stop:
            accelerator.save_state(str(tmp_path / "state"))
            break
    accelerator.free_memory()
    again, rest = prepared()
    again.load_state(str(tmp_path / "state"))
    # Accelerate takes a finished pass of a stateful loader for the start of the next one.
    finished = stateful and stop == len(whole)
    assert list(rest) == (whole if finished else whole[stop:])
    again.free_memory()


def on_disk(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("keep", [on_disk, lambda state: state])
def test_torchdatas_loader_saves_what_a_policy_took_in_after_it_asked(
    store, workers, prepared, keep
):
    how = DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = Accelerator(cpu=True, dataloader_config=how)

    def made():
        sampler = ss.PrunedShardSampler(store, policy=ss.UCB(0.7, period=1), seed=3)
        loader = loader_of(store, sampler, workers, StatefulDataLoader)
        return sampler, accelerator.prepare(loader) if prepared else loader

    def trained(sampler, loader, first):
        for epoch in range(first, 3):
            sampler.set_epoch(epoch)
            for batch in loader:
                sampler.update(batch, [1 + one % 7 + epoch for one in batch])
                yield batch

    sampler, loader = made()
    whole = list(trained(sampler, loader, 0))
    sampler, loader = made()
    for step, _ in enumerate(trained(sampler, loader, 0), start=1):
        if step == 6 + 3:
            state = keep(loader.state_dict())
    sampler, loader = made()
    loader.load_state_dict(state)
    assert list(trained(sampler, loader, 1)) == whole[6 + 3 :]


def test_a_policy_takes_the_losses_of_a_batch_that_repeats_fill_up(store):
    def sampler():
        return ss.PrunedShardSampler(store, policy=ss.UCB(0.7, period=1), tail="pad")

    def trained(sampler, stop=-1):
        for batch in taken(loader_of(store, sampler), stop):
            sampler.update(batch, [1 + one % 7 for one in batch])

    whole, first, rest = sampler(), sampler(), sampler()
    trained(whole)
    trained(first, KEPT // BATCH)
    rest.load_state_dict(first.state_dict())
    trained(rest)  # one sample and three repeats of it
    for one in (whole, rest):
        one.set_epoch(1)
    assert rest.keep_set.digest == whole.keep_set.digest
    with pytest.raises(ValueError, match="ids must come once per batch, got 0 twice"):
        ss.PrunedShardSampler(store, policy=ss.UCB(0.7)).update([0, 0], [1, 2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_copy_of_a_sampler_in_mid_pass_stands_where_it_stood(store, copied, workers, prepared):
    sampler = sampler_of(store)
    loader = loader_of(store, sampler, workers)
    loader = Accelerator(cpu=True).prepare(loader) if prepared else loader
    batches = iter(loader)
    given = [next(batches), next(batches)]
    copy_of_it, state = copied(sampler), sampler.state_dict()
    given.append(next(batches))
    assert copy_of_it.state_dict() == state
    assert state["samples_done"] == 2 * BATCH
    fresh = sampler_of(store)
    fresh.load_state_dict(copy_of_it.state_dict())
    assert given[2:] == taken(loader_of(store, fresh), 1)


def test_epochs_pass_through_accelerate(store):
    accelerator, sampler = Accelerator(cpu=True), sampler_of(store)
    loader = accelerator.prepare(loader_of(store, sampler))
    epochs = [sum(loader, []) for _ in range(2)]  # noqa: RUF017
    assert sorted(epochs[0]) == sorted(epochs[1]) == sampler.keep_set.ids().tolist()
    assert epochs[0] != epochs[1]
    assert sampler.epoch == 1


def test_epochs_that_accelerate_passes_through_to_their_ends_are_no_cuts(store, caplog):
    sampler = ss.PrunedShardSampler(store, policy=ss.AnnealedScore("up", 0.3, 1.0, 3))
    loader = Accelerator(cpu=True).prepare(loader_of(store, sampler))
    for _ in range(2):
        assert sum(map(len, loader)) == len(sampler.keep_set)
    assert caplog.messages == []


@pytest.mark.parametrize("chosen", ["by sampler", "by loader", "by nobody"])
@pytest.mark.parametrize("stateful", [False, True])
def test_a_later_epoch_goes_on_under_accelerate(store, stateful, chosen):
    how = DataLoaderConfiguration(use_stateful_dataloader=stateful)
    accelerator = Accelerator(cpu=True, dataloader_config=how)
    plain = sampler_of(store)
    whole = {}
    for epoch in (5, 6, 9):
        plain.set_epoch(epoch)
        whole[epoch] = [one for batch in loader_of(store, plain) for one in batch]

    def prepared():
        sampler = sampler_of(store)
        return sampler, accelerator.prepare(loader_of(store, sampler))

    first, loader = prepared()
    first.set_epoch(5)
    seen = [one for batch in taken(loader, 2) for one in batch]
    again, rest = prepared()
    again.load_state_dict(first.state_dict())
    choose = {"by sampler": again.set_epoch, "by loader": rest.set_epoch}.get(chosen)
    for epoch in (5, 6):
        if choose:
            choose(epoch)
        seen += [one for batch in rest for one in batch]
        assert seen == whole[epoch]
        seen = []
    again.set_epoch(9)
    assert [one for batch in rest for one in batch] == whole[9]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_finished_epoch_is_followed_by_the_next_one_under_accelerate(store, workers):
    first, again, plain = sampler_of(store), sampler_of(store), sampler_of(store)
    first.set_epoch(3)
    list(loader_of(store, first))
    again.load_state_dict(first.state_dict())
    loader = Accelerator(cpu=True).prepare(loader_of(store, again, workers))
    assert list(loader) == []
    for epoch in (4, 5):
        plain.set_epoch(epoch)
        assert list(loader) == list(loader_of(store, plain))


@pytest.mark.parametrize("stateful", [False, True])
def test_gathered_metrics_count_what_the_loaders_own_sampler_gives(store, stateful):
    how = DataLoaderConfiguration(use_stateful_dataloader=stateful)
    accelerator = Accelerator(cpu=True, dataloader_config=how)

    def prepared(tail, batch_size=8):
        sampler = ss.PrunedShardSampler(store, tail=tail, seed=1)
        data = ss.ShardDataset(store)
        loader = DataLoader(data, batch_size, sampler=sampler, collate_fn=list)
        return sampler, accelerator.prepare(loader)

    def gathered(loader):
        parts = [accelerator.gather_for_metrics(b, use_gather_object=True) for b in loader]
        return [sample["__id__"] for part in parts for sample in part]

    total = len(store)
    padded = prepared("pad")[1]
    dropped = prepared("drop")[1]
    prepared("uneven")  # on the same store, made later
    assert sorted(gathered(padded)) == store.ids().tolist()
    assert len(gathered(dropped)) == total // 8 * 8
    sampler, padded = prepared("pad")
    next(iter(padded))
    again, rest = prepared("pad", batch_size=5)
    again.load_state_dict(sampler.state_dict())
    assert len(gathered(rest)) == total - 8
    assert len(gathered(rest)) == total


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_count_of_dealt_batches_is_no_state_of_a_sampler(store, workers):
    def made(**how):
        sampler = ss.PrunedShardSampler(store, **how)
        dealt = BatchSamplerShard(BatchSampler(sampler, BATCH, False), 2, 1)
        how = {"batch_sampler": dealt, "num_workers": workers, "collate_fn": ids_of}
        return sampler, StatefulDataLoader(ss.ShardDataset(store), **how)

    whole = list(made()[1])
    first, loader = made()
    assert taken(loader, 2) == whole[:2]
    counted, own = loader.state_dict(), first.state_dict()
    by_count, by_state, twice = made(), made(), made()
    by_count[1].load_state_dict(counted)
    assert list(by_count[1]) == whole[2:]
    assert list(by_count[1]) == whole
    by_state[0].load_state_dict(own)
    assert list(by_state[1]) == whole[2:]
    twice[0].load_state_dict(own)
    twice[1].load_state_dict(counted)
    with pytest.raises(ss.ShardsieveError, match=r"passes over 2 batches .*register_for_check"):
        list(twice[1])
    with pytest.raises(ss.ShardsieveError, match=r"saves no policy .*register_for_checkpointing"):
        next(iter(made(policy=ss.UCB(0.5))[1]))


def test_accelerate_saves_a_policy_that_was_synced(store, tmp_path, monkeypatch):
    monkeypatch.setattr("shardsieve.policy.base.world_size", lambda: 2)
    accelerator = Accelerator(cpu=True)
    sampler = ss.PrunedShardSampler(store, policy=ss.UCB(0.7), batch_size=BATCH)
    accelerator.register_for_checkpointing(sampler)
    accelerator.save_state(str(tmp_path / "first"))
    sampler.update(store.ids(), range(30))
    sampler.state_dict()  # of this process
    with pytest.raises(ss.ShardsieveError, match=r"sampler.policy.sync\(\) on every process"):
        accelerator.save_state(str(tmp_path / "second"))
    sampler.policy.sync()
    accelerator.save_state(str(tmp_path / "third"))
    accelerator = Accelerator(cpu=True)
    deaf = ss.PrunedShardSampler(store, policy=ss.RandomDynamic(0.7), batch_size=BATCH)
    accelerator.register_for_checkpointing(deaf)
    deaf.update(store.ids(), range(30))
    accelerator.save_state(str(tmp_path / "fourth"))
    accelerator = Accelerator(cpu=True)
    sampler = ss.PrunedShardSampler(store, policy=ss.UCB(0.7), batch_size=BATCH)
    accelerator.register_for_checkpointing(sampler)
    sampler.update(*torch.ones(2, 3, device="meta").long())  # losses that wait on a device
    with pytest.raises(ss.ShardsieveError, match=r"sampler.policy.sync\(\) on every process"):
        accelerator.save_state(str(tmp_path / "fifth"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_batches_that_accelerate_skips_count(store, workers, world):
    def made():
        sampler = ss.PrunedShardSampler(store)
        batches = BatchSampler(sampler, BATCH, False)
        batches = BatchSamplerShard(batches, world, 0) if world > 1 else batches
        how = {"batch_sampler": batches, "num_workers": workers, "collate_fn": ids_of}
        return sampler, DataLoader(ss.ShardDataset(store), **how)

    whole = list(made()[1])
    sampler, loader = made()
    assert taken(skip_first_batches(loader, 1), 2) == whole[1:3]
    state = sampler.state_dict()
    assert state["samples_done"] == 3 * BATCH * world
    fresh, loader = made()
    fresh.load_state_dict(state)
    assert list(loader) == whole[3:]
    fresh.load_state_dict(state)
    with pytest.raises(ss.ShardsieveError, match="skip_first_batches leaves out 1 batches"):
        list(skip_first_batches(loader, 1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", [None, ss.RandomDynamic(0.7)])
def test_skipped_batches_are_of_the_epoch_that_accelerate_counts(store, workers, policy):
    """As `transformers.Trainer` goes on: on several ranks the sampler is told no epoch then."""

    def made():
        sampler = ss.PrunedShardSampler(store, policy=policy)
        dealt = BatchSamplerShard(BatchSampler(sampler, BATCH, False), 2, 1)
        how = {"batch_sampler": dealt, "num_workers": workers, "collate_fn": ids_of}
        return DataLoaderShard(ss.ShardDataset(store), **how)

    whole, loader = {}, made()
    for epoch in (2, 3):
        loader.set_epoch(epoch)
        whole[epoch] = list(loader)
    again = made()
    rest = skip_first_batches(again, 1)
    rest.set_epoch(2)
    assert list(rest) == whole[2][1:]
    again.set_epoch(3)
    assert list(again) == whole[3]


def as_transformers(store, policy, *, begin=(0, 0), state=None, stop=None):
    """The batches that `transformers.Trainer` (5.24) trains on, from (epoch, steps done) on.

    It counts an epoch's steps once and never asks for more. It goes on by skipping batches, or with
    a state by `ignore_data_skip`. After `stop` steps it returns them and the state.
    """
    sampler = ss.PrunedShardSampler(store, policy=policy and policy())
    if state is not None:
        sampler.load_state_dict(state)
    loader = Accelerator().prepare(loader_of(store, sampler))
    (first, done), steps, seen = begin, len(loader), []
    for epoch in range(first, 3):
        skips = done if epoch == first and state is None else 0
        asked = skip_first_batches(loader, skips) if skips else loader
        asked.set_epoch(epoch)
        batches = iter(asked)
        for batch in (next(batches, None) for _ in range(skips, steps)):
            if batch is None:
                break
            seen.append(batch)
            sampler.update(batch, [one % 7 for one in batch])
            if len(seen) == stop:
                return seen, sampler.state_dict()
    return seen, None


SIZED = {
    "static": None,
    "drawn": lambda: ss.RandomDynamic(0.7),
    "by losses": lambda: ss.UCB(0.5, period=1),
}


@pytest.mark.parametrize(("kind", "policy"), SIZED.items(), ids=SIZED)
def test_a_loop_as_of_transformers_goes_on_as_the_docs_say(store, kind, policy):
    whole, _ = as_transformers(store, policy)
    steps = len(whole) // 3
    for epoch, done in ((0, 2), (1, 0), (2, 1)):
        at = epoch * steps + done
        seen, state = as_transformers(store, policy, stop=at)
        assert seen == whole[:at]
        assert as_transformers(store, policy, begin=(epoch, done), state=state)[0] == whole[at:]
        skipped, _ = as_transformers(store, policy, begin=(epoch, done))
        assert (skipped == whole[at:]) == (kind != "by losses")


def test_a_loop_as_of_transformers_cuts_keep_sets_that_grow_with_a_warning(store, caplog):
    seen, _ = as_transformers(store, lambda: ss.AnnealedScore("up", 0.3, 1.0, 3))
    assert len(seen) == 3 * 3
    assert caplog.messages[0].startswith("epoch 1 was left after ")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 7, KEPT])
def test_a_loader_that_does_not_batch_takes_one_sample_per_step(store, workers, stop):
    def loader(sampler):
        data = ss.ShardDataset(store, decode=lambda sample: sample["__id__"])
        return DataLoader(data, batch_size=None, sampler=sampler, num_workers=workers)

    whole, sampler = list(sampler_of(store)), sampler_of(store)
    assert len(loader(sampler)) == KEPT
    assert taken(loader(sampler), stop) == whole[:stop]
    fresh = sampler_of(store)
    fresh.load_state_dict(sampler.state_dict())
    assert list(loader(fresh)) == whole[stop:]


@pytest.mark.parametrize("stop", [0, 1, 7, KEPT])
def test_a_bare_pass_counts_its_ids(store, stop):
    whole, sampler = list(sampler_of(store)), sampler_of(store)
    ids = iter(sampler)
    assert [next(ids) for _ in range(stop)] == whole[:stop]
    fresh = sampler_of(store)
    fresh.load_state_dict(sampler.state_dict())
    assert list(fresh) == whole[stop:]


class OwnBatches:
    """A batch sampler of somebody else's, of which nothing is known."""

    def __init__(self, ids):
        self.ids = ids

    def __iter__(self):
        for one in self.ids:
            yield [one]

    def __len__(self):
        return len(self.ids)


def test_batches_of_an_unknown_size_are_not_counted(store):
    def loader(sampler):
        data = ss.ShardDataset(store)
        return DataLoader(data, batch_sampler=OwnBatches(sampler), collate_fn=ids_of)

    unknown, known = sampler_of(store), sampler_of(store, batch_size=1)
    assert taken(loader(unknown), 3) == taken(loader(known), 3)
    for steps in ({}, {"steps_done": 3}):
        with pytest.raises(ValueError, match="batch_size must be known"):
            unknown.state_dict(**steps)
    assert unknown.state_dict(steps_done=0)["samples_done"] == 0
    assert known.state_dict()["samples_done"] == 3


@pytest.mark.parametrize("tail", ["uneven", "pad", "drop"])
@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_a_bare_pass_has_the_length_it_says(store, size, tail):
    ranks = [sampler_of(store, tail=tail, world=ss.World(rank, size)) for rank in range(size)]
    given = [list(sampler) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [len(ids) for ids in given]
    if tail == "drop":
        assert {len(ids) for ids in given} == {KEPT // size}
        assert len({one for ids in given for one in ids}) == KEPT // size * size
