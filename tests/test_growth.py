"""What grows with the number of samples alone, also where classes and shards are many."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards

import shardsieve as ss
from shardsieve.commands import scoring
from shardsieve.extrapolate import out_of_fold
from shardsieve.keepset import KeepSet
from shardsieve.loaders.passing import _by_step
from shardsieve.plan import Steps
from shardsieve.policy import random
from shardsieve.store import create
from shardsieve.store import store as store_module


class Counted(np.ndarray):
    """Counts the numbers that functions of numpy look at."""

    looked_at = 0

    def __array_ufunc__(self, function, method, *inputs, **how):
        plain = [np.asarray(one) if isinstance(one, Counted) else one for one in inputs]
        Counted.looked_at += max(np.size(one) for one in plain)
        return getattr(function, method)(*plain, **how)

    def __array_function__(self, function, types, given, how):
        if function is np.concatenate:
            Counted.looked_at += sum(map(len, given[0]))
        return super().__array_function__(function, types, given, how)


@contextmanager
def peak_below(nbytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < nbytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def shards_of_hundred(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return ss.index(write_shards(folder / "d", [40, 23, 37]), folder / "s.zarr")


def alike(folder, count, rows):
    """Shards of one content, which takes room on the disk once."""
    (shard,) = write_shards(folder, [rows])
    for number in range(1, count):
        (folder / f"s-{number:03d}.tar").hardlink_to(shard)
    return str(folder / "*.tar")


class Nothing:
    """An extrapolator that takes no memory."""

    def fit(self, embeddings, scores):
        assert embeddings.dtype == np.float32
        return self

    def predict(self, embeddings):
        assert embeddings.dtype == np.float32
        return embeddings[:, 0]


def test_groups_are_told_apart_by_one_look_at_every_sample(monkeypatch):
    groups = np.arange(1000) % 200
    points = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float16)
    want = scoring._within_groups(points, groups, 2, "exact")
    monkeypatch.setattr(Counted, "looked_at", 0)
    got = scoring._within_groups(points, groups.view(Counted), 2, "exact")
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (got[0] % 200 == (np.arange(1000) % 200)[:, None]).all()
    assert Counted.looked_at < 4 * 1000


def test_kept_samples_of_many_shards_are_found_by_one_look_at_each(monkeypatch):
    rng = np.random.default_rng(0)
    kept = rng.random((300, 100)) < 0.3
    kept[:, 99] = True
    keep = KeepSet(np.packbits(kept, axis=1), 128, "none")
    shard = rng.integers(0, 300, 5000)
    ordinal = (rng.random(5000) * keep.counts[shard]).astype(np.int64)
    monkeypatch.setattr(Counted, "looked_at", 0)
    got = keep.ids_at(shard.view(Counted), ordinal)
    want = [s * 128 + np.flatnonzero(kept[s])[o] for s, o in zip(shard, ordinal, strict=True)]
    np.testing.assert_array_equal(got, want)
    assert Counted.looked_at < 4 * 5000


def test_a_step_of_many_parts_joins_them_once(monkeypatch):
    parts = [np.arange(i, i + 10).view(Counted) for i in range(0, 4000, 10)]
    monkeypatch.setattr(Counted, "looked_at", 0)
    steps = dict(_by_step(Steps(4000, 2000, 1), iter(parts)))
    np.testing.assert_array_equal(np.concatenate([steps[0], steps[1]]), np.arange(4000))
    assert Counted.looked_at < 3 * 4000


def test_seeds_are_tried_without_a_copy_of_all_of_them():
    points = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float16)
    with peak_below(3 * points.nbytes):
        found = out_of_fold(Nothing, points, points[:, 0])
    np.testing.assert_array_equal(found, points[:, 0].astype(np.float32))


def test_an_index_holds_the_samples_of_a_few_shards(tmp_path, monkeypatch):
    """Shards beyond those that are written together add nothing of their samples to the peak."""
    monkeypatch.setattr(create, "_SHARDS_AT_ONCE", 4)

    def peak(count):
        shards = alike(tmp_path / f"d{count}", count, 1000)
        tracemalloc.start()
        try:
            assert len(ss.index(shards, tmp_path / f"{count}.zarr")) == 1000 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded once
    assert peak(44) - peak(4) < 40 * 1000 * 16


@given(st.floats(0.05, 1), st.integers(0, 40), st.integers(0, 9))
def test_a_late_epoch_is_chosen_without_the_order_of_every_pass_before(
    shards_of_hundred, fraction, epoch, seed
):
    started, again = (ss.RandomDynamic(fraction, seed=seed) for _ in range(2))
    started.bind(shards_of_hundred)
    again.bind(shards_of_hundred)
    for number in range(epoch + 1):
        want = started.choose(number).rows
    orders, permutation = [], random.permutation
    random.permutation = lambda *key: orders.append(key) or permutation(*key)
    try:
        np.testing.assert_array_equal(again.choose(epoch).rows, want)
    finally:
        random.permutation = permutation
    assert len(orders) <= 3


def test_ids_and_ranges_take_little_more_than_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_RANGES_AT_ONCE", 4, raising=False)
    store = ss.index(alike(tmp_path / "d", 150, 500), tmp_path / "s.zarr")
    with peak_below(1.6 * 8 * 150 * 500):
        ids = store.ids()
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, (np.arange(150)[:, None] * 512 + np.arange(500)).ravel())
    np.testing.assert_array_equal(store.rows(ids), np.arange(150 * 500))
    offset, length = (store.group[f"sample/{name}"][:] for name in ("offset", "length"))
    with peak_below(1.8 * 16 * 150 * 512):
        ranges = store.ranges
    np.testing.assert_array_equal(ranges, np.stack([offset, length], axis=-1))
