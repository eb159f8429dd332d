"""Pipelines and loaders in the forms in which webdataset's users build them."""

import numpy as np
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


def test_a_window_shuffles_a_pipeline_that_did_not(urls, store):
    ways = ({"window": 2}, {"window": 2, "shuffle": "window"}, {})
    given, same, plain = (
        [sample["__id__"] for sample in ss.prune(pipeline_of(urls), store, **how)] for how in ways
    )
    assert given == same != plain == store.ids().tolist()


@pytest.mark.parametrize("most", [40, 100])
def test_what_repeats_up_to_a_number_is_as_long_as_it_says(urls, store, most):
    pruned = ss.prune(pipeline_of(urls).repeat(2, nbatches=most), store)
    assert len(list(pruned)) == len(pruned) == min(most, 60)


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


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_a_pipeline_splits_behind_its_reader_are_split_once(urls, store, workers):
    split = [wds.tarfile_to_samples(), wds.split_by_node, wds.to_tuple("__id__")]
    split += [wds.split_by_worker, wds.batched(4)]
    seen = []
    for rank in range(2):
        loader = loading(wds.DataPipeline(wds.SimpleShardList(urls), *split), workers)
        pruned = ss.prune(loader, store, keep_fraction=0.7, score="up", world=ss.World(rank, 2))
        seen += [int(one) for (ids,) in pruned for one in ids]
    assert sorted(seen) == store.ids()[9:].tolist()


@pytest.mark.parametrize("nodesplitter", [None, wds.split_by_node, wds.single_node_only])
def test_a_pipeline_that_gave_every_rank_all_samples_is_named(
    urls, store, monkeypatch, caplog, nodesplitter
):
    def shares(**how):
        return [len(list(ss.prune(make(), store, **how))) for make in (ready, hand_made)]

    def ready():
        return wds.WebDataset(urls, shardshuffle=False, nodesplitter=nodesplitter)

    def hand_made():
        return wds.DataPipeline(wds.SimpleShardList(urls), nodesplitter, wds.tarfile_to_samples())

    assert shares() == [30, 30]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shares(world=ss.World(0, 1)) == [30, 30]
    assert not caplog.records
    assert shares() == [15, 15]
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == (2 if nodesplitter is None else 0)
    assert all("say world=ss.World(0, 1) for all on every rank" in line for line in said)


class Filtered(wds.WebDataset):
    def __iter__(self):
        return filter(bool, super().__iter__())


class Counted(wds.WebLoader):
    def iterator(self):
        return enumerate(super().iterator())


class Measured(wds.WebDataset):
    def __len__(self):
        return 1281167


@pytest.mark.filterwarnings("ignore:.with_length:UserWarning")
def test_a_class_that_iterates_in_its_own_way_is_refused(urls, store):
    """What it does to samples would be lost without a word."""
    filtered = Filtered(urls, shardshuffle=False)
    loader = Counted(pipeline_of(urls), batch_size=None)
    for made in (filtered, filtered.decode(), wds.WebLoader(filtered, batch_size=None)):
        with pytest.raises(ss.ShardsieveError, match="Filtered has a method __iter__ of its own"):
            ss.prune(made, store)
    with pytest.raises(ss.ShardsieveError, match="Counted has a method iterator of its own"):
        ss.prune(loader.unbatched(), store)
    for inside in (filtered, loader):
        with pytest.raises(ss.ShardsieveError, match="prune each pipeline that it reads"):
            ss.prune(wrapped(inside), store)
    measured = Measured(urls, shardshuffle=False).with_length(1)
    assert len(list(ss.prune(measured, store))) == len(ss.prune(measured, store)) == 30


def test_what_is_pruned_already_is_refused(urls, store):
    for made in (pipeline_of(urls), loading(pipeline_of(urls), 0).batched(4, collation_fn=None)):
        with pytest.raises(ss.ShardsieveError, match="list of shards, got PrunedSource"):
            ss.prune(ss.prune(made, store), store)


def with_ids(urls):
    return wds.WebDataset(urls, shardshuffle=2).to_tuple("__id__")


def loading(pipeline, workers, size=None):
    return wds.WebLoader(pipeline, batch_size=size, num_workers=workers)


FORMS = {
    "with_epoch inside": lambda p, w: loading(p.batched(4).with_epoch(3), w),
    "longer inside": lambda p, w: loading(p.batched(4).with_epoch(9), w),
    "samples of with_epoch batched behind": lambda p, w: loading(p.with_epoch(8), w).batched(4),
    "samples with_epoch inside": lambda p, w: loading(p.with_epoch(8), w, size=4),
    "with_epoch behind": lambda p, w: loading(p.batched(4), w).with_epoch(9),
    "repeat inside": lambda p, w: loading(p.batched(4).repeat(2), w),
    "repeat behind": lambda p, w: loading(p, w, size=4).repeat(2),
    "repeat behind, cut": lambda p, w: loading(p, w, size=4).repeat(2, 9),
    "repeat once, not cut": lambda p, w: loading(p, w, size=4).repeat(1, 2),
    "unbatched behind": lambda p, w: loading(p, w, size=4).unbatched(),
    "unbatched inside": lambda p, w: loading(p.batched(5).unbatched(), w, size=4),
    "batched again inside": lambda p, w: loading(p.batched(5).unbatched().batched(4), w),
    "batched again behind": lambda p, w: loading(p.batched(5), w).unbatched().batched(4),
    "whole ones again": lambda p, w: loading(p.batched(4, partial=False).unbatched(), w, size=4),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_loader_tells_what_it_gives_over_all_its_workers(urls, store, form, workers):
    """Of 21 samples, 6 whole batches of 4 or less."""
    keep = ss.select(store, keep_fraction=0.7, score="up")
    pruned = ss.prune(FORMS[form](with_ids(urls), workers), store, keep_set=keep)
    assert len(list(pruned)) == len(pruned)


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_that_are_made_again_keep_ranks_in_step(urls, store, rank):
    pipeline = with_ids(urls).batched(5).unbatched().batched(4)
    keep = ss.select(store, keep_fraction=0.7, score="up")  # 21 samples
    for loader in (pipeline, loading(pipeline, 2)):
        pruned = ss.prune(loader, store, keep_set=keep, world=ss.World(rank, 2))
        assert len(list(pruned)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_counts_batches_that_are_made_again_inside(urls, store, workers):
    def loader():
        pipeline = with_ids(urls).batched(5).unbatched().batched(4)
        return ss.prune(loading(pipeline, workers), store, seed=1)

    whole = [list(ids) for (ids,) in loader()]
    first, again = loader(), loader()
    batches = iter(first)
    seen = [list(next(batches)[0]) for _ in range(3)]
    assert first.state_dict()["samples_done"] == 12
    again.load_state_dict(first.state_dict())
    assert seen + [list(ids) for (ids,) in again] == whole


def test_a_state_behind_batches_that_are_taken_apart_says_that_it_is_not_exact(urls, store, caplog):
    pruned = ss.prune(loading(with_ids(urls), 0, size=4).unbatched(), store)
    next(iter(pruned))
    pruned.state_dict()
    assert "not exact: .unbatched() holds samples back" in caplog.text


@pytest.mark.parametrize("made", ["pipeline", "inside", "behind"])
@pytest.mark.parametrize(
    ("epoch", "workers", "longer"), [(6, 0, False), (7, 0, True), (4, 2, True)]
)
def test_an_epoch_that_is_longer_than_what_is_kept_is_named(
    urls, store, caplog, made, epoch, workers, longer
):
    pipeline = with_ids(urls).batched(4)
    if made == "behind":
        loader = loading(pipeline, workers).with_epoch(epoch)
        longer = longer and workers == 0  # only there every worker makes as many
    else:
        loader = pipeline.with_epoch(epoch)
        loader = loading(loader, workers) if made == "inside" else loader
        longer = longer and (workers == 0 or made == "inside")
    ss.prune(loader, store, keep_fraction=0.7, score="up")
    said = [one.getMessage() for one in caplog.records]
    items = epoch * (workers or 1)
    start = f"with_epoch({epoch}) makes a pass of {items} items, and the kept samples make 6: "
    assert [line.startswith(start) for line in said] == [True] * longer


ENDLESS = {
    "batches inside": lambda p, w: loading(p.batched(4).repeat(), w),
    "batches behind": lambda p, w: loading(p, w).batched(4).repeat(),
    "loader behind": lambda p, w: loading(p, w, size=4).repeat(),
    "thrice": lambda p, w: loading(p.batched(4).repeat(3), w),
    "cut": lambda p, w: loading(p.batched(4).with_epoch(12), w),
    "samples": lambda p, w: loading(p.repeat(), w),
}


def given(loader, count):
    """Take so many items, or all."""
    return [np.ravel(ids).tolist() for _, (ids,) in zip(range(count), loader, strict=False)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("form", ENDLESS)
def test_a_state_of_a_loader_that_repeats_is_of_the_epoch_that_it_has_come_to(
    urls, store, form, workers
):
    """Of 17 samples: in 5 batches, so that another worker begins every second epoch."""
    keep = ss.select(store, keep_fraction=0.57, score="up")

    def loader(how=ENDLESS[form]):
        return ss.prune(how(with_ids(urls), workers), store, keep_set=keep, seed=1)

    def once(pipeline, workers):
        return loading(pipeline if form == "samples" else pipeline.batched(4), 0)

    passes, order = loader(once), []
    for _ in range(4):
        order += given(passes, 99)
    epoch = len(order) // 4
    assert epoch == (17 if form == "samples" else 5)
    for stop in (1, epoch - 1, epoch, epoch + 2, 2 * epoch, 2 * epoch + 1):
        first, again = loader(), loader()
        items = iter(first)
        assert given(items, stop) == order[:stop]
        again.load_state_dict(first.state_dict())
        assert given(again, 5) == order[stop : stop + 5]


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_an_epoch_that_is_chosen_in_a_pass_that_repeats_is_of_the_next_pass(urls, store, workers):
    """Workers come to the end of an epoch each at a time of its own."""
    once = ss.prune(with_ids(urls).batched(4), store, seed=1)
    pipeline = with_ids(urls).batched(4).repeat()
    if workers is not None:
        how = {"num_workers": workers, "persistent_workers": workers > 0}
        pipeline = wds.WebLoader(pipeline, batch_size=None, **how)
    pruned = ss.prune(pipeline, store, seed=1)
    order = [given(once, 99) for _ in range(8)]  # 8 batches each
    items = iter(pruned)
    assert given(items, 5) == order[0][:5]
    pruned.set_epoch(7)
    assert given(items, 5) == [*order[0][5:], *order[1][:2]]
    assert given(pruned, 3) == order[7][:3]


@pytest.mark.parametrize("made", ["by the loader", "behind it"])
def test_batches_of_two_epochs_make_a_state_inexact(urls, store, made, caplog):
    pipeline = with_ids(urls).repeat()
    by_loader = made == "by the loader"
    loader = loading(pipeline, 0, size=4) if by_loader else loading(pipeline, 0).batched(4)
    pruned = ss.prune(loader, store)
    items = iter(pruned)
    given(items, 8)
    pruned.state_dict()
    assert "not exact: .repeat()" in caplog.text


def test_workers_keep_their_turns_behind_a_stage_that_does_not_ask_for_all(urls, store):
    """Of 5 batches the first worker has 3, of which 2 are asked for, and the other one 2."""
    keep = ss.select(store, keep_fraction=0.57, score="up")
    pipeline = with_ids(urls).batched(4).slice(2).repeat(2)
    items = iter(ss.prune(loading(pipeline, 2), store, keep_set=keep))
    for _ in range(2):
        assert len({one for batch in given(items, 4) for one in batch}) == 16


@pytest.mark.parametrize(("kept", "exact"), [(30, False), (28, True)])
def test_ranks_that_repeat_shares_of_other_sizes_make_a_state_inexact(
    urls, store, caplog, kept, exact
):
    keep, states = ss.KeepSet.from_ids(store, store.ids()[:kept]), []
    for rank in range(4):
        loader = loading(with_ids(urls).repeat(), 0)
        pruned = ss.prune(loader, store, keep_set=keep, world=ss.World(rank, 4))
        items = iter(pruned)
        given(items, 9)
        states.append(pruned.state_dict())
    assert all(state == states[0] for state in states) == exact
    assert ("not exact: .repeat()" in caplog.text) != exact


def test_workers_go_on_through_epochs_that_are_too_short_for_them(urls, store):
    keep = ss.select(store, keep_fraction=0.1, score="up")  # 3 samples: a batch
    pruned = ss.prune(loading(with_ids(urls).batched(4).repeat(), 2), store, keep_set=keep)
    assert [sorted(batch) for batch in given(pruned, 5)] == [keep.ids().tolist()] * 5


@pytest.mark.parametrize("kept", [0, 3])
def test_what_repeats_and_holds_nothing_ends(urls, store, kept):
    pipeline = pipeline_of(urls).batched(4, partial=False).repeat()
    keep = ss.KeepSet.from_ids(store, store.ids()[:kept])
    assert list(ss.prune(pipeline, store, keep_set=keep)) == []
    pruned = ss.prune(loading(pipeline, 0), store, keep_set=keep)
    assert list(pruned) == []
    assert pruned.state_dict()["epoch"] == 0
    none = pipeline_of(urls).select(lambda sample: False).repeat()
    assert list(ss.prune(none, store)) == []
