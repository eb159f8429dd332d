"""Damaged shards and stores: named, counted, skipped on request, ranks in step."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import by_webdataset, write_shards, write_tar
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.io.spans import HARD_DISK
from shardsieve.store.create import check
from shardsieve.train.recorder import Recorder

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "d", [9, 1, 14, 6])


@pytest.fixture
def store(shards, tmp_path):
    return ss.index(shards, tmp_path / "s.zarr")


@pytest.fixture
def indexed(tmp_path):
    """A store of one shard, and the shard's bytes."""
    (path,) = write_shards(tmp_path / "one", [7])
    return ss.index(path, tmp_path / "one.zarr"), path.read_bytes()


def damage(store, sample_id, at=0, data=b"damage" * 80):
    """Write over a sample's bytes in its shard."""
    shard, position = divmod(sample_id, store.rows_per_shard)
    with open(store.urls[shard], "r+b") as file:  # noqa: PTH123
        file.seek(int(store.ranges[shard, position, 0]) + at)
        file.write(data)


def ids_of(samples):
    return [sample["__id__"] for sample in samples]


@settings(max_examples=60)
@given(cut=st.integers(0, 20_000))
def test_a_shard_cut_anywhere_gives_whole_samples_or_names_them(indexed, cut):
    store, whole = indexed
    (path,) = map(Path, store.urls)
    path.write_bytes(whole)
    truth = {s["__key__"]: (s["jpg"], s["cls"]) for s in by_webdataset(path)}
    os.truncate(path, min(cut, len(whole)))
    for sample_id in store.ids().tolist():
        offset, length = store.ranges[0, sample_id].tolist()
        if offset + length <= cut:
            sample = ss.ShardDataset(store)[sample_id]
            assert (sample["jpg"], sample["cls"]) == truth[sample["__key__"]]
        else:
            where = rf"s-000\.tar ends before .*sample 00-000{sample_id}, bytes {offset}-"
            with pytest.raises(ss.CorruptShardError, match=where):
                ss.ShardDataset(store)[sample_id]


def test_joined_reads_of_a_shard_cut_short_cost_no_whole_sample(indexed):
    """They were lost with the one read that served them all."""
    store, whole = indexed
    offset, length = store.ranges[0, 4].tolist()
    os.truncate(store.urls[0], offset + length // 2)
    data = ss.ShardDataset(store, on_error="skip", max_unreadable=3, storage=HARD_DISK)
    assert ids_of(data.__getitems__(store.ids().tolist())) == [0, 1, 2, 3]
    assert data.unreadable == [4, 5, 6]
    with pytest.raises(ss.CorruptShardError, match=r"ends before .*sample 00-0004, bytes"):
        ss.ShardDataset(store, storage=HARD_DISK).__getitems__(store.ids().tolist())
    Path(store.urls[0]).write_bytes(whole)
    kept = ss.ShardDataset(store, storage=HARD_DISK)
    kept.__getitems__(store.ids().tolist())
    assert kept.ledger.total.requests == 1, "the reads were not joined"


@pytest.mark.parametrize("part", [slice(0, 512), slice(512, None), slice(0, None)])
def test_what_was_never_written_reads_as_zeros_and_is_no_sample(indexed, part, tmp_path):
    """It was a sample without members, or the end of the shard: what lay behind was lost."""
    store, whole = indexed
    offset, length = store.ranges[0, 3].tolist()
    holed, within = bytearray(whole), range(offset, offset + length)[part]
    holed[within.start : within.stop] = bytes(len(within))
    (path,) = map(Path, store.urls)
    path.write_bytes(holed)
    with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar is damaged: .*sample 00-0003"):
        ss.ShardDataset(store)[3]
    with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar is damaged: .*; write or download"):
        ss.index(path, tmp_path / "again.zarr")


@pytest.mark.parametrize("at", [0, 124, 156, 345])
def test_header_damage_is_named_and_costs_one_sample(store, at):
    damage(store, 131, at)
    with pytest.raises(ss.CorruptShardError, match=r"s-002\.tar .*\(sample 02-0003, bytes \d+-\d+"):
        ss.ShardDataset(store)[131]
    data = ss.ShardDataset(store, on_error="skip")
    assert ids_of(data.__getitems__([129, 131, 132])) == [129, 132]
    assert data.unreadable == [131]


def test_more_than_the_limit_stops_the_pass(store):
    for sample_id in (0, 1, 2):
        damage(store, sample_id)
    data = ss.ShardDataset(store, on_error="skip", max_unreadable=2)
    with pytest.raises(ss.UnreadableSampleError, match="more than 2 samples cannot be read"):
        data.__getitems__([0, 1, 2, 3])
    data = ss.ShardDataset(store, on_error="skip", max_unreadable=3)
    (stands_in,) = data.__getitems__([0])
    assert (stands_in["__id__"], stands_in["__weight__"]) == (3, 0)


def test_a_shard_rewritten_in_mid_epoch_is_noticed(store, shards, tmp_path):
    data = ss.ShardDataset(store)
    assert data[128]["__key__"] == "02-0000"
    (other,) = write_shards(tmp_path / "other", [14])
    shards[2].write_bytes(other.read_bytes())
    with pytest.raises(ss.CorruptShardError, match=r"holds 00-0005 where the index says 02-0005"):
        data[133]


def test_a_shard_replaced_by_name_in_mid_epoch_is_read_to_its_end(store, shards, tmp_path):
    data = ss.ShardDataset(store)
    before = data[133]
    (other,) = write_shards(tmp_path / "other", [14])
    other.rename(shards[2])
    assert data[133] == before  # the old file, as it was opened
    with pytest.raises(ss.CorruptShardError, match=r"holds 00-0005 where the index says 02-0005"):
        ss.ShardDataset(store)[133]
    with pytest.raises(ss.StoreMismatchError, match=r"s-002\.tar is not the one"):
        ss.open_store(store.path)


def test_thousands_of_lost_samples_are_counted_one_by_one(tmp_path):
    members = [(f"{i:05d}.jpg", b"x") for i in range(1500)]
    path = write_tar(tmp_path / "d.tar", members)
    store = ss.index(path, tmp_path / "s.zarr")
    path.unlink()
    data = ss.ShardDataset(store, on_error="skip", max_unreadable=2000)
    assert data.aligned(range(1500)) == [None] * 1500
    assert data.unreadable == list(range(1500))


def test_a_removed_shard_is_named(store, shards):
    shards[3].unlink()
    with pytest.raises(ss.CorruptShardError, match=r"s-003\.tar: No such file .*sample 03-0001"):
        ss.ShardDataset(store)[193]
    data = ss.ShardDataset(store, on_error="skip")
    assert ids_of(data.__getitems__([0, 193, 1])) == [0, 1]


def test_a_shard_whose_disk_fails_is_named(store, shards):
    """Of what its descriptor said there was no name."""
    shards[3].unlink()
    shards[3].symlink_to("/proc/self/mem")
    with pytest.raises(ss.CorruptShardError, match=r"s-003\.tar: Input/output error .*03-0001"):
        ss.ShardDataset(store)[193]


PARTS = ["offset", "length", "key", "label"]
PARTS = [*(f"sample/{name}" for name in PARTS), "shard/samples", "shard/url"]


@pytest.mark.parametrize("array", PARTS)
def test_a_missing_store_chunk_is_named(store, array):
    chunks = [p for p in (store.path / array / "c").rglob("*") if p.is_file()]
    sorted(chunks)[-1].unlink()
    lost = rf"lost what {array} held of .*index into another store"

    def read():
        opened = ss.open_store(store.path)
        return ss.ShardDataset(opened, labels=opened.labels())[195]

    with pytest.raises(ss.StoreFormatError, match=lost):
        read()
    with pytest.raises(ss.StoreFormatError, match=lost):
        check(ss.open_store(store.path))


def test_labels_that_are_not_there_are_not_lost(tmp_path):
    (path,) = write_shards(tmp_path / "d", [7])
    appended = write_tar(tmp_path / "d/t.tar", [(f"{i}.jpg", b"x") for i in range(3)])
    store = ss.index(path, tmp_path / "s.zarr", label_member="none")
    assert ss.append_shards(appended, store.path).labels().tolist() == [-1] * 10


@pytest.mark.parametrize("lost", ["offset", "label"])
def test_scores_outlive_what_a_store_has_lost(store, shards, tmp_path, lost):
    store.put_score("up", np.arange(30.0))
    (store.path / f"sample/{lost}/c/2/0").unlink()
    whole = ss.index(shards, tmp_path / "whole.zarr")  # as the error says
    assert ss.realign(ss.open_store(store.path), whole) == ["up"]
    np.testing.assert_array_equal(whole.score("up"), np.arange(30))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [range(128, 142), range(8)])
def test_ranks_stay_in_step_when_one_of_them_skips(store, workers, bad):
    for sample_id in bad:
        damage(store, sample_id)
    steps, seen = set(), []
    for rank in range(3):
        sampler = ss.PrunedShardSampler(store, shuffle="none", world=ss.World(rank, 3))
        data = ss.ShardDataset(store, on_error="skip")
        loader = DataLoader(data, 2, sampler=sampler, collate_fn=list, num_workers=workers)
        batches = list(loader)
        steps.add(len(batches))
        assert all(batches)
        seen += [s["__id__"] for batch in batches for s in batch if s["__weight__"]]
        repeats = [s for batch in batches for s in batch if not s["__weight__"]]
        assert not set(ids_of(repeats)) & set(bad)
    assert steps == {5}
    assert sorted(seen) == sorted(set(store.ids().tolist()) - set(bad))


def test_a_rank_that_can_read_nothing_says_so(store):
    for sample_id in store.ids().tolist():
        damage(store, sample_id)
    data = ss.ShardDataset(store, on_error="skip")
    with pytest.raises(ss.UnreadableSampleError, match=r"none of a whole batch|more than 100"):
        data.__getitems__([0, 1])


def items_of_ranks(store, world, **how):
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    ranks = [ss.World(rank, world) for rank in range(world)]
    return [len(list(ss.prune(pipeline, store, world=w, on_error="skip", **how))) for w in ranks]


def test_pipelines_stay_in_step_when_one_of_them_skips(store):
    for sample_id in (129, 130, 131, 192):
        damage(store, sample_id)
    steps, seen = set(), []
    for rank in range(3):
        pipeline = wds.WebDataset(store.urls, shardshuffle=False).batched(2, collation_fn=None)
        pruned = ss.prune(pipeline, store, world=ss.World(rank, 3), on_error="skip")
        batches = list(pruned)
        steps.add(len(batches))
        assert {len(batch) for batch in batches} == {2}
        seen += [s["__id__"] for batch in batches for s in batch if s["__weight__"]]
        assert set(pruned.unreadable) <= {129, 130, 131, 192}
    assert steps == {5}
    assert sorted(seen) == sorted(set(store.ids().tolist()) - {129, 130, 131, 192})
    # Nobody counts on them where a rank is alone, or there are no batches.
    assert items_of_ranks(store, 1, batch_size=2) == [26]
    assert items_of_ranks(store, 1) == [26]
    assert items_of_ranks(store, 3) == [8, 9, 9]
    # A rank that could read nothing yet looks among what others keep.
    two = ss.KeepSet.from_ids(store, [128, 129])
    assert items_of_ranks(store, 2, batch_size=1, keep_set=two) == [1, 1]
    none = ss.KeepSet.from_ids(store, [129, 130])
    assert items_of_ranks(store, 2, batch_size=1, keep_set=none) == [0, 0]
    with pytest.raises(ss.UnreadableSampleError, match="more than 3 "):
        items_of_ranks(store, 1, max_unreadable=3)


def test_a_member_that_is_no_image_is_named_and_skipped(store):
    def decode(sample):
        if sample["__id__"] == 129:
            raise OSError("no image")
        return sample["__id__"]

    data = ss.ShardDataset(store, decode, on_error="skip")
    assert data.__getitems__([128, 129, 130]) == [128, 130]
    assert data.__getitems__([129]) == [130]  # a repeat, so that the batch is not empty
    with pytest.raises(ss.UnreadableSampleError, match=r"02-0001 of shard .*s-002\.tar: no image"):
        ss.ShardDataset(store, decode).__getitems__([129])


def test_a_skipped_sample_is_named_once_not_in_every_epoch(store, caplog):
    damage(store, 131)
    data = ss.ShardDataset(store, on_error="skip")
    sampler = ss.PrunedShardSampler(store)
    loader = DataLoader(data, sampler=sampler, batch_size=7, collate_fn=list)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert sum(map(len, loader)) == 29
    assert caplog.text.count("skipped:") == 1


def test_a_key_that_decode_misses_is_named_as_such(store):
    data = ss.ShardDataset(store, lambda sample: sample["jpeg"])
    with pytest.raises(ss.UnreadableSampleError, match=r"s-002\.tar: KeyError\('jpeg'\); mend"):
        data[129]


def test_what_decode_does_not_return_is_named_and_counted(store):
    def forgetful(sample):
        return sample["__id__"] if sample["__id__"] != 129 else None

    with pytest.raises(ss.UnreadableSampleError, match=r"02-0001 of .*: decode returned None"):
        ss.ShardDataset(store, forgetful).__getitems__([128, 129])
    data = ss.ShardDataset(store, forgetful, on_error="skip")
    assert data.__getitems__([128, 129]) == [128]
    assert data.unreadable == [129]


def test_lost_scores_are_named_before_training(store):
    store.put_score("up", np.arange(30.0))
    chunk = store.path / "score" / "up" / "c" / "2" / "0"
    chunk.unlink()
    with pytest.raises(
        ss.MissingScoreError, match="'up' must be finite, got nan for sample id 128"
    ):
        ss.select(ss.open_store(store.path), score="up", keep_fraction=0.5)


def full(store):
    """All that may be read of a store, once something of every kind was put there."""
    if not store.scores:
        store.put_score("up", np.arange(len(store)))
        store.embedding_array("e", 3)[:] = 1.5
        ss.select(store, score="up", keep_fraction=0.5).save(store, "half")
        recorder = Recorder(store.ids(), 3, signals=("loss",))
        recorder.record(store.ids(), np.eye(3)[store.labels() % 3], store.labels() % 3)
        recorder.end_epoch()
        recorder.save(store, "a")
    store = ss.open_store(store.path)
    recorder = Recorder.load(store, "a")
    return {
        "sample": [list(store.keys_by_shard()), store.ranges.tolist(), store.labels().tolist()],
        "shard": [store.urls, store.ids().tolist(), store.tables(), store.nbytes()],
        "score": store.score("up").tolist(),
        "embedding": [store.embeddings, store.embedding("e").tolist()],
        "keep": ss.KeepSet.load(store, "half").ids().tolist(),
        "dynamics": [recorder.ids.tolist(), recorder.signal("loss").tolist()],
    }


def emptied(whole):
    return b""


def cut_short(whole):
    return whole[:-9]


def changed_byte(whole):
    at = len(whole) // 2
    return whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]


@pytest.mark.parametrize("left", [emptied, cut_short, changed_byte])
def test_no_file_of_a_store_is_damaged_unnoticed(indexed, left):
    """A byte of a chunk that changed gave other numbers; the rest was a traceback, or no name."""
    store, _ = indexed
    known, files = full(store), sorted(p for p in store.path.rglob("*") if p.is_file())
    for path in files:
        whole, is_chunk = path.read_bytes(), path.name != "zarr.json"
        if path.parent.parent == store.path or (left is changed_byte and not is_chunk):
            continue  # groups are not asked for everything, and there is no checksum of JSON
        path.write_bytes(left(whole))
        named = re.match(r".*(/c/\d+|zarr\.json)", str(path))[0]
        with pytest.raises(
            ss.StoreFormatError, match=rf"^{named} is damaged \(.*; put back a copy"
        ):
            assert full(store) == known
        path.write_bytes(whole)
    assert full(store) == known


@pytest.mark.parametrize(
    ("where", "word", "wrong"),
    [
        (".", b'"members"', b'"memberr"'),
        (".", b'"members": ', b'"members": 7, "m": '),
        (".", b'"members"', b'"classes": 7, "members"'),
        (".", rb'"rows_per_shard": \d+', b'"rows_per_shard": null'),
        (".", rb'"rows_per_shard": ', b'"rows_per_shard": 9' + b"0" * 30),
        (".", rb'"num_shards": \d+', b'"num_shards": 0'),
        ("score/up", b'"zstd"', b'"zsud"'),
        ("sample/key", b'"chunk_shape"', b'"chunk_shbpe"'),
        ("score/up", rb'"chunk_shape": \[\s*1', b'"chunk_shape": [0'),
        ("embedding/e", b'"attributes"', b'"attribuves"'),
        ("keep/half/bits", b'"uint8"', b'"uinu8"'),
        ("dynamics/a", b'"group"', b'"grouq"'),
        ("keep/half", b'"fingerprint"', b'"fingerprinu"'),
        ("dynamics/a", b'"num_classes"', b'"num_clasres"'),
        ("dynamics/a/loss", rb'"shape": \[\s*1', b'"shape": [9'),
        ("dynamics/a/ids", rb'"shape": \[\s*7', b'"shape": [6'),
        ("score/up", rb'"shape": \[\s*1,\s*64', b'"shape": [1,65'),
        ("embedding/e", rb'"shape": \[\s*1', b'"shape": [0'),
        ("sample/label", rb'"shape": \[\s*1', b'"shape": [0'),
    ],
)
def test_a_changed_word_in_what_describes_an_array_is_no_traceback(indexed, where, word, wrong):
    store, _ = indexed
    known, path = full(store), store.path / where / "zarr.json"
    whole = path.read_bytes()
    path.write_bytes(re.sub(word, wrong, whole, count=1))
    assert path.read_bytes() != whole
    with pytest.raises(ss.StoreFormatError, match=r"zarr\.json is damaged|has lost part of"):
        full(store)
    path.write_bytes(whole)
    assert full(store) == known


def test_a_shard_has_no_more_samples_than_there_is_room_for(store):
    store.group["shard/samples"][1] = store.rows_per_shard + 1
    with pytest.raises(ss.StoreFormatError, match=r"lost what shard/samples held of .*s-001\.tar"):
        ss.open_store(store.path)


def test_the_cure_of_a_damaged_file_costs_as_little_as_can_be(indexed):
    """Who deletes more than has to go trains or scores again for nothing."""
    store, _ = indexed
    full(store)
    again, index = "or delete {} and make it again$", "or index into another store: "
    cures = {
        "sample/label/c/0/0": index,
        "sample/key/zarr.json": index,
        "shard/nbytes/c/0": index,
        "score/zarr.json": index,
        "score/up/c/0/0": again.format(store.path / "score/up"),
        "keep/half/zarr.json": again.format(store.path / "keep/half"),
        "embedding/e/zarr.json": again.format(store.path / "embedding/e"),
        "embedding/e/c/0/0/0": "or delete it and embed again$",
        "dynamics/a/ids/c/0": again.format(store.path / "dynamics/a"),
    }
    for name, cure in cures.items():
        whole = (store.path / name).read_bytes()
        (store.path / name).write_bytes(b"")
        with pytest.raises(ss.StoreFormatError, match=cure):
            full(store)
        (store.path / name).write_bytes(whole)


@pytest.mark.parametrize("shard", range(4))
def test_a_chunk_that_was_deleted_as_told_is_embedded_again(store, shard):
    """A whole chunk that was named in its stead would be deleted for nothing."""
    array = store.embedding_array("e", 3)
    array[:] = 1.5
    chunk = store.path / f"embedding/e/c/{shard}/0/0"
    chunk.write_bytes(b"")
    with pytest.raises(
        ss.StoreFormatError, match=rf"{chunk.parents[1]} is.*, or delete it and embed"
    ):
        store.embedding("e")
    shutil.rmtree(chunk.parents[1])
    lost = np.isnan(store.embedding("e")).all(axis=1)
    assert lost.tolist() == np.repeat(np.arange(4) == shard, store.samples).tolist()


def test_metadata_that_cannot_be_read_is_named_as_such(store):
    store.put_score("up", np.arange(30.0))
    about = store.path / "score/up/zarr.json"
    about.unlink()
    about.symlink_to(about)
    with pytest.raises(ss.StoreFormatError, match=rf"cannot read {about}: Too many levels of"):
        ss.open_store(store.path).score("up")


@pytest.mark.parametrize("gone", ["ids/c", "ids/zarr.json", "loss/zarr.json"])
def test_dynamics_of_which_a_part_is_lost_are_refused(store, gone):
    Recorder(store.ids(), num_classes=3, signals=("loss",)).save(store, "a")
    (store.path / "dynamics/a" / gone).rename(store.path / "elsewhere")
    with pytest.raises(ss.StoreFormatError, match="lost part of the dynamics of run 'a'; "):
        Recorder.load(store, "a")


def test_a_file_that_cannot_be_read_is_named_as_such(store):
    chunk = store.path / "sample/label/c/1/0"
    chunk.unlink()
    chunk.symlink_to(chunk)
    with pytest.raises(ss.StoreFormatError, match=rf"cannot read {chunk}: Too many levels of"):
        store.labels()


def test_what_a_kill_left_of_a_file_is_no_member_of_the_store(store):
    """Zarr writes `zarr.json` and chunks under another name first."""
    store.put_score("loss", np.arange(30.0))
    recorder = Recorder(np.arange(30), num_classes=3)
    recorder.save(store, "a")
    for group in (".", "score", "score/loss", "score/loss/c/0", "dynamics"):
        (store.path / group / f"zarr.{32 * '0'}.partial").write_bytes(b"{")
    for array in ("score/el2n", "score/aum/c/0", "dynamics/b"):  # begun, or deleted in part
        (store.path / array).mkdir(parents=True)
    again = ss.open_store(store.path)
    assert again.scores == ["loss"]
    assert Recorder.runs(again) == ["a"]
    again.put_score("el2n", np.arange(30.0))
    assert ss.open_store(store.path, mode="r").scores == ["el2n", "loss"]
