"""Shards that are appended while another process writes a score."""

import fcntl
import os
from contextlib import nullcontext

import pytest
from obstore import exceptions
from tars import write_shards

import shardsieve as ss
from shardsieve.store import contents

CONDITIONS = ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH")


@pytest.fixture
def urls(s3, tmp_path):
    return s3.upload(write_shards(tmp_path / "d", [3, 4]))


def test_shards_appended_while_a_score_is_listed_stay(s3, urls):
    target, appended = f"s3://{s3.bucket}/s.zarr", []

    def append(environ):
        root = environ["PATH_INFO"] == f"/{s3.bucket}/s.zarr/zarr.json"
        written = root and environ["REQUEST_METHOD"] == "PUT"
        if written and "HTTP_IF_NONE_MATCH" not in environ and not appended:
            appended.append(urls[1])
            ss.append_shards(urls[1], target)

    store = ss.index(urls[0], target)
    s3.refuse = append
    store.put_score("up", range(3))
    assert appended
    for mode in ("r", "r+"):
        grown = ss.open_store(target, mode=mode)
        assert (grown.scores, grown.num_shards) == (["up"], 2)
        assert grown.score("up")[:3].tolist() == [0, 1, 2]


def test_a_host_that_knows_no_conditions_is_written_to(s3, urls):
    store = ss.index(urls, f"s3://{s3.bucket}/s.zarr")
    refused = []

    def refuse(environ):
        if environ.keys() & set(CONDITIONS):
            refused.append(environ["PATH_INFO"])
            return "501 Not Implemented"
        return None

    s3.refuse = refuse
    store.put_score("up", range(7))
    assert refused
    asked = len(refused)
    store.put_score("down", range(7))
    assert len(refused) == asked
    assert ss.open_store(store.path, mode="r").scores == ["down", "up"]


def test_a_host_that_passes_over_conditions_loses_no_store(s3, urls):
    passed_over = []

    def forget(environ):
        passed_over.extend(filter(None, map(environ.pop, CONDITIONS, [None, None])))

    s3.refuse = forget
    store = ss.index(urls, f"s3://{s3.bucket}/s.zarr")
    store.put_score("up", range(7))
    assert "*" in passed_over
    there = ss.open_store(store.path, mode="r")
    assert there.scores == ["up"]
    assert there.score("up").tolist() == list(range(7))


def test_who_appends_waits_until_a_score_is_listed(tmp_path, monkeypatch):
    (path,) = write_shards(tmp_path / "d", [3])
    store, real, locked = ss.index(path, tmp_path / "s.zarr"), contents._consolidate, []

    def consolidate(group):
        handle = os.open(tmp_path / "s.zarr", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        locked.append(True)
        real(group)

    monkeypatch.setattr(contents, "_consolidate", consolidate)
    store.begin_score("up")
    store.finish_score("up")
    store.put_score("down", range(3))
    assert len(locked) >= 2
    monkeypatch.undo()
    store.put_score("again", range(3))


@pytest.mark.parametrize("changed", [False, True])
def test_only_what_another_process_changed_is_written_again(monkeypatch, changed):
    class Unchanged:
        root_unchanged = nullcontext

    def consolidate(group):
        tried.append(group)
        raise ss.ShardsieveError("no") from (exceptions.PreconditionError("") if changed else None)

    tried = []
    monkeypatch.setattr(contents, "_consolidate", consolidate)
    with pytest.raises(ss.ShardsieveError, match="no"):
        contents._consolidate_objects(None, Unchanged())
    assert len(tried) == (contents._ATTEMPTS if changed else 1)
