"""Tars without files among the shards: they add no samples, and nothing else."""

import numpy as np
import pytest
import webdataset as wds
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.showing import describe
from shardsieve.pack import pack
from shardsieve.shards.names import expand_urls
from shardsieve.store.create import check
from shardsieve.train.embedding import embed
from shardsieve.train.launch import make_accelerator
from shardsieve.train.nets import light

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any)


def keys_of(loader):
    return [sample["__key__"] for sample in loader]


def sampled(store, world):
    """Keys that every rank of a shuffled epoch takes."""
    data = ss.ShardDataset(store)
    how = {"score": "up", "keep_fraction": 0.5, "window": 3}
    ranks = [ss.PrunedShardSampler(store, world=ss.World(r, world), **how) for r in range(world)]
    return [[data[i]["__key__"] for i in rank] for rank in ranks]


@settings(max_examples=10)
@given(sizes=SIZES, first=st.integers(1, 7), world=st.integers(1, 3))
def test_samples_come_as_from_the_shards_that_have_some(tmp_path_factory, sizes, first, world):
    folder = tmp_path_factory.mktemp("empty")
    urls = write_shards(folder / "d", sizes)
    some = [url for url, n in zip(urls, sizes, strict=True) if n]
    plain = ss.index(some, folder / "some.zarr")
    store = ss.index(urls, folder / "all.zarr")
    for one in (store, plain):
        one.put_score("up", np.arange(len(one)))
    assert store.samples.tolist() == sizes
    assert store.labels().tolist() == plain.labels().tolist()
    assert store.rows(store.ids()).tolist() == list(range(sum(sizes)))
    check(ss.open_store(store.path))
    assert sampled(store, world) == sampled(plain, world)
    theirs = wds.WebDataset(list(map(str, urls)), shardshuffle=False)
    assert keys_of(ss.prune(theirs, store)) == keys_of(theirs)
    if any(sizes[:first]):
        ss.index(urls[:first], folder / "grown.zarr")
        grown = ss.append_shards(urls, folder / "grown.zarr")
        assert grown.fingerprint == store.fingerprint
        check(grown)


def test_they_are_told_of_and_nothing_is_missing_in_them(tmp_path, caplog):
    (tmp_path / "img/a").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(tmp_path / f"img/a/{i}.png")
    pattern = pack(tmp_path / "img", tmp_path / "d", samples_per_shard=3)[0].pattern
    shards = expand_urls(pattern)
    empty = [write_tar(tmp_path / f"{i}.tar", [("folder/", b"")][:i]) for i in range(2)]
    store = ss.index([empty[0], shards[0], empty[1], shards[1]], tmp_path / "s.zarr")
    assert caplog.messages == [
        f"tars without files, which add no samples: 2, the first of them {empty[0]}"
    ]
    network, accelerator, told = light(2), make_accelerator(), []
    assert embed(store, network, name="e", accelerator=accelerator) == 5
    again = {"accelerator": accelerator, "progress": lambda *at: told.append(at)}
    assert embed(store, network, name="e", **again) == 0
    assert told == []
    assert describe(store.path)["embeddings"][0]["embedded_shards"] == 4


def test_a_store_needs_a_sample(tmp_path):
    urls = write_shards(tmp_path / "d", [0, 0])
    with pytest.raises(ss.CorruptShardError, match=r"2 shards hold no files, .*s-000\.tar"):
        ss.index(urls, tmp_path / "s.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_they_are_appended_alone_and_counts_that_are_lost_are_missed(tmp_path):
    """What a lost chunk held reads as 0, too, as it does in stores of earlier releases."""
    store = ss.index(write_shards(tmp_path / "d", [2, 3]), tmp_path / "s.zarr")
    grown = ss.append_shards(write_tar(tmp_path / "none.tar", []), store.path)
    assert grown.samples.tolist() == [2, 3, 0]
    assert check(grown) == 0
    counts = zarr.open_group(store.path)["shard/samples"]
    assert counts.fill_value == 0
    for lost in (0, 1):
        kept, counts[lost] = int(counts[lost]), 0
        with pytest.raises(ss.StoreFormatError, match=rf"lost what shard/samples .*s-00{lost}\."):
            ss.open_store(store.path)
        counts[lost] = kept
    ss.open_store(store.path)


def test_an_integer_is_the_id_of_a_sample_or_is_refused(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [64, 0, 3]), tmp_path / "s.zarr")
    data, place = ss.ShardDataset(store), {one: row for row, one in enumerate(store.ids().tolist())}
    for one in range(-65, 64 * 4 + 1):
        if one in place:
            assert store.rows([one]).tolist() == [place[one]]
            assert data[one]["__id__"] == one
        else:
            with pytest.raises(ValueError, match=rf"^ids must name samples of .*, got {one}$"):
                store.rows([one])
            with pytest.raises(IndexError, match=rf"^(sample id must .*, got )?{one}[; ]"):
                data[one]
