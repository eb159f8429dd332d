"""Ids that several processes put into one set at once."""

import gc
import pickle
import tempfile
from multiprocessing import get_context

import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve.loaders.shared import SharedIds


def put(shared, start, ids, told):
    start.wait()
    told.put([shared.add(one) for one in ids])


def put_at_once(context, shared, lists):
    start, told = context.Barrier(len(lists)), context.Queue()
    workers = [context.Process(target=put, args=(shared, start, ids, told)) for ids in lists]
    for worker in workers:
        worker.start()
    answers = [told.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join()
    return answers


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_id_is_lost_where_workers_meet(method):
    shared = SharedIds(400)
    lists = [list(range(400 * worker, 400 * worker + 100)) for worker in range(4)]
    answers = put_at_once(get_context(method), shared, lists)
    assert shared.ids() == [one for ids in lists for one in ids]
    assert all(map(all, answers))


def test_as_many_ids_find_room_as_there_is_whoever_comes_first():
    shared = SharedIds(150)
    lists = [list(range(50 * worker, 50 * worker + 100)) for worker in range(4)]
    answers = put_at_once(get_context("fork"), shared, lists)
    assert len(shared.ids()) == 150
    told = {one for ids in lists for one in ids}
    assert {one for one in told if shared.add(one)} == set(shared.ids())
    assert not all(map(all, answers))


def test_one_id_takes_one_place():
    shared = SharedIds(1)
    assert [shared.add(7), shared.add(7), shared.add(8)] == [True, True, False]
    assert shared.ids() == [7]
    assert not SharedIds(0).add(7)


def test_its_file_goes_with_it_and_a_copy_reads_the_same():
    shared = SharedIds(3)
    shared.add(2)
    file, copy = shared._file, pickle.loads(pickle.dumps(shared))
    assert copy.ids() == [2]
    del shared
    gc.collect()
    assert not file.exists()
    assert copy.ids() == []


def read_one(path, told):
    told.put(ss.ShardDataset(ss.open_store(path))[0]["__id__"])


@pytest.fixture
def threads():
    """Let torch use several threads, as it does by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.ones(1 << 20).add_(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_process_forked_after_torch_used_its_threads_makes_a_dataset(tmp_path):
    ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    fork = get_context("fork")
    told = fork.Queue()
    child = fork.Process(target=read_one, args=(tmp_path / "s.zarr", told))
    child.start()
    child.join(200)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert told.get(timeout=200) == 0


def test_without_a_place_for_temporary_files_the_cure_is_named(tmp_path, monkeypatch):
    """As in a container whose root is only read."""
    store = ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    with pytest.raises(ss.ShardsieveError, match=r"temporary files: No usable .*; set TMPDIR to"):
        ss.ShardDataset(store)
