"""States of pruned webdataset pipelines and loaders: where a run goes on after a stop."""

import functools
import json
import logging
import multiprocessing

import pytest
import webdataset as wds
from accelerate import Accelerator
from tars import write_shards
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

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


def ids_of(batches):
    return [sample["__id__"] for batch in batches for sample in batch]


def test_a_state_goes_on_at_every_position_on_another_world(urls, store):
    make = functools.partial(ss.prune, store=store, seed=1, window=4)
    whole = [sample["__id__"] for sample in make(pipeline_of(urls))]
    for done in range(31):
        first = make(pipeline_of(urls))
        state = json.loads(json.dumps(first.state_dict(samples_done=done)))
        state.pop("block")  # as in states of earlier releases
        rest = []
        for rank in range(3):
            one = make(pipeline_of(urls), world=ss.World(rank, 3))
            one.load_state_dict(state)
            rest += [sample["__id__"] for sample in one]
        assert sorted(rest) == sorted(whole[done:])
    # Who counts whole batches comes to more than there are samples.
    assert make(pipeline_of(urls)).state_dict(samples_done=32)["samples_done"] == 30
    with pytest.raises(ss.StoreMismatchError, match="shuffle and window of then"):
        make(pipeline_of(urls), seed=2).load_state_dict(state)


def test_groups_stay_those_of_the_world_that_an_epoch_began_on(urls, store):
    state, seen = None, []
    for world, done in ((1, 4), (3, 12), (2, 14)):
        how = {"seed": 1, "window": 2, "groups": 2, "batch_size": 4}
        ranks = [
            ss.prune(pipeline_of(urls), store, world=ss.World(rank, world), **how)
            for rank in range(world)
        ]
        for one in ranks:
            if state:
                one.load_state_dict(state)
            seen += [sample["__id__"] for sample in one][: done // world]
        state = ranks[0].state_dict(samples_done=done)
    assert seen[:4] == list(ss.PrunedShardSampler(store, **how))[:4]
    assert sorted(seen) == store.ids().tolist()


@pytest.mark.parametrize(
    ("tail", "batches", "samples", "remainder"),
    [("uneven", 4, 15, 0), ("pad", 4, 16, 6), ("drop", 3, 12, 0)],
)
def test_what_a_pass_holds_is_known_before_it_begins(
    urls, store, tail, batches, samples, remainder
):
    pruned = ss.prune(pipeline_of(urls), store, batch_size=4, tail=tail, world=ss.World(0, 2))
    assert pruned.source.pass_size(batches=True) == (batches, remainder)
    assert pruned.source.pass_size(batches=False) == (samples, remainder)
    states = [pruned.source.state_after(taken, batches=False) for taken in range(samples + 1)]
    done = [state["samples_done"] for state in states]
    assert done == [8 * (taken // 4) for taken in range(samples)] + [min(8 * batches, 30)]
    assert len(list(pruned)) == samples


def test_accelerate_knows_where_a_pass_of_samples_ends_that_goes_on(urls, store):
    loader = ss.prune(wds.WebLoader(pipeline_of(urls), batch_size=None), store)
    loader.load_state_dict(loader.state_dict(samples_done=25))
    passing = Accelerator(cpu=True).gradient_state
    assert [passing.end_of_dataloader for _ in loader] == [False] * 4 + [True]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("made", ["inside", "loader", "behind", "later"])
def test_a_loaders_state_counts_what_the_loop_was_given(urls, store, workers, made, caplog):
    def loader():
        pipeline = pipeline_of(urls)
        pipeline = pipeline.batched(5, collation_fn=None) if made == "inside" else pipeline
        size = 5 if made == "loader" else None
        collate = list if made == "loader" else None
        loader = wds.WebLoader(pipeline, batch_size=size, num_workers=workers, collate_fn=collate)
        loader = loader.batched(5, collation_fn=None) if made == "behind" else loader
        how = {"batch_size": 5} if made == "later" else {}
        loader = ss.prune(loader, store, keep_fraction=0.7, score="up", seed=1, window=4, **how)
        return loader.batched(5, collation_fn=None) if made == "later" else loader

    whole = [[s["__id__"] for s in batch] for batch in loader()]
    for stop in (1, 3, 5):
        first, seen = loader(), []
        for batch in first:
            seen.append([s["__id__"] for s in batch])
            if len(seen) == stop:
                break
        state = json.loads(json.dumps(first.state_dict()))
        assert state["samples_done"] == min(5 * stop, 21)
        assert first.state_dict(samples_done=3)["samples_done"] == 3
        again = loader()
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert seen + [[s["__id__"] for s in batch] for batch in again] == whole
        again.set_epoch(1)
        assert again.state_dict()["samples_done"] == 0
    assert "not exact" not in caplog.text


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_made_again_count_as_the_loop_was_given_them(urls, store, workers, caplog):
    def loader():
        pipeline = pipeline_of(urls).batched(3, collation_fn=None)
        loader = wds.WebLoader(pipeline, batch_size=None, num_workers=workers)
        return ss.prune(loader.unlisted().batched(4, collation_fn=None), store, seed=1)

    whole = [[s["__id__"] for s in batch] for batch in loader()]
    first, again = loader(), loader()
    assert len(whole) == len(first)
    batches = iter(first)
    seen = [[s["__id__"] for s in next(batches)] for _ in range(2)]
    again.load_state_dict(first.state_dict())
    exact = seen + [[s["__id__"] for s in batch] for batch in again] == whole
    assert exact == ("unbatched" not in caplog.text) == (workers < 2)


@pytest.mark.parametrize("place", ["in the pipeline", "behind the loader", "nowhere"])
def test_a_state_that_a_shuffle_buffer_makes_inexact_says_so(urls, store, place, caplog):
    pipeline = pipeline_of(urls)
    pipeline = (pipeline.shuffle(8) if place == "in the pipeline" else pipeline).batched(3)
    loader = wds.WebLoader(pipeline, batch_size=None)
    if place == "behind the loader":
        loader = loader.unbatched().shuffle(8).batched(3)
    pruned = ss.prune(loader, store, score="up", keep_fraction=0.6)
    pruned.state_dict()  # nothing is held back yet
    list(pruned)
    pruned.state_dict()  # nor any more
    assert not caplog.records
    next(iter(pruned))
    pruned.state_dict()
    pruned.state_dict()
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == (place != "nowhere")
    assert all("not exact: .shuffle() holds samples back" in line for line in said)
    # A pipeline that shuffles samples alone is read in the store's order unless asked otherwise.
    assert all("shuffles with shuffle='window'" in line for line in said)


def test_a_pipelines_state_knows_the_pass_under_way(urls, store):
    first, again = (ss.prune(pipeline_of(urls), store, seed=1, window=4) for _ in range(2))
    list(first)
    samples = iter(first)
    seen = [next(samples)["__id__"] for _ in range(7)]
    again.load_state_dict(first.state_dict())
    seen += [sample["__id__"] for sample in again]
    assert sorted(seen) == store.ids().tolist()


def wait_in_second(event, worker):
    """Let the first worker alone begin."""
    if worker == 1:
        event.wait()


def test_a_worker_that_begins_late_reads_the_epoch_of_the_others(urls, store):
    """A loop was left before it came to the batches of all workers, which stay."""
    pipeline, event = pipeline_of(urls).batched(4, collation_fn=None), multiprocessing.Event()
    how = {"num_workers": 2, "persistent_workers": True}
    how["worker_init_fn"] = functools.partial(wait_in_second, event)
    loader = ss.prune(wds.WebLoader(pipeline, batch_size=None, **how), store, seed=1, window=4)
    next(iter(loader))
    loader.set_epoch(3)
    event.set()
    assert sorted(ids_of(loader)) == store.ids().tolist()


@pytest.mark.parametrize("size", [4, 1])
def test_a_pipelines_state_before_a_last_batch_of_one_sample_leaves_it(urls, store, size):
    def pipeline():
        pipeline = pipeline_of(urls).batched(size, collation_fn=None)
        return ss.prune(pipeline, store, keep_fraction=0.7, score="up", seed=1)

    whole = list(pipeline())
    assert [len(batch) for batch in whole] == [size] * (20 // size) + [1]
    for stop in range(1, 7):
        first, again = pipeline(), pipeline()
        seen = [batch for _, batch in zip(range(stop), first, strict=False)]
        again.load_state_dict(first.state_dict())
        assert again.state_dict() == first.state_dict()
        assert ids_of([*seen, *again]) == ids_of(whole)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_pipeline_does_not_guess_what_workers_gave_to_a_loop(urls, store, persistent):
    pruned = ss.prune(pipeline_of(urls).batched(4, collation_fn=None), store, seed=1, window=4)
    how = {"batch_size": None, "num_workers": 2, "persistent_workers": persistent}
    loader = wds.WebLoader(pruned, **how)
    assert pruned.state_dict()["samples_done"] == 0
    first = ids_of(loader)
    with pytest.raises(ss.ShardsieveError, match="prune the loader"):
        pruned.state_dict()
    assert pruned.state_dict(samples_done=12)["samples_done"] == 12
    pruned.set_epoch(0)
    assert pruned.state_dict()["samples_done"] == 0
    assert ids_of(loader) == first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_torchdatas_loader_goes_on_over_a_pipeline(urls, store, workers, size):
    def loader():
        pipeline = pipeline_of(urls)
        pipeline = pipeline.batched(size, collation_fn=None) if size else pipeline
        pruned = ss.prune(pipeline, store, keep_fraction=0.7, score="up", seed=1, window=4)
        return StatefulDataLoader(pruned, batch_size=None, num_workers=workers)

    def ids(item):
        return [sample["__id__"] for sample in (item if size else [item])]

    whole = [ids(item) for item in loader()]
    for stop in (1, 4, 6):
        first, seen = loader(), []
        for item in first:
            seen.append(ids(item))
            if len(seen) == stop:
                break
        again = loader()
        again.load_state_dict(first.state_dict())
        assert seen + [ids(item) for item in again] == whole


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("size", [0, 4])
def test_torchdatas_workers_that_stay_go_on_in_a_later_epoch(urls, store, size, told):
    def loader():
        pipeline = pipeline_of(urls)
        pipeline = pipeline.batched(size, collation_fn=None) if size else pipeline
        pruned = ss.prune(pipeline, store, seed=1, window=4)
        how = {"num_workers": 2, "persistent_workers": True}
        return pruned, StatefulDataLoader(pruned, batch_size=None, **how)

    def ids(items):
        return [s["__id__"] for item in items for s in (item if size else [item])]

    pruned, first = loader()
    whole = [ids(first), ids(first)][1]
    for stop in (1, 2, 3):
        pruned, first = loader()
        list(first)
        if told:
            pruned.set_epoch(1)
        seen = ids(item for _, item in zip(range(stop), first, strict=False))
        again = loader()[1]
        again.load_state_dict(first.state_dict())
        assert seen + ids(again) == whole


@pytest.mark.parametrize(
    ("workers", "change", "said"),
    [
        (2, lambda p: p.repeat(2), ".repeat()"),
        (1, lambda p: p.with_epoch(5), ".with_epoch()"),
        (2, lambda p: p.shuffle(4), ".shuffle()"),
        (2, lambda p: p, ""),
    ],
)
def test_states_of_workers_that_are_not_exact_are_warned_of(
    urls, store, tmp_path, workers, change, said
):
    heard = logging.FileHandler(tmp_path / "said")  # workers have no log of this process
    logging.getLogger("shardsieve").addHandler(heard)
    try:
        pruned = ss.prune(change(pipeline_of(urls)), store)
        loader = StatefulDataLoader(pruned, batch_size=None, num_workers=workers)
        next(iter(loader))
        loader.state_dict()
    finally:
        logging.getLogger("shardsieve").removeHandler(heard)
        heard.close()
    lines = (tmp_path / "said").read_text().splitlines()
    assert bool(lines) == bool(said)
    assert all(f"is not exact: {said} holds" in line for line in lines)


def test_a_worker_goes_on_in_the_middle_of_what_it_orders_at_once(tmp_path):
    urls = write_shards(tmp_path / "d", [200])
    store = ss.index(urls, tmp_path / "s.zarr")

    def loader():
        pruned = ss.prune(pipeline_of(list(map(str, urls))), store)
        return StatefulDataLoader(pruned, batch_size=None, num_workers=1)

    first, again = loader(), loader()
    seen = [sample["__id__"] for _, sample in zip(range(100), first, strict=False)]
    again.load_state_dict(first.state_dict())
    assert [sample["__id__"] for sample in again] == list(range(len(seen), 200))


def test_batches_made_behind_the_workers_cannot_be_skipped_and_the_cure_is_said(urls, store):
    loader = wds.WebLoader(pipeline_of(urls), batch_size=None).batched(4, collation_fn=None)
    pruned = ss.prune(loader, store)
    assert not hasattr(pruned, "dataset")
    with pytest.raises(AttributeError, match=r"skip_first_batches .* loader.load_state_dict"):
        Accelerator().skip_first_batches(pruned, 2)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", ["pipeline", "sampler"])
def test_a_loader_without_order_has_states_between_epochs_alone(urls, store, kind, persistent):
    how = {"num_workers": 2, "in_order": False, "collate_fn": list}
    how["persistent_workers"] = persistent
    if kind == "pipeline":
        pipeline = pipeline_of(urls).batched(4, collation_fn=list)
        plain = DataLoader(pipeline, batch_size=None, **{**how, "collate_fn": None})
        loader = states = ss.prune(plain, store)
    else:
        states = ss.PrunedShardSampler(store)
        loader = DataLoader(ss.ShardDataset(store), sampler=states, batch_size=4, **how)
    batches = iter(loader)
    assert states.state_dict()["samples_done"] == 0
    seen = [next(batches)]
    with pytest.raises(ss.ShardsieveError, match=r"in_order=False .* between epochs"):
        states.state_dict()
    seen += batches
    assert sorted(ids_of(seen)) == store.ids().tolist()
    assert states.state_dict()["samples_done"] == 30
    del batches
    states.set_epoch(1)
    for _ in loader:
        break
    with pytest.raises(ss.ShardsieveError, match=r"in_order=False .* between epochs"):
        states.state_dict()
    states.set_epoch(2)
    assert states.state_dict()["samples_done"] == 0
    for number, _ in enumerate(loader, start=1):
        if (kind, number) == ("sampler", 8):  # all that was asked for has come
            assert states.state_dict()["samples_done"] == 30
    assert states.state_dict()["samples_done"] == 30
