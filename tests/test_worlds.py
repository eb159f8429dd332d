"""Laws over generated worlds: every kept sample once, equal steps, and stopping anywhere."""

import json
import pickle

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_shards

import shardsieve as ss
from shardsieve.keepset import KeepSet
from shardsieve.loaders import planned
from shardsieve.loaders.planned import PlannedId
from shardsieve.plan import PADDING

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SIZES = [50, 1, 17, 50, 3, 33, 8]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    return ss.index(write_shards(folder / "d", SIZES), folder / "s.zarr")


@st.composite
def worlds(draw, store):
    """A keep set with 0 to 50 samples of 1 to 7 shards, how it is read, and where it stops."""
    ids = store.ids()
    shards = draw(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
    share, key = draw(st.sampled_from([0.02, 0.3, 1.0])), draw(st.integers(0, 99))
    wanted = np.random.default_rng(key).random(len(ids)) < share
    wanted &= np.isin(ids // store.rows_per_shard, shards)
    if not wanted.any():
        wanted[draw(st.integers(0, len(ids) - 1))] = True
    how = {"keep_set": KeepSet.from_ids(store, ids[wanted]), "seed": key}
    how["shuffle"] = draw(st.sampled_from(["window", "global", "none"]))
    how["window"] = draw(st.sampled_from([None, 0, 1, 3]))
    how["groups"] = draw(st.sampled_from([1, 1, 2, 5]))
    world, batch = st.integers(1, 9), st.integers(1, 12)
    return how, [(draw(world), draw(batch)) for _ in range(2)], draw(st.floats(0, 1))


def batches_of(sampler, batch):
    """The ids that one rank hands out, batch by batch; those that only fill up are left out."""
    ids = list(sampler)
    cut = [ids[i : i + batch] for i in range(0, len(ids), batch)]
    real = [
        [int(i) for i in one if i != PADDING and not (isinstance(i, PlannedId) and not i.weight)]
        for one in cut
    ]
    assert all(len([i for i in one if i != PADDING]) >= 1 for one in cut)
    return real


@settings(max_examples=150)
@given(data=st.data(), tail=st.sampled_from(["uneven", "pad", "drop"]))
def test_stopping_anywhere_and_going_on_elsewhere_loses_nothing(store, data, tail):
    how, ((first, batch), (second, other)), at = data.draw(worlds(store))
    kept = how["keep_set"].ids().tolist()

    def samplers(world, size):
        return [
            ss.PrunedShardSampler(
                store, tail=tail, batch_size=size, world=ss.World(rank, world), **how
            )
            for rank in range(world)
        ]

    before = samplers(first, batch)
    parts = [batches_of(sampler, batch) for sampler in before]
    steps = {len(part) for part in parts}
    assert len(steps) == 1
    assert steps == {int(before[0].steps())}
    stop = round(at * steps.pop())
    states = {json.dumps(sampler.state_dict(steps_done=stop)) for sampler in before}
    assert len(states) == 1
    state, after = json.loads(states.pop()), samplers(second, other)
    for sampler in after:
        sampler.load_state_dict(state)
    rest = [batches_of(sampler, other) for sampler in after]
    assert len({len(part) for part in rest}) == 1
    trained = sorted(i for part in parts for one in part[:stop] for i in one)
    trained = sorted(trained + [i for part in rest for one in part for i in one])
    if tail == "drop":
        assert len(set(trained)) == len(trained) > len(kept) - second * other - 1
        assert set(trained) <= set(kept)
    else:
        assert trained == kept


def pipeline_ids(pipeline, workers):
    """What a loader with so many workers hands out: their items in turn."""
    streams, sent = [], pickle.dumps(pipeline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUM_WORKERS", str(max(workers, 1)))
        for worker in range(max(workers, 1)):
            patch.setenv("WORKER", str(worker))
            streams.append(list(pickle.loads(sent)))
    longest = max(map(len, streams))
    return [s[i] for i in range(longest) for s in streams if i < len(s)]


def real(samples):
    return [s["__id__"] for s in samples if s["__weight__"]]


@settings(max_examples=60)
@given(data=st.data(), workers=st.integers(0, 5), more=st.integers(0, 5), inside=st.booleans())
def test_pipelines_stop_and_go_on_with_any_workers(store, data, workers, more, inside):
    how, ((first, batch), (second, other)), at = data.draw(worlds(store))
    keys = {shard: np.array(store.keys(shard), "S") for shard in range(store.num_shards)}
    how["tail"] = tail = data.draw(st.sampled_from(["uneven", "pad"]))

    def pruned(world, size):
        made = []
        for rank in range(world):
            pipeline = wds.WebDataset(store.urls, shardshuffle=False)
            pipeline = pipeline.batched(size, collation_fn=None) if inside else pipeline
            one = ss.prune(pipeline, store, world=ss.World(rank, world), batch_size=size, **how)
            one.source.batched_inside = inside
            one.source.data._keys = keys  # or every pickled worker would read them again
            made.append(one)
        return made

    def items(pipeline, size, count):
        """Batches: those made inside, or samples in their order, cut into batches behind."""
        handed = pipeline_ids(pipeline, count)
        return handed if inside else [handed[i : i + size] for i in range(0, len(handed), size)]

    before = pruned(first, batch)
    parts = [items(one, batch, workers) for one in before]
    assert len({len(part) for part in parts}) == 1
    assert {one.source.pass_size(batches=True)[0] for one in before} == {len(parts[0])}
    if tail == "pad":
        assert {len(batch_of) for part in parts for batch_of in part} == {batch}
    if first == 1:
        order = [s["__id__"] for one in parts[0] for s in one]
        assert order == [s["__id__"] for one in items(before[0], batch, 0) for s in one]
    stop = round(at * min(map(len, parts)))
    state = json.loads(json.dumps(before[0].source.state_after(stop, batches=True)))
    assert before[0].state_dict(samples_done=state["samples_done"]) == state
    rest = []
    for one in pruned(second, other):
        one.load_state_dict(state)
        rest += [i for batch_of in items(one, other, more) for i in real(batch_of)]
    trained = [i for part in parts for batch_of in part[:stop] for i in real(batch_of)]
    assert sorted(trained + rest) == how["keep_set"].ids().tolist()


@pytest.mark.parametrize("many", [planned._AT_ONCE, 40])
def test_the_steps_of_groups_are_looked_up_together(store, monkeypatch, many):
    real, sizes = KeepSet.ids_at, []

    def counted(keep, shard, ordinal):
        sizes.append(len(shard))
        return real(keep, shard, ordinal)

    monkeypatch.setattr(KeepSet, "ids_at", counted)
    monkeypatch.setattr(planned, "_AT_ONCE", many)
    sampler = ss.PrunedShardSampler(store, groups=3, batch_size=4)
    assert sorted(sampler) == store.ids().tolist()
    assert sizes == ([len(store)] if many > len(store) else [40] * 4 + [2])


def test_windows_are_of_so_many_shards_as_fill_sixteen_of_them(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [4] * 40), tmp_path / "s.zarr")
    how = {"keep_fraction": 0.5, "rule": "random"}
    auto, same, whole = (ss.PrunedShardSampler(store, **how, window=n) for n in (None, 32, 16))
    assert list(auto) == list(same) != list(whole)
