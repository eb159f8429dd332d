"""`prune` around real webdataset pipelines."""

import gc
import io
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from accelerate import Accelerator
from tars import write_shards

import shardsieve as ss
from shardsieve.keepset import KeepSet
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.stages import batch_size_of

# webdataset leaves its files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SIZES = [9, 1, 14, 6]


@pytest.fixture
def urls(tmp_path):
    return [str(path) for path in write_shards(tmp_path / "d", SIZES)]


@pytest.fixture
def store(urls, tmp_path):
    store = ss.index(urls, tmp_path / "s.zarr")
    store.put_score("up", range(30))
    return store


def pipeline_of(urls, **options):
    return wds.WebDataset(urls, shardshuffle=False, **options)


def without_ours(sample):
    return {k: v for k, v in sample.items() if k not in ("__id__", "__weight__", "__score__")}


def write_dialect(path, dialect):
    """A tar with long names, dots, directories, metadata and missing members."""
    long = "deep/" * 30 + "name" * 20
    files = [("a/b.c/d.e.f", b"1"), ("a/b.c/d.CLS", b"2"), ("plain.cls", b"3")]
    files += [(f"{long}.cls", b"4"), (f"{long}.txt", b""), ("__meta__.txt", b"no")]
    files += [("nodot", b"no"), ("x/__skip__/y.cls", b"5"), ("__top__/z.cls", b"no")]
    files += [("last.jpg", bytes(range(256)) * 9), ("last.json", b"{}"), ("ümlaut.cls", b"6")]
    files += [(b"gr\xfcn.cls".decode("utf-8", "surrogateescape"), b"7")]  # a name of 1998
    with tarfile.open(path, "w", format=dialect) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "plain.cls"
        tar.addfile(link)
    return str(path)


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_at_keep_fraction_one_samples_are_webdatasets_own(tmp_path, dialect):
    urls = [write_dialect(tmp_path / f"{i}.tar", dialect) for i in range(2)]
    store = ss.index(urls, tmp_path / "s.zarr")
    theirs = list(pipeline_of(urls))
    ours = list(ss.prune(pipeline_of(urls), store))
    assert len(theirs) == 16
    assert [without_ours(sample) for sample in ours] == theirs
    assert [without_ours(sample) for sample in ss.ShardDataset(store)] == theirs
    assert [sample["__id__"] for sample in ours] == store.ids().tolist()


def test_a_hand_made_pipeline_is_pruned_too(urls, store):
    for shards in (wds.SimpleShardList(urls), [{"url": url} for url in urls]):
        made = wds.DataPipeline([shards, wds.split_by_worker], wds.tarfile_to_samples())
        theirs = list(made)
        assert "__local_path__" not in theirs[0]
        assert [without_ours(s) for s in ss.prune(made, store)] == theirs


def test_only_kept_samples_come_and_later_stages_stay(urls, store):
    def halve(samples):
        for number, sample in enumerate(samples):
            if number % 2 == 0:
                yield sample

    pipeline = pipeline_of(urls).decode().map(lambda s: {**s, "seen": True}).compose(halve)
    before = len(pipeline.pipeline)
    pruned = ss.prune(pipeline, store, keep_fraction=0.5, score="up")
    samples = list(pruned)
    assert [s["__id__"] for s in samples] == store.ids()[15::2].tolist()
    assert [s["__score__"] for s in samples] == [float(i) for i in range(15, 30, 2)]
    assert all(s["seen"] and isinstance(s["cls"], int) for s in samples)
    assert len(pipeline.pipeline) == before
    assert isinstance(pruned, wds.WebDataset)


def test_a_score_beside_a_keep_set_is_what_samples_carry(urls, store):
    keep = ss.select(store, rule="random", keep_fraction=0.3)
    pruned = ss.prune(pipeline_of(urls), store, keep_set=keep, score="up")
    assert [s["__score__"] for s in pruned] == store.rows(keep.ids()).tolist()


def test_some_of_the_shards_are_enough(urls, store, monkeypatch):
    pruned = ss.prune(pipeline_of(urls[1:3]), store, keep_fraction=0.9, score="up")
    assert [s["__url__"] for s in pruned] == urls[1:2] * 1 + urls[2:3] * 14
    for strange in ("/nowhere/x.tar", f"s3://other{urls[1]}"):
        with pytest.raises(ss.StoreMismatchError, match=f"shard {strange} .* is not in"):
            ss.prune(pipeline_of([strange]), store)
    monkeypatch.chdir(Path(urls[0]).parent)
    pruned = ss.prune(pipeline_of(["s-002.tar"]), store)
    assert [s["__url__"] for s in pruned] == ["s-002.tar"] * 14
    with pytest.raises(ss.ShardsieveError, match="names a shard twice"):
        ss.prune(pipeline_of([urls[2], "s-002.tar"]), store)


def ids_of(batches):
    return [sample["__id__"] for batch in batches for sample in batch]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_workers_share_the_kept_samples(urls, store, world, workers):
    """Of 25 samples, batches of 4 leave one for the last step: the others repeat one."""
    kept, steps = [], set()
    alone = ss.prune(pipeline_of(urls), store, keep_fraction=0.83, score="up", seed=3, window=2)
    for rank in range(world):
        pipeline = pipeline_of(urls).batched(4, collation_fn=None)
        pruned = ss.prune(
            pipeline,
            store,
            keep_fraction=0.83,
            score="up",
            seed=3,
            window=2,
            world=ss.World(rank, world),
        )
        batches = list(wds.WebLoader(pruned, batch_size=None, num_workers=workers))
        assert len(batches) == len(pruned)
        steps.add(len(batches))
        kept.append([s["__id__"] for batch in batches for s in batch if s["__weight__"]])
    assert len(steps) == 1
    assert sorted(sum(kept, [])) == store.ids()[5:].tolist()  # noqa: RUF017
    if world == 1:
        assert kept[0] == [sample["__id__"] for sample in alone]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_without_batches_are_shared_too(urls, store, workers):
    seen = []
    for rank in range(2):
        pruned = ss.prune(pipeline_of(urls), store, world=ss.World(rank, 2))
        loader = torch.utils.data.DataLoader(pruned, batch_size=None, num_workers=workers)
        mine = [sample["__id__"] for sample in loader]
        assert len(mine) == len(pruned) == 15
        seen += mine
    assert sorted(seen) == store.ids().tolist()


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_differ_also_in_running_workers(urls, store, persistent):
    pipeline = wds.WebDataset(urls, shardshuffle=2).batched(5, collation_fn=None)
    pruned = ss.prune(pipeline, store, seed=1)
    loader = torch.utils.data.DataLoader(
        pruned, batch_size=None, num_workers=2, persistent_workers=persistent
    )
    orders = []
    for epoch in (0, 1, 2):
        pruned.set_epoch(epoch)
        orders.append(ids_of(loader))
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == store.ids().tolist() for order in orders)
    pruned.set_epoch(1)
    assert ids_of(loader) == orders[1]


def test_with_epoch_goes_on_to_the_next_epochs_order(urls, store):
    pruned = ss.prune(pipeline_of(urls).with_epoch(75), store, seed=1, window=4)
    ids = [sample["__id__"] for sample in pruned]
    assert len(ids) == len(pruned) == 75
    assert sorted(ids[:30]) == sorted(ids[30:60]) == store.ids().tolist()
    assert ids[:30] != ids[30:60]
    other = ss.prune(pipeline_of(urls), store, seed=1, window=4)
    other.set_epoch(1)
    assert ids[30:60] == [sample["__id__"] for sample in other]
    loader = wds.WebLoader(pipeline_of(urls), batch_size=None).with_epoch(7)
    assert len(list(ss.prune(loader, store))) == len(ss.prune(loader, store)) == 7


def test_loaders_over_pipelines_are_pruned_as_a_whole(urls, store):
    plain = torch.utils.data.DataLoader(pipeline_of(urls), batch_size=4, collate_fn=list)
    pruned = ss.prune(plain, store, keep_fraction=0.5, score="up")
    assert type(pruned) is torch.utils.data.DataLoader
    assert Accelerator(cpu=True).prepare(pruned) is pruned
    assert ids_of(pruned) == store.ids()[15:].tolist()
    assert len(list(plain)) == 8
    web = wds.WebLoader(pipeline_of(urls), batch_size=None, num_workers=2)
    web = web.batched(4, collation_fn=None)
    assert sorted(ids_of(ss.prune(web, store, keep_fraction=0.5, score="up"))) == ids_of(pruned)


def test_select_files_is_honoured(urls, store):
    def only_labels(name):
        return name.endswith(".cls") and not name.startswith("02")

    theirs = list(pipeline_of(urls, select_files=only_labels))
    ours = list(ss.prune(pipeline_of(urls, select_files=only_labels), store))
    assert 0 < len(theirs) < 30
    assert [without_ours(s) for s in ours] == theirs


def test_a_pruned_pipeline_pickles(urls, store):
    pruned = ss.prune(pipeline_of(urls).to_tuple("__key__"), store, keep_fraction=0.5, score="up")
    again = pickle.loads(pickle.dumps(pruned))
    assert list(again) == list(pruned)


def grouped(urls, *args, **how):
    """A pipeline whose reader is spelled out, in calls if the last one is given something."""
    parts = [wds.tariterators.url_opener, wds.tariterators.tar_file_expander]
    parts.append(wds.tariterators.group_by_keys)
    if args or how:
        *before, last = map(wds.pipelinefilter, parts)
        parts = [*(part() for part in before), last(*args, **how)]
    return wds.DataPipeline(wds.SimpleShardList(urls), *parts, wds.to_tuple("__key__"))


def test_a_reader_may_be_spelled_out(urls, store):
    for pipeline in (grouped(urls), grouped(urls, lcase=True)):
        pruned = ss.prune(pipeline, store, keep_fraction=0.5, score="up")
        assert set(pruned) < set(pipeline)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda urls: pipeline_of(urls, resampled=True), "resampled=False"),
        (lambda urls: pipeline_of("pipe:cat x.tar"), "has no byte ranges"),
        (lambda urls: pipeline_of(urls, rename_files=str.lower), "rename_files"),
        (
            lambda urls: wds.DataPipeline(
                wds.SimpleShardList(urls), lambda src: src, wds.tarfile_to_samples()
            ),
            "stands before the tar reader",
        ),
        (lambda urls: wds.DataPipeline(wds.SimpleShardList(urls)), "must read tars"),
        (lambda urls: wds.DataPipeline(), "the pipeline must read tars"),
        (
            lambda urls: wds.DataPipeline(
                wds.SimpleShardList(urls), lambda src: wds.tariterators.tarfile_samples(src)
            ),
            "put it in the place of another reader",
        ),
        (lambda urls: grouped(urls, suffixes={"cls"}), "suffixes of group_by_keys changes"),
        (lambda urls: grouped(urls, lambda name: (name, "")), "keys of group_by_keys changes"),
        (lambda urls: pipeline_of([urls[0], urls[0]]), "names a shard twice"),
        (lambda urls: pipeline_of(urls).mcached(), "Cached, gives again"),
        (lambda urls: wds.WebLoader(pipeline_of(urls)).mcached(), "stage 1 .* Cached, gives"),
    ],
)
def test_what_cannot_be_kept_is_refused(urls, store, make, message):
    with pytest.raises(ss.ShardsieveError, match=message):
        ss.prune(make(urls), store)


def test_a_cache_behind_a_pruned_pipeline_is_refused(urls, store):
    with pytest.raises(ss.ShardsieveError, match="Cached, gives again"):
        next(iter(ss.prune(pipeline_of(urls), store).mcached()))


@pytest.mark.parametrize("tail", ["uneven", "pad"])
def test_padded_batches_are_whole(urls, store, tail):
    pipeline = pipeline_of(urls).to_tuple("__id__").batched(8, partial=False)
    seen = [int(one) for (ids,) in ss.prune(pipeline, store, tail=tail) for one in ids]
    assert len(set(seen)) == (24 if tail == "uneven" else 30)


@pytest.mark.parametrize("stage", [wds.split_by_node, wds.split_by_worker, wds.slice(0, None, 2)])
def test_a_second_split_of_a_pipeline_is_refused(urls, store, stage):
    pruned = ss.prune(pipeline_of(urls), store, world=ss.World(0, 2)).compose(stage)
    with pytest.raises(ss.ShardsieveError, match="splits the samples again"):
        list(pruned)


@pytest.mark.parametrize("ends", [(3,), (0, 3), (0, 3, 1)])
def test_the_first_samples_of_a_rank_are_no_second_split(urls, store, ends):
    pruned = ss.prune(pipeline_of(urls), store, world=ss.World(0, 2)).slice(*ends)
    assert [sample["__id__"] for sample in pruned] == store.ids()[:6:2].tolist()


@pytest.mark.parametrize(
    ("given", "how"),
    [
        ((), {}),
        ((7,), {}),
        ((), {"batchsize": 7}),
        ((7,), {"partial": False}),
        ((7, None, False), {}),
        ((7, None, True), {}),
        ((7, None), {"partial": False}),
    ],
)
def test_batches_are_known_to_be_as_large_as_webdataset_makes_them(given, how):
    """Ranks and workers take as many samples: another size would put them out of step."""
    how = how if len(given) > 1 else {"collation_fn": None, **how}
    stage = wds.filters.batched(*given, **how)
    size, partial = batch_size_of([stage])
    whole, rest = divmod(50, size)
    wanted = [size] * whole + [rest] * (partial and rest > 0)
    assert [len(batch) for batch in stage(iter(range(50)))] == wanted


def test_a_split_over_workers_that_have_shares_already_is_refused(urls, store):
    split = ss.prune(pipeline_of(urls), store).compose(wds.split_by_worker)
    assert len(list(split)) == len(store)
    with pytest.raises(ss.ShardsieveError, match="splits the samples again"):
        list(wds.WebLoader(split, batch_size=None, num_workers=2))


def test_what_is_no_epoch_and_no_batch_size_is_refused(urls, store):
    pruned = ss.prune(pipeline_of(urls), store)
    for epoch in (-1, 1.5, None):
        with pytest.raises(ValueError, match="epoch must be"):
            pruned.set_epoch(epoch)
    for size in (0, 1.5):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            ss.prune(pipeline_of(urls), store, batch_size=size)
    with pytest.raises(ValueError, match="tail must be one of uneven, pad, drop, got 'even'"):
        ss.prune(pipeline_of(urls), store, tail="even")


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_passes_in_a_row_are_epochs_in_a_row(urls, store, workers, persistent):
    def loader():
        pipeline = wds.WebDataset(urls, shardshuffle=2).batched(4, collation_fn=None)
        how = {"num_workers": workers, "persistent_workers": persistent}
        return ss.prune(torch.utils.data.DataLoader(pipeline, None, **how), store, seed=1)

    first, other, ends = loader(), loader(), []
    whole = [ids_of(first) for _ in range(2)]
    for epoch, ids in enumerate(whole):
        other.set_epoch(epoch)
        assert ids_of(other) == ids
    other.set_epoch(1)  # again
    assert ids_of(other) == whole[1]
    other.set_epoch(2)
    third, seen = ids_of(other), []
    passing = Accelerator(cpu=True).gradient_state
    for batch in first:
        seen += [sample["__id__"] for sample in batch]
        ends.append(passing.end_of_dataloader)
        if len(ends) == 3:
            break
    state = first.state_dict()
    assert (state["epoch"], state["samples_done"]) == (2, 12)
    again = loader()
    again.load_state_dict(state)
    again.set_epoch(2)  # as a loop over epochs does: it stays where the state stands
    assert seen + ids_of(again) == third
    assert ends + [passing.end_of_dataloader for _ in first] == [False] * 10 + [True]


def test_batches_that_are_made_behind_a_pruned_loader_change_no_epoch(urls, store):
    def loader():
        plain = wds.WebLoader(pipeline_of(urls), batch_size=None)
        return ss.prune(plain, store, seed=1, window=4).batched(4, collation_fn=None)

    first, other = loader(), loader()
    assert len(first) == 8
    whole = [ids_of(first) for _ in range(2)]
    assert first.state_dict()["epoch"] == 1
    other.set_epoch(1)
    assert ids_of(other) == whole[1] != whole[0]


def batched_inside(pipeline, workers):
    return wds.WebLoader(pipeline.batched(4), batch_size=None, num_workers=workers)


def batched_behind(pipeline, workers):
    return wds.WebLoader(pipeline, batch_size=None, num_workers=workers).batched(4)


def batched_again(pipeline, workers):
    return batched_inside(pipeline, workers).unbatched().batched(4)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("make", [batched_inside, batched_behind, batched_again])
def test_accelerate_knows_where_a_pass_of_batches_ends(urls, store, make, kept, workers):
    how = {"keep_fraction": kept, "rule": "random", "tail": "pad"}
    accelerator, seen, ends = Accelerator(cpu=True), [], []
    pipeline = wds.WebDataset(urls, shardshuffle=2).to_tuple("__id__")
    loader = accelerator.prepare(ss.prune(make(pipeline, workers), store, **how))
    for epoch in range(2):
        loader.set_epoch(epoch)
        for (ids,) in loader:
            seen += accelerator.gather_for_metrics(torch.as_tensor(ids)).tolist()
            ends.append(accelerator.gradient_state.end_of_dataloader)
    keep = ss.select(store, keep_fraction=kept, rule="random").ids().tolist()
    assert sorted(seen) == sorted(keep * 2)
    assert ends == ([False] * (-(-len(keep) // 4) - 1) + [True]) * 2
    assert len(loader) == len(ends) / 2


@pytest.mark.parametrize("made", ["inside", "loader", "behind"])
def test_accelerate_knows_where_a_pass_of_whole_batches_ends(urls, store, made):
    pipeline = pipeline_of(urls).to_tuple("__id__")
    pipeline = pipeline.batched(8, partial=False) if made == "inside" else pipeline
    how = {"batch_size": 8, "drop_last": True} if made == "loader" else {"batch_size": None}
    loader = wds.WebLoader(pipeline, **how)
    loader = loader.batched(8, partial=False) if made == "behind" else loader
    passing, pruned = Accelerator(cpu=True).gradient_state, ss.prune(loader, store)
    assert len(pruned) == 3
    assert [passing.end_of_dataloader for _ in pruned] == [False, False, True]


@pytest.mark.usefixtures("childless")
@pytest.mark.parametrize("broken_off", [False, True])
def test_workers_that_stay_end_with_the_last_reference_to_their_loader(urls, store, broken_off):
    how = {"batch_size": None, "num_workers": 2, "persistent_workers": True}
    loader = ss.prune(torch.utils.data.DataLoader(pipeline_of(urls), **how), store, seed=1)
    for _ in loader:
        if broken_off:
            break
    assert len(multiprocessing.active_children()) == 2
    gc.disable()  # which would end them too, after 5 seconds each
    try:
        del loader
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_a_policy_is_sent_to_the_sampler(store, urls):
    with pytest.raises(TypeError, match="policy must be given to PrunedShardSampler"):
        ss.prune(pipeline_of(urls), store, policy=ss.UCB(0.5))


def test_other_loaders_are_refused(store):
    with pytest.raises(TypeError, match=r"must be a webdataset pipe.* use PrunedShardSampler"):
        ss.prune([1, 2], store)
    with pytest.raises(TypeError, match="use PrunedShardSampler"):
        ss.prune(torch.utils.data.DataLoader(np.arange(3)), store)


def test_what_comes_next_is_read_ahead_also_where_it_only_fills_a_batch_up(tmp_path, monkeypatch):
    urls = [str(path) for path in write_shards(tmp_path / "d", [200])]
    store, real, ahead = ss.index(urls, tmp_path / "s.zarr"), ShardDataset.look_ahead, []

    def seen(data, ids):
        ahead.append(ids.tolist())
        real(data, ids)

    monkeypatch.setattr(ShardDataset, "look_ahead", seen)
    how = {"batch_size": 128, "tail": "pad", "shuffle": "global", "seed": 1}
    ids = [sample["__id__"] for sample in ss.prune(pipeline_of(urls), store, **how)]
    assert len(ids) == 256
    assert 0 in ids[128:200]
    assert ahead == [ids[128:]]


def test_the_handler_decides_about_damage(urls, store):
    shard = 2
    offset = int(store.ranges[shard, 3, 0])
    with open(urls[shard], "r+b") as file:  # noqa: PTH123
        file.seek(offset)
        file.write(b"damage" * 80)
    with pytest.raises(ss.CorruptShardError, match="s-002"):
        list(ss.prune(pipeline_of(urls), store))
    caught = []
    handler = lambda error: caught.append(str(error)) or True  # noqa: E731
    left = list(ss.prune(pipeline_of(urls, handler=handler), store))
    assert len(left) == 29
    two = KeepSet.from_ids(store, store.ids()[12:14])  # the fourth of that shard, and the next
    assert len(list(ss.prune(pipeline_of(urls, handler=handler), store, keep_set=two))) == 1
    assert len(caught) == 2
    assert "s-002" in caught[0]
