"""Approximate searches: what they return is measured, and they say how much they miss."""

import importlib
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import shardsieve as ss
from shardsieve.extrapolate import KNN, neighbours
from shardsieve.extrapolate.approximate import CodedSearch, choose_search, kind_for, spread_rows
from shardsieve.extrapolate.on_gpu import SeedsOnGpu
from shardsieve.extrapolate.search import ExactSearch

FAST = ["scan", "ivf", "hnsw"]


def curved(count, draw, d=48, classes=12):
    """Points about the centres of classes, in few directions of many."""
    shape, rng = np.random.default_rng(0), np.random.default_rng(draw + 1)
    centres, turn = shape.normal(size=(classes, d)), shape.normal(size=(8, d)) / 3
    points = centres[rng.integers(0, classes, count)] + rng.normal(size=(count, 8)) @ turn
    return np.maximum(points + rng.normal(size=(count, d)) / 50, -1).astype(np.float32)


def brute(seeds, queries, k):
    apart = seeds[None].astype(np.float64) - queries[:, None]
    distances = np.sqrt((apart**2).sum(axis=2))
    order = np.lexsort((np.broadcast_to(np.arange(len(seeds)), distances.shape), distances))
    return order[:, :k], np.take_along_axis(distances, order[:, :k], axis=1)


@pytest.fixture(scope="module")
def cloud():
    seeds = curved(2500, 0)
    return seeds, np.sin(seeds[:, 0]), curved(600, 1)


@pytest.mark.parametrize("kind", FAST)
def test_what_is_found_is_measured_exactly_and_recall_is_what_it_says(cloud, kind, monkeypatch):
    monkeypatch.setattr("shardsieve.extrapolate.approximate._BLOCK", 1000)
    seeds, _, points = cloud
    search = choose_search(seeds, points, 10, kind=kind, recall=0.9)
    assert isinstance(search, CodedSearch)
    ((rows, ids, distances),) = search(points, 10)
    assert rows.tolist() == list(range(600))
    np.testing.assert_allclose(
        distances, np.linalg.norm(seeds[ids] - points[:, None], axis=2), 1e-5
    )
    assert (np.diff(distances, axis=1) >= 0).all()
    assert all(len(set(row)) == 10 for row in ids.tolist())
    want = brute(seeds, points, 10)[1][:, -1:]
    proof = slice(1, None, 2)
    found = (distances <= want * (1 + 1e-6))[proof].mean()
    assert found == pytest.approx(search.chosen.recall, abs=1e-3)
    assert search.chosen.recall > 0.9
    assert search.chosen.queries == 300


@pytest.mark.parametrize("kind", FAST)
def test_fast_predictions_are_near_the_exact_ones(cloud, kind):
    seeds, scores, points = cloud
    exact = KNN(10, search="exact").fit(seeds, scores).predict(points)
    model = KNN(10, search=kind, min_recall=0.95).fit(seeds, scores)
    fast = model.predict(points)
    assert model.chosen.search == kind
    assert 0.95 < model.chosen.recall <= 1
    assert np.abs(fast - exact).mean() < 0.05 * scores.std()
    assert (fast == exact).mean() > 0.5


def test_small_sets_are_searched_exactly_to_the_bit(cloud):
    seeds, scores, points = cloud
    exact = KNN(10, search="exact").fit(seeds, scores).predict(points)
    model = KNN(10).fit(seeds, scores)
    np.testing.assert_array_equal(model.predict(points), exact)
    assert (model.chosen.search, model.chosen.recall) == ("exact", 1.0)


def test_where_no_setting_reaches_the_recall_the_search_is_exact(cloud, monkeypatch):
    seeds, scores, points = cloud
    monkeypatch.setattr(CodedSearch, "tune", lambda *_: False)
    model = KNN(10, search="scan").fit(seeds, scores)
    exact = KNN(10, search="exact").fit(seeds, scores)
    np.testing.assert_array_equal(model.predict(points), exact.predict(points))
    assert model.chosen.search == "exact"


def test_a_higher_recall_costs_more_candidates(cloud):
    seeds, _, points = cloud
    low, high = (choose_search(seeds, points, 10, kind="scan", recall=r) for r in (0.5, 0.999))
    assert low.width < high.width
    assert low.chosen.recall <= high.chosen.recall


def test_a_chosen_search_stays_and_blocks_do_not_matter(cloud):
    seeds, scores, points = cloud
    model = KNN(10, search="scan", block_rows=77).fit(seeds, scores)
    chosen = model.choose(points)
    whole = model.predict(points)
    parts = [model.predict(points[s : s + 50]) for s in range(0, 600, 50)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert model.chosen is chosen
    assert KNN(10, search="scan").fit(seeds, scores).chosen is None


@pytest.mark.parametrize("kind", ["exact", "scan"])
def test_parts_of_the_queries_are_looked_up_as_all_at_once(cloud, kind):
    seeds, _, points = cloud
    whole = neighbours(seeds, points, 10, search=kind)
    ends = [0, 1, 1, 400, 600]
    parts = [
        neighbours(seeds, points, 10, search=kind, part=slice(*ends[i : i + 2])) for i in range(4)
    ]
    for one, together in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[one] for part in parts]), together)


def test_lists_that_hold_too_few_are_made_up_for(cloud):
    seeds, _, points = cloud
    search = CodedSearch(seeds, "ivf", 32)  # looks into one list of about forty seeds
    assert np.isinf(search.measure(points, 500)[1][:, -1]).all()
    ((_, ids, distances),) = search(points, 500)
    assert np.isfinite(distances).all()
    np.testing.assert_array_equal(ids[0], brute(seeds, points[:1], 500)[0][0])


def test_equal_seeds_and_far_queries_do_no_harm():
    seeds = np.repeat(curved(300, 0), 8, axis=0)
    scores = np.repeat(np.arange(300.0), 8)
    model = KNN(8, search="scan").fit(seeds, scores)
    np.testing.assert_array_equal(model.predict(seeds[::8]), np.arange(300))
    far = model.predict(curved(300, 1) * 1e6)
    assert np.isfinite(far).all()


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 30), st.integers(0, 9), st.sampled_from([2**22, 90]))
def test_exact_neighbours_are_those_of_brute_force(count, k, seed, at_once):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(-2, 3, size=(count, 3)).astype(np.float32)
    points = rng.integers(-2, 3, size=(9, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardsieve.extrapolate.search._BUDGET", at_once)
        ids, distances = neighbours(seeds, points, k)
    want_ids, want = brute(seeds, points, k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(distances, want)


def by_torch(seeds, mean, device="cpu"):
    """Seeds held as on a GPU, where torch has none."""
    return SeedsOnGpu(seeds, mean, device)


@settings(max_examples=40)
@given(
    st.integers(1, 200),
    st.integers(1, 20),
    st.integers(0, 9),
    st.sampled_from([(0, 1), (1e3, 1e-3), (0, 1e18), (0, 1.5e19), (1e30, 1e29), (0, 1e-30)]),
    st.sampled_from([2**28, 700]),
    st.booleans(),
)
def test_torch_finds_the_neighbours_that_faiss_does(count, k, seed, place, at_once, whole):
    """Ties, near ones far from 0, and numbers whose squares overflow float32 among them."""
    rng, (about, apart) = np.random.default_rng(seed), place
    draw = rng.integers(-2, 3, size=(count + 9, 3)) if whole else rng.normal(size=(count + 9, 3))
    seeds, points = np.split((about + apart * draw).astype(np.float32), [count])
    with pytest.MonkeyPatch.context() as patch:
        by_faiss = neighbours(seeds, points, k)
        patch.setattr("shardsieve.extrapolate.on_gpu._BUDGET", at_once)
        patch.setattr("shardsieve.extrapolate.search._SeedsInFaiss", by_torch)
        ids, distances = neighbours(seeds, points, k)
    np.testing.assert_array_equal(ids, by_faiss[0])
    np.testing.assert_allclose(distances, by_faiss[1], rtol=1e-14)
    want_ids, want = brute(seeds, points, k)
    np.testing.assert_allclose(distances, want, rtol=1e-12)
    if whole:
        np.testing.assert_array_equal(ids, want_ids)


def test_a_row_whose_numbers_overflow_proves_nothing(cloud):
    seeds, _, points = cloud
    seeds = np.concatenate([seeds[:50], np.float32(1.85e19) * np.eye(48, dtype=np.float32)[:1]])
    held = SeedsOnGpu(seeds, np.zeros(48, dtype=np.float32), "cpu")
    assert (held.propose(points[:4], 3)[1] == -1).all()
    assert (SeedsOnGpu(seeds[:50], held._mean.numpy(), "cpu").propose(points[:4], 3)[1] >= 0).all()


@pytest.mark.parametrize(
    ("free", "kept", "kind"), [(4, 0, "exact"), (3, 0, "scan"), (1, 3, "exact")]
)
def test_a_gpu_without_room_leaves_the_search_to_the_cpu(cloud, monkeypatch, free, kept, kind):
    """What torch keeps of what ended, as of a fold or a training, is room."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (5 + kept) * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**30)
    assert kind_for("auto", 2**18, 2**20, 512, "cuda") == kind
    assert kind_for("auto", 2**18, 2**20, 512) == "scan"
    if kind == "scan":  # it asks for no device that is not there
        _, ids, _ = next(ExactSearch(cloud[0], "cuda")(cloud[2][:2], 3))
        assert ids.shape[0] == 2


class Sizes(TorchDispatchMode):
    """Writes down how many numbers every operation returns."""

    def __init__(self):
        super().__init__()
        self.of_tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.of_tensors += [made.numel()] if isinstance(made, torch.Tensor) else []
        return made


def test_a_gpu_holds_seeds_twice_and_never_once_more(cloud, monkeypatch):
    """Whether they fit is told by that."""
    seeds = cloud[0]
    monkeypatch.setattr("shardsieve.extrapolate.on_gpu._BUDGET", 48 * 100)
    with Sizes() as sizes:
        SeedsOnGpu(seeds, seeds.mean(axis=0), "cpu")
    whole = [size for size in sizes.of_tensors if size > 48 * 100]
    assert whole == 2 * [seeds.size]  # as they are, and about the mean


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="old torch")
@pytest.mark.parametrize("chosen", ["tf32", "ieee", "none"])
def test_what_the_process_chose_to_multiply_in_is_left_as_it_is(cloud, monkeypatch, chosen):
    seeds, _, points = cloud
    held, seen = SeedsOnGpu(seeds, seeds.mean(axis=0), "cpu"), []
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", chosen)
    nearest = SeedsOnGpu._nearest

    def spied(*given):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
        return nearest(*given)

    monkeypatch.setattr(SeedsOnGpu, "_nearest", spied)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        squared, _ = held.propose(points, 3)
    assert seen == [("ieee", False)]
    assert torch.backends.cuda.matmul.fp32_precision == chosen
    assert squared.dtype == np.float32


@pytest.mark.parametrize("error", ["ImportError('no libcudart')", "AttributeError('no Gpu')"])
def test_a_faiss_that_another_package_spoilt_is_one_line(tmp_path, monkeypatch, error):
    (tmp_path / "faiss.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("faiss", "shardsieve._faiss"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ss.ShardsieveError, match=r"cannot be imported \(no .* uninstall -y faiss-c"
    ):
        importlib.import_module("shardsieve._faiss")


def test_several_k_come_from_one_search(cloud, monkeypatch):
    seeds, scores, points = cloud
    calls, search = [], ExactSearch.__call__
    monkeypatch.setattr(
        ExactSearch, "__call__", lambda self, block, k: calls.append(k) or search(self, block, k)
    )
    model = KNN(50).fit(seeds, scores)
    several = model.predict_each(points, (3, 20))
    assert calls == [20]
    for row, k in zip(several, (3, 20), strict=True):
        np.testing.assert_allclose(row, KNN(k).fit(seeds, scores).predict(points), rtol=1e-6)


def test_the_sample_comes_from_all_over_in_few_reads():
    class Rows:
        shape = (10_000, 2)
        reads = 0

        def __getitem__(self, rows):
            self.reads += 1
            return np.repeat(np.arange(10_000.0)[rows, None], 2, axis=1)

    rows = Rows()
    sample = spread_rows(rows, 160)
    assert sample.shape == (160, 2)
    assert (sample[0, 0], sample[-1, 0]) == (0, 9999)
    assert rows.reads == 10


@pytest.mark.parametrize(
    ("how", "message"),
    [({"search": "lsh"}, "search must be one of auto"), ({"min_recall": 1.5}, r"lie in \(0, 1\]")],
)
def test_bad_input_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        KNN(**how)
    with pytest.raises(ValueError, match=message):
        neighbours([[1.0]], [[2.0]], 1, **how)
