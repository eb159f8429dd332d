"""Appended shards: the store becomes what it would have been, or stays what it was."""

import json

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import range_server
from tars import write_shards, write_tar
from test_store import contents
from zarr.storage import LocalStore

import shardsieve as ss
from shardsieve.store import append, create, walking
from shardsieve.store.create import check
from shardsieve.store.layout import opened_group
from shardsieve.store.store import Store

SIZES = [5, 1, 7, 64, 3]


def scored(store):
    """Put an embedding and a score into a store of any length."""
    store.put_score("mine", np.arange(len(store)), provenance={"definition": "place"})
    array = store.embedding_array("e", 2)
    for shard in range(store.num_shards):
        array[shard, : store.samples[shard]] = shard + 1
    return store


@settings(max_examples=6)
@given(first=st.integers(1, 4), second=st.integers(1, 4))
def test_an_appended_store_is_the_store_of_all_shards(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("append")
    shards = write_shards(folder / "d", SIZES)
    whole = ss.index(shards, folder / "whole.zarr")
    ids = ss.index(shards[:first], folder / "s.zarr").ids()
    ss.append_shards(shards[:second], folder / "s.zarr")
    grown = ss.append_shards(shards, folder / "s.zarr")
    assert contents(grown) == contents(whole)
    assert grown.ids()[: len(ids)].tolist() == ids.tolist()
    assert grown.urls == whole.urls
    check(grown)
    assert sorted(p.name for p in folder.iterdir()) == ["d", "s.zarr", "whole.zarr"]


def test_new_shards_are_labelled_by_the_member_that_the_store_was_made_with(tmp_path):
    shards = [
        write_tar(tmp_path / f"{n}.tar", [(f"{n}.cls", b"1"), (f"{n}.fine", b"%d" % (7 + n))])
        for n in range(2)
    ]
    store = ss.index(shards[0], tmp_path / "s.zarr", label_member="fine")
    for made_by in (ss.append_shards, ss.index):
        for said in ("png", "cls"):  # the usual one too, where it is said
            with pytest.raises(ss.StoreMismatchError, match=f"from fine, got label_member {said}"):
                made_by(shards[0], store.path, label_member=said)
    grown = ss.append_shards(shards, store.path)
    assert grown.labels().tolist() == [7, 8]
    check(grown)


def test_who_opens_a_store_that_grows_sees_the_one_of_before(tmp_path):
    shards = write_shards(tmp_path / "d", SIZES)
    old = ss.index(shards[:3], tmp_path / "s.zarr")
    group = opened_group(old.path, "r")
    ss.append_shards(shards[3:], old.path)
    opened = Store(old.path, group)
    assert (len(opened), opened.fingerprint) == (13, old.fingerprint)


def test_scores_and_embeddings_of_before_stay_and_new_rows_have_none(tmp_path):
    shards = write_shards(tmp_path / "d", SIZES)
    old = scored(ss.index(shards[:3], tmp_path / "s.zarr"))
    grown = ss.append_shards(shards[3:], old.path)
    assert grown.score("mine")[:13].tolist() == list(range(13))
    assert np.isnan(grown.score("mine")[13:]).all()
    points = grown.embedding("e")
    np.testing.assert_array_equal(points[:13], old.embedding("e"))
    assert np.isnan(points[13:]).all()
    np.testing.assert_array_equal(grown.embedding_rows("e")[3:20], points[3:20])
    assert grown.embedding_rows("e").shape == (80, 2)
    keep = ss.select(grown, score="mine", keep_fraction=0.1, drop_missing=True)
    assert keep.ids().max() < 3 * 64


def test_stopped_at_any_of_its_last_writes_it_is_the_old_store_or_the_new_one(
    tmp_path, monkeypatch
):
    shards, real, left = write_shards(tmp_path / "d", SIZES), LocalStore.set, [0]

    async def counted(self, key, value):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("stopped")
        await real(self, key, value)

    monkeypatch.setattr(LocalStore, "set", counted)
    old = ss.index(shards[:2], tmp_path / "whole")
    left[0] = 0
    new = ss.append_shards(shards[2:], old.path)
    writes = -left[0]
    for stop in range(writes, writes - 6, -1):
        path = tmp_path / f"stopped-{stop}"
        ss.index(shards[:2], path)
        left[0] = stop
        with pytest.raises(ss.ShardsieveError, match="stopped"):
            ss.append_shards(shards[2:], path)
        cut = ss.open_store(path)
        marks = [(one.num_shards, one.fingerprint) for one in (old, new)]
        assert (cut.num_shards, cut.fingerprint) in marks
        assert ss.append_shards(shards[2:], path).fingerprint == new.fingerprint


def test_killed_before_its_table_of_contents_is_written_the_next_writes_it(tmp_path, monkeypatch):
    """Over http the names of scores are known by that table alone."""
    shards = write_shards(tmp_path / "d", SIZES)
    scored(ss.index(shards[:2], tmp_path / "s.zarr"))

    def killed(group):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(append, "write_contents", killed)
        with pytest.raises(KeyboardInterrupt):
            ss.append_shards(shards, tmp_path / "s.zarr")
    ss.append_shards(shards, tmp_path / "s.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.zarr"]
    with range_server(tmp_path) as server:
        assert ss.open_store(f"{server.url}/s.zarr", mode="r").scores == ["mine"]


def test_a_store_of_an_earlier_release_says_how_long_it_is_before_it_grows(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "d", SIZES)
    store = ss.index(shards[:2], tmp_path / "s.zarr")
    del store.group.attrs["num_shards"]

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(append, "_array", killed)
    with pytest.raises(KeyboardInterrupt):
        ss.append_shards(shards, store.path)
    assert ss.open_store(store.path).num_shards == 2


@settings(max_examples=8)
@given(stop=st.integers(0, 13), other=st.booleans())
def test_killed_anywhere_it_is_the_old_store_and_finishes_when_started_again(
    tmp_path_factory, stop, other
):
    folder = tmp_path_factory.mktemp("killed")
    shards = write_shards(folder / "d", SIZES)
    store = scored(ss.index(shards[:2], folder / "s.zarr"))
    before = contents(store)[0], dict(store.group.attrs)
    calls, real, many = [], zarr.Array.__setitem__, create._SHARDS_AT_ONCE

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return real(*arguments)

    zarr.Array.__setitem__, create._SHARDS_AT_ONCE = killed, 1
    try:
        with pytest.raises(KeyboardInterrupt):
            ss.append_shards(shards[2:], store.path)
    finally:
        zarr.Array.__setitem__, create._SHARDS_AT_ONCE = real, many
    cut = ss.open_store(store.path)
    assert (cut.num_shards, len(cut), cut.fingerprint) == (2, 6, before[1]["fingerprint"])
    assert cut.ids().tolist() == store.ids().tolist()
    assert cut.score("mine").tolist() == list(range(6))
    assert cut.embedding("e").shape == (6, 2)
    assert cut.labels().tolist() == store.labels().tolist()
    check(cut)
    rest = shards[3:] if other else shards[2:]
    grown = ss.append_shards(rest, store.path)
    whole = ss.index([*shards[:2], *rest], folder / "whole.zarr")
    array = {n: a for n, a in contents(grown)[0].items() if n[:5] in ("shard", "sampl")}
    assert array == contents(whole)[0]
    assert grown.fingerprint == whole.fingerprint


def test_finished_shards_are_not_walked_again(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "d", SIZES)
    ss.index(shards[:1], tmp_path / "s.zarr")
    walked, walk = [], walking.index_shard
    monkeypatch.setattr(walking, "index_shard", lambda url, **k: walked.append(url) or walk(url))

    def killed(done, total):
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.append_shards(shards, tmp_path / "s.zarr", progress=killed)
    ss.append_shards(shards, tmp_path / "s.zarr")
    assert walked == list(map(str, shards[1:]))


def test_what_cannot_be_appended_is_refused_before_anything_changes(tmp_path):
    shards = write_shards(tmp_path / "d", [5, 65])
    store = ss.index(shards[:1], tmp_path / "s.zarr")
    before = contents(store)
    with pytest.raises(ss.ShardsieveError, match=r"at most 64 samples.*got 65; split the shard"):
        ss.append_shards(shards, store.path)
    with pytest.raises(ss.ShardsieveError, match="no shards match"):
        ss.append_shards("none-*.tar", store.path)
    with pytest.raises(ss.StoreFormatError, match="no store at"):
        ss.append_shards(shards, tmp_path / "none.zarr")
    assert contents(ss.open_store(store.path)) == before
    assert json.loads((store.path / "zarr.json").read_text())["attributes"] == before[1]


def test_names_that_are_not_utf8_are_keys_too(tmp_path):
    name = b"gr\xfcn".decode("utf-8", "surrogateescape")
    shards = [write_tar(tmp_path / f"{i}.tar", [(f"{name}{i}.cls", b"1")]) for i in range(2)]
    ss.index(shards[:1], tmp_path / "s.zarr")
    store = ss.append_shards(shards[1:], tmp_path / "s.zarr")
    assert [store.keys(shard) for shard in range(2)] == [[f"{name}0"], [f"{name}1"]]
    check(store)


def test_a_number_that_is_no_class_is_no_label(tmp_path):
    labels = [("a.cls", b"2147483647"), ("b.cls", b"2147483648"), ("c.cls", b"-1")]
    store = ss.index(write_tar(tmp_path / "n.tar", labels), tmp_path / "s.zarr")
    assert store.labels().tolist() == [2**31 - 1, -1, -1]


def test_what_an_older_handle_stores_fits_the_grown_store(tmp_path):
    shards = write_shards(tmp_path / "d", [5, 3])
    old = ss.index(shards[:1], tmp_path / "s.zarr")
    new = ss.append_shards(shards[1:], tmp_path / "s.zarr")
    old.put_score("mine", range(5))
    old.embedding_array("e", 2)[0, :5] = 1
    np.testing.assert_equal(new.score("mine"), [*range(5), *[np.nan] * 3])
    assert np.isfinite(new.embedding("e")).all(axis=1).tolist() == [True] * 5 + [False] * 3
    assert old.score("mine").tolist() == list(range(5))
    assert old.embedding("e").shape == (5, 2)
