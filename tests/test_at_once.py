"""Several processes that make or grow one store at once."""

import errno
import fcntl
import os
import resource
import shutil
import threading
from multiprocessing import get_context

import pytest
from tars import write_shards

import shardsieve as ss
from shardsieve.store import append, arrays, create, scores, walking
from shardsieve.store.alone import alone_in, in_turn

SIZES = [5, 9, 4, 7, 5, 3, 6, 8, 2, 5]


def make(call, arguments, start, walked, told):
    walk = walking.index_shard

    def counted(url, **how):
        walked.put(url)
        return walk(url, **how)

    walking.index_shard = counted
    start.wait(200)
    try:
        told.put(len(call(*arguments)))
    except BaseException as error:
        told.put(repr(error))
        raise


def at_once(call, each):
    """Call in forked processes at the same moment; return what they return and the shards read."""
    context = get_context("fork")
    start, walked, told = context.Barrier(len(each)), context.Queue(), context.Queue()
    workers = [context.Process(target=make, args=(call, one, start, walked, told)) for one in each]
    for worker in workers:
        worker.start()
    answers = [told.get(timeout=200) for _ in workers]
    read = [walked.get(timeout=200) for _ in range(len(SIZES))]
    for worker in workers:
        worker.join()
    return sorted(answers), sorted(read), walked.empty()


@pytest.mark.parametrize("again", range(3))
def test_ranks_that_index_at_once_make_one_store_and_read_every_shard_once(tmp_path, again):
    paths = write_shards(tmp_path / "d", SIZES)
    answers, read, no_more = at_once(ss.index, [(paths, tmp_path / "s.zarr")] * 3)
    assert answers == [sum(SIZES)] * 3
    assert read == list(map(str, paths))
    assert no_more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.zarr"]


def test_processes_that_append_at_once_take_turns(tmp_path):
    paths = write_shards(tmp_path / "d", [9, *SIZES])
    ss.index(paths[0], tmp_path / "s.zarr")
    each = [(paths[1:5], tmp_path / "s.zarr"), (paths[5:], tmp_path / "s.zarr")]
    answers, read, no_more = at_once(ss.append_shards, each)
    assert answers[-1] == 9 + sum(SIZES)
    assert read == list(map(str, paths[1:]))
    assert no_more
    store = ss.open_store(tmp_path / "s.zarr")
    create.check(store)
    assert len(store) == 9 + sum(SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.zarr"]


def test_ranks_that_append_the_same_at_once_read_every_shard_once(tmp_path):
    paths = write_shards(tmp_path / "d", [9, *SIZES])
    ss.index(paths[0], tmp_path / "s.zarr")
    answers, read, no_more = at_once(ss.append_shards, [(paths, tmp_path / "s.zarr")] * 3)
    assert answers == [9 + sum(SIZES)] * 3
    assert read == list(map(str, paths[1:]))
    assert no_more
    create.check(ss.open_store(tmp_path / "s.zarr"))


def test_a_store_does_not_grow_while_another_process_changes_its_arrays(tmp_path, monkeypatch):
    """Both write the file that says how many shards there are: the new ones would be forgotten."""
    paths = write_shards(tmp_path / "d", SIZES[:3])
    store = ss.index(paths[:2], tmp_path / "s.zarr")
    told = {name: threading.Event() for name in ("_check_size", "_grow")}

    def telling(name, real):
        return lambda *how: (told[name].set(), real(*how))

    for name in told:
        monkeypatch.setattr(append, name, telling(name, getattr(append, name)))
    other = threading.Thread(target=ss.append_shards, args=(paths, store.path))
    with in_turn(store.path):
        other.start()
        assert told["_check_size"].wait(60)
        assert not told["_grow"].wait(0.2)
    other.join()
    assert ss.open_store(store.path).samples.tolist() == SIZES[:3]


@pytest.mark.parametrize(
    ("module", "name", "change"),
    [
        (arrays, "unlist", lambda store: store.put_pseudo_labels("mine", [1] * len(store))),
        (arrays, "unlist", lambda store: store.embedding_array("mine", 2)),
        (arrays, "unlist", lambda store: store.forget_score("old")),
        (scores, "unlist", lambda store: store.begin_score("mine")),
        (scores, "stamp", lambda store: store.finish_score("begun")),
    ],
    ids=["pseudo-labels", "embedding", "forgotten", "begun", "finished"],
)
def test_an_array_that_is_made_while_shards_are_appended_fits_them(
    tmp_path, monkeypatch, module, name, change
):
    paths = write_shards(tmp_path / "d", SIZES[:3])
    store = ss.index(paths[:2], tmp_path / "s.zarr")
    store.put_score("old", range(len(store)))
    store.begin_score("begun")
    about, grown, real = threading.Event(), threading.Event(), append._grow
    check = append._check_size
    monkeypatch.setattr(append, "_check_size", lambda *how: (about.set(), check(*how)))
    monkeypatch.setattr(append, "_grow", lambda *how: (real(*how), grown.set()))
    other = threading.Thread(target=ss.append_shards, args=(paths, store.path))
    done = getattr(module, name)

    def meanwhile(*how):
        if not other.ident:
            other.start()
            assert about.wait(60)
            assert not grown.wait(0.2)
        return done(*how)

    monkeypatch.setattr(module, name, meanwhile)
    change(store)
    other.join()
    grew = ss.open_store(store.path)
    assert grew.samples.tolist() == SIZES[:3]
    for kind in ("score", "embedding", "pseudo_label"):
        for one in grew._names(kind):
            assert grew._array(f"{kind}/{one}").shape[0] == 3


def test_another_store_that_came_first_is_refused(tmp_path):
    paths = write_shards(tmp_path / "d", SIZES)
    each = [(paths, tmp_path / "s.zarr"), (paths[:1], tmp_path / "s.zarr")]
    context = get_context("fork")
    start, walked, told = context.Barrier(2), context.Queue(), context.Queue()
    workers = [
        context.Process(target=make, args=(ss.index, one, start, walked, told)) for one in each
    ]
    for worker in workers:
        worker.start()
    answers = [told.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join()
    (held,) = [answer for answer in answers if isinstance(answer, int)]
    (refused,) = [answer for answer in answers if isinstance(answer, str)]
    assert held == len(ss.open_store(tmp_path / "s.zarr"))
    assert "was made from other shards" in refused


@pytest.mark.parametrize("turn", [alone_in, in_turn])
def test_a_folder_that_cannot_be_opened_is_one_line(tmp_path, turn):
    free, limits = os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(ss.ShardsieveError, match="Too many open files"), turn(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_who_leaves_does_not_take_away_the_folder_of_who_came_after_it_was_removed(tmp_path):
    folder = tmp_path / "turn"
    with alone_in(folder):
        # The work is done and its folder removed; another process begins before this one leaves.
        shutil.rmtree(folder)
        later = alone_in(folder)
        later.__enter__()
    assert folder.is_dir()
    later.__exit__(None, None, None)
    assert not folder.exists()


def test_where_nothing_can_be_locked_a_store_is_made_and_grows(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    paths = write_shards(tmp_path / "d", [5, 9, 4])
    store = ss.index(paths[:2], tmp_path / "s.zarr")
    store.put_score("up", range(14))
    left = create.beside(store.path)
    left.mkdir()  # perhaps another process is in it
    assert len(ss.index(paths[:2], store.path)) == 14
    assert left.is_dir()
    grown = append.append_shards(paths, store.path)
    assert grown.samples.tolist() == [5, 9, 4]
    assert grown.score("up")[:14].tolist() == list(range(14))
