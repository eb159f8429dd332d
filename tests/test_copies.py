"""Shards are read where copies of them lie, and a store goes along when its shards are moved."""

import os
import shutil

import numpy as np
import pytest
import webdataset as wds
from betons import write_beton
from servers import range_server
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.making import check_store
from shardsieve.commands.marks import mark_of_data
from shardsieve.store.append import append_shards
from shardsieve.store.copies import VARIABLE
from shardsieve.store.create import check


@pytest.fixture
def store(tmp_path):
    made = ss.index(write_shards(tmp_path / "first", [5, 4, 6]), tmp_path / "s.zarr")
    made.put_score("mine", np.arange(15))
    return made


@pytest.fixture
def copied(store, tmp_path):
    """The folder of copies; their times are other ones."""
    folder = tmp_path / "node"
    shutil.copytree(tmp_path / "first", folder)
    for path in folder.iterdir():
        os.utime(path, ns=(1, 1))
    return folder


def tree(store):
    return {p: p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}


def keys_of(samples):
    return sorted(sample["__key__"] for sample in samples)


def test_copies_are_read_and_nothing_is_written(store, copied, tmp_path):
    want, before = list(ss.ShardDataset(store)), tree(store)
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ss.ShardsieveError, match=r"moved .*`shardsieve check --moved-to FOLDER`"):
        ss.open_store(store.path)
    near = ss.open_store(store.path, copies=copied)
    found = list(ss.ShardDataset(near))
    assert {sample["__url__"] for sample in found} == set(map(str, copied.iterdir()))
    assert [{**one, "__url__": 0, "__local_path__": 0} for one in found] == [
        {**one, "__url__": 0, "__local_path__": 0} for one in want
    ]
    pipeline = wds.WebDataset(str(copied / "s-{000..002}.tar"), shardshuffle=False)
    pruned = ss.prune(pipeline, near, score="mine", keep_fraction=0.4)
    assert keys_of(pruned) == keys_of(want[9:])
    assert (check(near), near.urls, near.fingerprint) == (0, store.urls, store.fingerprint)
    assert tree(store) == before


def test_a_pipeline_over_the_shards_reads_their_copies(store, copied, tmp_path):
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    shutil.rmtree(tmp_path / "first")
    pruned = ss.prune(pipeline, ss.open_store(store.path, copies=copied))
    samples = list(pruned)
    assert len(samples) == 15
    assert {sample["__url__"] for sample in samples} == set(store.urls)  # as the pipeline has it


def test_a_pipeline_that_names_a_shard_and_its_copy_is_refused(store, copied):
    near = ss.open_store(store.path, copies=copied)
    pipeline = wds.WebDataset([*store.urls, near.places[0]], shardshuffle=False)
    with pytest.raises(ss.ShardsieveError, match="names a shard twice"):
        ss.prune(pipeline, near)


def test_the_shards_own_folder_holds_no_copies(store, tmp_path, monkeypatch):
    os.utime(store.urls[1], ns=(1, 1))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "first"))
    with pytest.raises(ss.StoreMismatchError, match=r"s-001.tar is not the one that .* made from"):
        ss.open_store(store.path)
    assert check_store(store.path, str(tmp_path / "first"))["renewed"] == 1
    assert not ss.open_store(store.path).reads_copies


def test_a_folder_that_the_environment_names_is_refused_with_a_cure(store, copied, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(copied))
    with (copied / "s-001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ss.StoreMismatchError, match=f"copy it again, or unset {VARIABLE}"):
        ss.open_store(store.path)
    (copied / "s-001.tar").unlink()
    with pytest.raises(ss.ShardsieveError, match=f"copy it, or unset {VARIABLE}"):
        ss.open_store(store.path)


def test_what_is_no_copy_is_refused(store, copied, tmp_path):
    second = copied / "s-001.tar"
    size = second.stat().st_size
    with second.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ss.StoreMismatchError, match=f"no copy .* {size + 512} bytes.* had {size};"):
        ss.open_store(store.path, copies=copied)
    second.unlink()
    with pytest.raises(ss.ShardsieveError, match=r"none of .*s-001.tar \(1 of 3 are missing\)"):
        ss.open_store(store.path, copies=copied)
    for folder in "pq":
        (tmp_path / folder).mkdir()
    twins = [write_tar(tmp_path / folder / "a.tar", [("1.jpg", b"1")]) for folder in "pq"]
    made = ss.index(twins, tmp_path / "t.zarr")
    with pytest.raises(ss.ShardsieveError, match=r"several shards have the name a\.tar"):
        ss.open_store(made.path, copies=tmp_path / "p")


def test_other_samples_of_the_same_size_are_refused_when_they_are_read(store, copied):
    near = ss.open_store(store.path, copies=copied)
    path = copied / "s-000.tar"
    path.write_bytes(path.read_bytes().replace(b"00-0001.", b"00-9991."))
    with pytest.raises(ss.StoreMismatchError):
        near.check_shards()
    with pytest.raises(ss.CorruptShardError):
        list(ss.ShardDataset(near))
    with pytest.raises(ss.ShardsieveError):
        check_store(store.path, str(copied))
    assert ss.open_store(store.path).urls == store.urls


def test_the_environment_names_a_folder_for_every_store_that_has_copies_there(
    store, copied, tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(copied))
    near = ss.open_store(store.path)
    assert near.places == [str(copied / f"s-{n:03d}.tar") for n in range(3)]
    other = ss.index(write_tar(tmp_path / "o.tar", [("1.jpg", b"1")]), tmp_path / "o.zarr")
    assert (other.places, other.reads_copies) == (other.urls, False)
    assert mark_of_data(near) == mark_of_data(store)  # no step of a recipe is made again
    more = write_tar(tmp_path / "more.tar", [("1.jpg", b"1")])
    assert len(append_shards(more, store.path)) == 16
    shutil.copyfile(more, copied / "more.tar")
    assert len(list(ss.ShardDataset(ss.open_store(store.path)))) == 16
    monkeypatch.setenv(VARIABLE, "http://localhost/node")
    with pytest.raises(ss.ShardsieveError, match="must name a folder of this machine, got http"):
        ss.open_store(store.path)
    monkeypatch.setenv(VARIABLE, str(copied))
    (copied / "s-002.tar").unlink()
    with pytest.raises(ss.ShardsieveError, match="must hold a copy of every shard"):
        ss.open_store(store.path)
    monkeypatch.setenv(VARIABLE, "")
    assert not ss.open_store(store.path).reads_copies


def test_a_store_goes_along_with_its_shards(store, copied, tmp_path):
    shutil.rmtree(tmp_path / "first")
    assert check_store(store.path, str(copied))["renewed"] == 3
    moved = ss.open_store(store.path)
    assert moved.urls == moved.places == [str(copied / f"s-{n:03d}.tar") for n in range(3)]
    assert moved.score("mine").tolist() == list(range(15))
    assert keys_of(ss.ShardDataset(moved))
    assert ss.index(moved.urls, store.path).fingerprint == store.fingerprint
    assert check_store(store.path)["renewed"] == 0
    with pytest.raises(ValueError, match="moved_to must be the folder"):
        check_store(store.path, "")


def test_copies_of_objects_may_be_files_and_copies_of_files_objects(store, copied, tmp_path):
    with range_server(tmp_path / "first") as server:
        address = server.url
        far = ss.index([f"{address}/s-{n:03d}.tar" for n in range(3)], tmp_path / "far.zarr")
        near = ss.open_store(store.path, copies=address)
        assert keys_of(ss.ShardDataset(near)) == keys_of(ss.ShardDataset(store))
    near = ss.open_store(far.path, copies=copied)  # the server is gone
    assert keys_of(ss.ShardDataset(near)) == keys_of(ss.ShardDataset(store))


def test_the_environment_leaves_stores_alone_whose_shards_share_a_name(tmp_path, monkeypatch):
    for folder in "pq":
        (tmp_path / folder).mkdir()
    twins = [write_tar(tmp_path / folder / "a.tar", [("1.jpg", b"1")]) for folder in "pq"]
    made = ss.index(twins, tmp_path / "t.zarr")
    (tmp_path / "node").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "node"))
    assert not ss.open_store(made.path).reads_copies


@pytest.mark.xdist_group("ffcv")
def test_a_beton_is_read_where_its_copy_lies(tmp_path):
    store = ss.index(write_beton(tmp_path / "a.beton", n=200, side=8), tmp_path / "s.zarr")
    (tmp_path / "node").mkdir()
    copy = shutil.copyfile(store.urls[0], tmp_path / "node" / "a.beton")
    want = [sample["cls"] for sample in ss.ShardDataset(store)]
    (tmp_path / "a.beton").unlink()
    near = ss.open_store(store.path, copies=tmp_path / "node")
    assert [sample["cls"] for sample in ss.ShardDataset(near)] == want
    from ffcv.loader import Loader

    loader = Loader(str(copy), batch_size=50, num_workers=1, drop_last=False)
    assert (
        sum(len(batch.ids) for batch in ss.prune(loader, near, keep_fraction=0.5, rule="random"))
        == 100
    )
    assert check(near) == 0
