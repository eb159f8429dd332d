"""The store: what goes in comes out, interrupted or not, and mismatches are refused."""

import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import forks
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.making import check_store
from shardsieve.io.source import same_fingerprint
from shardsieve.shards.names import expand_urls
from shardsieve.store import create, walking
from shardsieve.store.create import check


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", [5, 1, 7])


def contents(store):
    found = {}
    for name, array in store.group.members(max_depth=None):
        if isinstance(array, zarr.Array):
            found[name] = repr(np.asarray(array[:]).tolist())
    return found, dict(store.group.attrs)


def test_ids_are_shard_times_rows_plus_position(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    assert store.rows_per_shard == 64
    assert store.ids().tolist() == [0, 1, 2, 3, 4, 64, *range(128, 135)]
    assert store.labels().tolist() == [0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 0, 1, 2]
    assert store.keys(1) == ["01-0000"]
    assert store.rows([128, 0]).tolist() == [6, 0]
    with pytest.raises(ValueError, match="got 65"):
        store.rows([0, 65])


def test_a_store_of_a_relative_path_stays_open_when_the_program_goes_elsewhere(
    shards, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for store in (ss.index("shards/*.tar", "s.zarr"), ss.open_store("s.zarr")):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.put_score("mine", np.arange(13.0))
        assert pickle.loads(pickle.dumps(store)).score("mine").tolist() == [*range(13)]
        assert ss.ShardDataset(store)[0]["__key__"] == "00-0000"
        store.forget_score("mine")
        monkeypatch.chdir(tmp_path)


def test_a_score_comes_back_as_it_was_put(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    values = np.linspace(-1, 1, 13, dtype=np.float32)
    values[3] = np.nan
    store.put_score("mine", values)
    np.testing.assert_array_equal(ss.open_store(store.path).score("mine"), values)
    with pytest.raises(ValueError, match=r"values must have shape \(13,\), got \(3,\)"):
        store.put_score("other", [1, 2, 3])
    for endless in (np.inf, -np.inf, 1e300):
        with pytest.raises(ValueError, match="got an infinity for sample id 2 "):
            store.put_score("mine", [0.0, 1.0, endless, *range(10)])
    np.testing.assert_array_equal(store.score("mine"), values)
    with pytest.raises(ss.StoreMismatchError, match="holds the definition 'user'"):
        store.put_score("mine", values, provenance={"definition": "el2n"})
    with pytest.raises(ss.MissingScoreError, match=r"\(mine\), got 'none'"):
        store.score("none")


def test_a_score_says_of_what_version_and_date_it_is(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    store.put_score("mine", np.zeros(13), provenance={"definition": "mine(1)", "version": "of old"})
    made = store.provenance("mine")
    assert made["version"] == version("shardsieve")
    assert datetime.fromisoformat(made["date"]) <= datetime.now(UTC)


def test_every_score_says_that_higher_is_kept_first(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    store.put_score("mine", np.zeros(13))
    turned = {"definition": "margin", "orientation": "higher is kept first; turned"}
    store.put_score("margin", np.zeros(13), provenance=turned)
    found = [store.provenance(name)["orientation"] for name in ("mine", "margin")]
    assert found == ["higher is kept first", turned["orientation"]]


def test_a_score_made_as_another_one_is_none_before_it_is_written(shards, tmp_path):
    """The date of the other one, which its provenance holds, said that it was."""
    store = ss.index(shards, tmp_path / "s.zarr")
    store.put_score("one", np.arange(13.0))
    store.begin_score("two", store.provenance("one"))
    assert ss.open_store(store.path).scores == ["one"]
    with pytest.raises(ss.MissingScoreError, match=r"\(one\), got 'two'"):
        store.score("two")


def test_one_name_may_be_stored_by_several_at_once(shards, tmp_path):
    path = ss.index(shards, tmp_path / "s.zarr").path

    def put(number):
        ss.open_store(path).put_score("mine", np.full(13, number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(10)))
    assert len(set(ss.open_store(path).score("mine").tolist())) == 1


def test_one_keep_set_may_be_stored_by_several_at_once(shards, tmp_path):
    """One's stays and the others hear of it: one of two halves would keep what nobody chose."""
    path = ss.index(shards, tmp_path / "s.zarr").path

    def save(number):
        store = ss.open_store(path)
        keep = ss.KeepSet.from_ids(store, store.ids()[number::10])
        with suppress(ss.StoreMismatchError):
            keep.save(store, "mine")
            return keep.ids().tolist()

    with ThreadPoolExecutor(4) as pool:
        (saved,) = filter(None, pool.map(save, range(10)))
    store = ss.open_store(path)
    assert ss.KeepSet.load(store, "mine").ids().tolist() == saved


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_killed_index_resumes_to_the_same_store(shards, tmp_path, stop):
    whole = ss.index(shards, tmp_path / "whole.zarr")

    def killed(done, total):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.index(shards, tmp_path / "s.zarr", progress=killed)
    assert not (tmp_path / "s.zarr").exists()
    resumed = ss.index(shards, tmp_path / "s.zarr")
    assert contents(resumed) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "shards", "whole.zarr"]


def test_an_index_killed_while_the_store_is_written_leaves_nothing(shards, tmp_path):
    command = ["-m", "shardsieve", "index", *shards, "--store", tmp_path / "s.zarr"]
    assert forks.killed_at(tmp_path / ".s.zarr.*/s*", *command) == -signal.SIGKILL
    ss.index(shards, tmp_path / "s.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "shards"]


@pytest.mark.parametrize("append", [False, True], ids=["index", "append"])
def test_what_a_run_left_that_was_killed_as_it_cleaned_up_goes_with_the_next(
    shards, tmp_path, monkeypatch, append
):
    if append:
        ss.index(shards[0], tmp_path / "s.zarr")
    call = ss.append_shards if append else ss.index
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_before_the_last)
        with pytest.raises(KeyboardInterrupt):
            call(shards, tmp_path / "s.zarr")
    assert len(list(tmp_path.glob(".s.zarr.*/*.npz"))) == len(shards) - append
    call(shards, tmp_path / "s.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr", "shards"]


def killed_before_the_last(folder, *arguments, remove=shutil.rmtree, **how):
    if str(folder).endswith("ing"):
        raise KeyboardInterrupt
    remove(folder, *arguments, **how)


def test_finished_shards_are_not_walked_again(shards, tmp_path, monkeypatch):
    walked = []
    walk = walking.index_shard
    monkeypatch.setattr(walking, "index_shard", lambda url, **k: walked.append(url) or walk(url))

    def killed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.index(shards, tmp_path / "s.zarr", progress=killed)
    ss.index(shards, tmp_path / "s.zarr")
    assert walked == list(map(str, shards))


@pytest.mark.parametrize("change", ["another first", "written anew", "other labels"])
def test_a_finished_shard_that_is_not_the_one_asked_for_is_walked(tmp_path, change):
    members = {n: [(f"{n}.jpg", b"1"), (f"{n}.cls", b"2"), (f"{n}.y", b"3")] for n in "ab"}
    shards = [write_tar(tmp_path / f"{n}.tar", held) for n, held in members.items()]
    for shard in shards:
        os.utime(shard, (1, 1))  # of one size and time

    def killed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.index(shards, tmp_path / "s.zarr", progress=killed)
    how = {"label_member": "y"} if change == "other labels" else {}
    if change == "another first":
        shards.reverse()
    elif change == "written anew":
        write_tar(shards[0], [("c.jpg", b"1")])
    store = ss.index(shards, tmp_path / "s.zarr", **how)
    assert contents(store) == contents(ss.index(shards, tmp_path / "whole.zarr", **how))


def test_a_shard_that_is_written_anew_while_it_is_walked_is_not_taken_for_what_was_walked(
    shards, tmp_path, monkeypatch
):
    walk = walking.sample_table

    def overtaken(read, total, url, **how):
        table = walk(read, total, url, **how)
        write_tar(Path(url), [("c.jpg", b"1")])
        return table

    monkeypatch.setattr(walking, "sample_table", overtaken)
    with pytest.raises(ss.StoreMismatchError, match=f"{shards[0]} "):
        ss.index(shards[0], tmp_path / "s.zarr")


@pytest.mark.parametrize("left", [0, 900])
def test_what_a_power_cut_left_of_a_finished_shard_is_made_again(shards, tmp_path, left):
    def killed(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.index(shards, tmp_path / "s.zarr", progress=killed)
    (finished,) = tmp_path.glob(".s.zarr.indexing/*.npz")
    os.truncate(finished, left)
    store = ss.index(shards, tmp_path / "s.zarr")
    assert contents(store) == contents(ss.index(shards, tmp_path / "whole.zarr"))


def test_a_bad_shard_leaves_nothing_behind(shards, tmp_path):
    shards[1].write_bytes(b"")
    with pytest.raises(ss.CorruptShardError, match="is empty"):
        ss.index(shards, tmp_path / "s.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_shard_that_cannot_be_opened_is_one_line(shards):
    shards[1].unlink()
    os.mknod(shards[1], stat.S_IFSOCK)
    with pytest.raises(ss.CorruptShardError, match=rf"cannot read shard {shards[1]}: No such dev"):
        walking.index_shard(str(shards[1]))


def test_a_full_disk_is_one_line_and_leaves_no_store(shards, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(create, "_write", full)
    with pytest.raises(ss.ShardsieveError, match="No space left on device; free some space"):
        ss.index(shards, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()
    monkeypatch.undo()
    assert len(ss.index(shards, tmp_path / "s.zarr")) == 13


def test_a_path_that_cannot_be_a_folder_is_not_taken_for_a_full_disk(shards):
    with pytest.raises(ss.ShardsieveError, match="; choose a path that can be written and start"):
        ss.index(shards, shards[0] / "s.zarr")


def test_other_shards_and_changed_shards_are_refused(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    with pytest.raises(ss.StoreMismatchError, match="made from other shards"):
        ss.index(shards[:2], store.path)
    more = write_shards(tmp_path / "more", [2])
    with pytest.raises(ss.StoreMismatchError, match="add the new ones with --append"):
        ss.index([*shards, *more], store.path)
    with pytest.raises(ss.StoreMismatchError, match=r"another order, .*s-000.tar was the first"):
        ss.index(shards[::-1], store.path)
    assert len(ss.index(shards, store.path)) == 13
    write_tar(shards[2], [("z.jpg", b"1")])
    with pytest.raises(ss.StoreMismatchError, match=r"s-002\.tar is not the one"):
        ss.open_store(store.path)
    with pytest.raises(ss.StoreMismatchError, match="holds other samples"):
        check(store)


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_folder_without_a_name_is_no_store(shards, place):
    with pytest.raises(ss.StoreFormatError, match="is there and holds no store; choose another"):
        ss.index(shards, place)


def test_check_knows_copied_shards_again_by_their_samples_and_labels(tmp_path):
    tars = write_shards(tmp_path / "d", [3, 2])
    path = ss.index(tars, tmp_path / "s.zarr").path
    os.utime(tars[1], ns=(1, 10**18 + 1))
    with pytest.raises(ss.StoreMismatchError, match="run `shardsieve check`"):
        ss.open_store(path)
    found = check_store(path)
    assert (found["samples"], found["same"], found["renewed"]) == (5, True, 1)
    assert len(ss.open_store(path)) == 5
    assert check_store(path)["renewed"] == 0
    relabelled = tars[0].read_bytes().replace(b"0" + bytes(511), b"7" + bytes(511), 1)
    assert relabelled != tars[0].read_bytes()
    tars[0].write_bytes(relabelled)
    with pytest.raises(ss.StoreMismatchError, match=r"holds other labels than .*else score again"):
        check_store(path)
    with pytest.raises(ss.StoreMismatchError, match=r"is not the one"):
        ss.open_store(path)


def test_a_newer_format_and_a_missing_store_are_refused(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    store.group.attrs["format_version"] = 99
    with pytest.raises(ss.StoreFormatError, match="format version 99"):
        ss.open_store(store.path)
    with pytest.raises(ss.StoreFormatError, match="no store at"):
        ss.open_store(tmp_path / "none.zarr")


def test_a_file_of_the_very_name_is_no_pattern(tmp_path):
    shards = write_shards(tmp_path / "a::[1]{b,c}?", [1, 1])
    assert expand_urls(shards) == [str(path) for path in shards]
    (tmp_path / "a::[1]{b,c}?").rename(tmp_path / "a [1]")
    pattern = tmp_path / "a [1]" / "s-{000..001}.tar"
    assert [Path(url).name for url in expand_urls(pattern)] == ["s-000.tar", "s-001.tar"]


def test_patterns_name_shards_in_order(shards, tmp_path):
    folder = shards[0].parent
    want = list(map(str, shards))
    assert expand_urls(f"{folder}/s-{{000..002}}.tar") == want
    assert expand_urls(f"{folder}/s-*.tar") == want
    for scheme in ("file:", "file://"):  # as webdataset takes them
        assert expand_urls(f"{scheme}{folder}/s-*.tar") == want
    assert expand_urls(f"{folder}/s-{{000..001}}.tar::{folder}/s-*2.tar") == want  # so does `::`
    assert len(expand_urls("s3://a/{0..1}.tar::http://[::1]:80/b.tar::http://[1::2]/c.tar")) == 4
    (tmp_path / "list.txt").write_text("# mine\n" + "\n".join(want))
    assert expand_urls(tmp_path / "list.txt") == want
    (tmp_path / "list.txt").write_text("\n".join(f"file://{one}" for one in want))
    assert expand_urls(tmp_path / "list.txt") == want
    for pattern in (f"{folder}/t-*.tar", f"{folder}/t-{{0..1}}.tar"):
        with pytest.raises(ss.ShardsieveError, match="no shards match"):
            expand_urls(pattern)
    with pytest.raises(ss.ShardsieveError, match=r"a local file, got s3://bucket/l\.txt"):
        expand_urls("s3://bucket/l.txt")
    with pytest.raises(ss.ShardsieveError, match=r"pipe:cat x\.tar has no byte ranges"):
        expand_urls("pipe:cat x.tar")
    with pytest.raises(ss.ShardsieveError, match="twice"):
        expand_urls([want[0], want[0]])
    with pytest.raises(ss.ShardsieveError, match=r"s-000\.tar twice as .*\.\./"):
        expand_urls([want[0], f"{folder}/../{folder.name}/s-000.tar"])


@settings(max_examples=20)
@given(order=st.permutations(range(4)), killed=st.integers(0, 4), data=st.data())
def test_the_store_does_not_depend_on_the_order_of_writing(tmp_path_factory, order, killed, data):
    folder = tmp_path_factory.mktemp("order")
    shards = write_shards(folder / "shards", [3, 1, 4, 2])

    def stop(done, total):
        if done == killed:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        ss.index(shards, folder / "a.zarr", progress=stop)
    stores = ss.index(shards, folder / "a.zarr"), ss.index(shards, folder / "b.zarr")
    values = np.random.default_rng(0).normal(size=(*stores[0].ranges.shape[:2], 3))
    for store, places in zip(stores, (order, range(4)), strict=True):
        array = store.embedding_array("mine", 3)
        for shard in places:
            array[shard] = values[shard]
    names = data.draw(st.permutations(["one", "two"]))
    for store, scored in zip(stores, (names, ["one", "two"]), strict=True):
        for name in scored:
            store.put_score(name, np.arange(10) * len(name))
            store.group[f"score/{name}"].attrs["date"] = "today"
    assert contents(stores[0]) == contents(stores[1])
    for name in ("one", "two"):
        assert stores[0].provenance(name) == stores[1].provenance(name)


@given(
    st.integers(10**18, 2 * 10**18),
    st.integers(10**9, 3 * 10**9),
    st.sampled_from([100, 10**3, 10**6, 10**9]),
)
def test_a_time_cut_off_by_a_file_system_is_the_same_and_no_other_is(time, later, step):
    kept = time // 100 * 100 + 7
    cut = kept // step * step
    assert same_fingerprint(f"5-{kept}", f"5-{cut}")
    assert same_fingerprint(f"5-{cut}", f"5-{kept}")
    assert not same_fingerprint(f"6-{kept}", f"5-{cut}")
    assert not same_fingerprint(f"5-{kept}", f"5-{kept + 1}")
    assert not same_fingerprint(f"5-{kept + later}", f"5-{cut}")
    assert not same_fingerprint("5-etag", f"5-{cut}")


def test_shards_seen_over_a_coarser_file_system_are_the_ones_indexed(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    stat = Path(shards[1]).stat()
    os.utime(shards[1], ns=(stat.st_atime_ns, stat.st_mtime_ns // 10**9 * 10**9))
    ss.open_store(store.path)
    os.utime(shards[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 2 * 10**9))
    with pytest.raises(ss.StoreMismatchError, match=r"s-001\.tar is not the one"):
        ss.open_store(store.path)


ENDING = """
import sys, time
from zarr.core import sync
import shardsieve as ss
ss.open_store(sys.argv[1])
sync.loop[0].call_soon_threadsafe(time.sleep, 1)
"""


def test_a_program_ends_in_silence_on_a_machine_at_work(shards, tmp_path):
    ss.index(shards, tmp_path / "s.zarr")
    command = [sys.executable, "-c", ENDING, tmp_path / "s.zarr"]
    done = subprocess.run(command, capture_output=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_keys_of_many_shards_are_read_together(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("shardsieve.store.store._KEYS_AT_ONCE", 2)
    store = ss.index(shards, tmp_path / "s.zarr")
    assert list(store.keys_by_shard()) == [store.keys(shard) for shard in range(3)]
    (store.path / "sample/key/c/2/0").unlink()
    with pytest.raises(ss.StoreFormatError, match=r"held of shard .*s-002\.tar"):
        list(store.keys_by_shard())


def test_a_ctrl_c_while_the_store_is_written_is_no_error_of_the_disk(tmp_path, monkeypatch):
    """Threads of Zarr still write when the folder of an interrupted store is removed."""
    shards, remove, written = write_shards(tmp_path / "d", [4]), os.rmdir, []

    def interrupted(group):
        written.append(group.store.root)
        raise KeyboardInterrupt

    def written_meanwhile(*folder, **how):
        for root in written:
            (root / "score").mkdir(parents=True, exist_ok=True)
        remove(*folder, **how)

    with monkeypatch.context() as patch:
        patch.setattr("shardsieve.store.create.write_contents", interrupted)
        patch.setattr(os, "rmdir", written_meanwhile)
        with pytest.raises(KeyboardInterrupt):
            ss.index(shards, tmp_path / "s.zarr")
    assert written[0].exists()
    assert len(ss.index(shards, tmp_path / "s.zarr")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.zarr"]


def test_a_store_that_zarr_cannot_read_without_asserts_is_not_called_damaged(tmp_path):
    ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    command = [sys.executable, "-O", "-m", "shardsieve", "info", "--store", tmp_path / "s.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    # A Zarr that can says what the store holds.
    assert done.stdout.startswith("store: ") or "start Python without -O" in done.stderr


def test_a_shard_whose_name_is_not_utf8_is_refused_by_name(tmp_path):
    (path,) = write_shards(tmp_path / "d", [3])
    path = path.rename(path.with_name("s-\udce9.tar"))
    with pytest.raises(ss.ShardsieveError, match=r"names in UTF-8, got .*s-\\udce9\.tar'; rename"):
        ss.index(path, tmp_path / "s.zarr")
    assert [one.name for one in tmp_path.iterdir()] == ["d"]
