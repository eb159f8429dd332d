"""What a process that is killed while it replaces or deletes leaves in an object store."""

from itertools import count

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve.train import Recorder

BEFORE, AFTER = np.arange(1, 8), np.arange(7, 0, -1)


def recorded():
    recorder = Recorder([0, 1], num_classes=2, signals=("p_true",))
    for epoch in range(2):
        recorder.record(torch.arange(2), torch.eye(2) * epoch, torch.tensor([0, 1]))
        recorder.end_epoch()
    return recorder


def a_score(store):
    return store.score("one") if store.scores else None


def pseudo_labels(store):
    return store.pseudo_labels("one") if store.pseudo_label_sets else None


def dynamics(store):
    if not store.dynamics:
        return None
    found = Recorder.load(store, "one")
    return np.stack([found.ids, *found.signal("p_true")])


def put_score(store, values):
    store.put_score("one", values)


def put_pseudo_labels(store, values):
    store.put_pseudo_labels("one", values)


def put_dynamics(store, values):
    recorded().save(store, "one")


def forget_score(store, values):
    store.forget_score("one")


class Killed:
    """Lets the first so many writes through, as of a process that is killed then."""

    def __init__(self, writes):
        self.left = writes

    def __call__(self, environ):
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return None
        self.left -= 1
        return "403 Forbidden" if self.left < 0 else None


@pytest.mark.parametrize(
    ("put", "change", "held", "every"),
    [
        (put_score, put_score, a_score, 3),
        (put_score, forget_score, a_score, 2),
        (put_pseudo_labels, put_pseudo_labels, pseudo_labels, 6),
        (put_dynamics, put_dynamics, dynamics, 10),
    ],
)
def test_what_is_killed_half_way_is_whole_or_not_listed(s3, tmp_path, put, change, held, every):
    target = f"s3://{s3.bucket}/s.zarr"
    ss.index(s3.upload(write_shards(tmp_path / "d", [7])), target)
    whole = []
    for values in (AFTER, BEFORE):
        put(ss.open_store(target), values)
        whole.append(held(ss.open_store(target)))
    for writes in count(step=every):
        s3.refuse = Killed(writes)
        try:
            change(ss.open_store(target), AFTER)
            break
        except ss.ShardsieveError:
            s3.refuse.left = 0  # nothing is written while it is looked at
        for mode in ("r", "r+"):
            found = held(ss.open_store(target, mode=mode))
            assert found is None or any(np.array_equal(found, one) for one in whole), writes
        s3.refuse = lambda environ: None
        put(ss.open_store(target), BEFORE)
    assert writes > 3
