"""Extrapolation of a stored data set: shard by shard, stopped anywhere, and grown."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve.commands import filling, predicting
from shardsieve.commands.appending import append_score
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.extrapolate import GNN, KNN, choose_k, cross_validate, far_share, intervals
from shardsieve.store import layout

SIZES = [60, 64, 40, 50]


def smooth(count, seed=0):
    points = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float16)
    return points, np.sin(points.astype(np.float32)).sum(axis=1)


def embed(store, points, start=0):
    array = store.embedding_array("e", 2)
    for shard in range(start, store.num_shards):
        first = int(store.samples[:shard].sum())
        array[shard, : store.samples[shard]] = points[first : first + store.samples[shard]]


def make(folder, sizes):
    """A store of these shards: half of the first hundred samples are seeds."""
    store = ss.index(write_shards(folder / "d", SIZES)[: len(sizes)], folder / "s.zarr")
    points, values = smooth(sum(SIZES))
    embed(store, points)
    seeds = np.where((np.arange(len(store)) % 2) & (np.arange(len(store)) < 100), 1, np.nan)
    store.put_score("seed", seeds * values[: len(store)], provenance={"definition": "sum"})
    return store


@pytest.fixture
def store(tmp_path):
    return make(tmp_path, SIZES)


def test_predictions_by_shard_are_those_of_all_at_once(store):
    points, _ = smooth(sum(SIZES))
    made = extrapolate_score(store.path, "seed", "full", None, k=5)
    seeds = store.score("seed")
    known = np.isfinite(seeds)
    want = KNN(5).fit(points[known], seeds[known]).predict(points[~known])
    full = store.score("full")
    np.testing.assert_array_equal(full[known], seeds[known])
    np.testing.assert_allclose(full[~known], want, rtol=1e-6)
    assert made["found_by"]["search"] == store.provenance("full")["found_by"]["search"] == "exact"


@pytest.mark.parametrize("stop", range(4))
def test_stopped_anywhere_it_goes_on_and_ends_in_the_same_score(store, monkeypatch, stop):
    extrapolate_score(store.path, "seed", "whole", None, k=5)
    real, made = filling.blocks_of, []

    def counted(*arguments):
        block = real(*arguments)

        def killed(shard):
            made.append(shard)
            if len(made) == stop + 1:
                raise KeyboardInterrupt
            return block(shard)

        return killed

    monkeypatch.setattr(predicting, "blocks_of", counted)
    with pytest.raises(KeyboardInterrupt):
        extrapolate_score(store.path, "seed", "full", None, k=5)
    assert "full" not in store.scores
    made.extend([-1] * 9)
    extrapolate_score(store.path, "seed", "full", None, k=5)
    assert made[-(4 - stop) :] == list(range(stop, 4))
    np.testing.assert_array_equal(store.score("full"), store.score("whole"))


def test_k_is_the_best_of_cross_validation():
    points, values = smooth(300)
    noisy = values + np.random.default_rng(1).normal(size=300) / 2
    best, figures = choose_k(points, noisy, ks=(1, 10, 150), make=lambda k: KNN(k, "mean"))
    assert best == max(figures, key=figures.get)
    assert figures[10] > figures[1]
    for k, figure in figures.items():
        alone = cross_validate(lambda k=k: KNN(k, "mean"), points, noisy)
        assert figure == pytest.approx(alone.spearman)


def test_auto_stores_the_k_that_was_chosen(store):
    made = extrapolate_score(store.path, "seed", "full", None, k="auto")
    chosen = store.provenance("full")["k"]
    assert made["k_tried"][str(chosen)] == max(made["k_tried"].values())
    assert made["k"] == chosen
    with pytest.raises(
        ValueError, match="k must be at least 1, or auto for method knn, got 'some'; 50 is usual"
    ):
        extrapolate_score(store.path, "seed", "x", None, k="some")


def test_new_shards_are_extrapolated_alone_and_as_if_they_had_been_there(tmp_path):
    whole, grown = make(tmp_path / "a", SIZES), make(tmp_path / "b", SIZES[:3])
    extrapolate_score(whole.path, "seed", "full", None, k=5)
    extrapolate_score(grown.path, "seed", "full", None, k=5)
    before = grown.score("full")
    grown = ss.append_shards(sorted((tmp_path / "b/d").glob("*.tar")), grown.path)
    assert append_score(grown.path, "full")["predicted"] == 0
    embed(grown, smooth(sum(SIZES))[0], start=3)
    made = append_score(grown.path, "full")
    assert (made["predicted"], made["without_embedding"]) == (50, 0)
    assert "warning" not in made
    full = ss.open_store(grown.path).score("full")
    np.testing.assert_array_equal(full[:164], before)
    np.testing.assert_allclose(full, whole.score("full"), rtol=1e-6)
    (added,) = grown.provenance("full")["appended"]
    assert added["samples"] == 50
    assert append_score(grown.path, "full")["predicted"] == 0


def test_far_samples_are_told_of(tmp_path):
    store = make(tmp_path, SIZES[:3])
    extrapolate_score(store.path, "seed", "full", None, k=5)
    store = ss.append_shards(sorted((tmp_path / "d").glob("*.tar")), store.path)
    embed(store, smooth(sum(SIZES))[0] + 20, start=3)
    made = append_score(store.path, "full")
    assert made["far"] == 1
    assert "100% of the new samples lie farther from the seeds" in made["warning"]


def test_few_samples_drawn_like_the_seeds_are_far():
    points, _ = smooth(4000)
    assert far_share(points[:2000], points[2000:]) == pytest.approx(0.05, abs=0.02)
    assert far_share(points[:2000], points[2000:] + np.float16(9)) == 1
    tensors = (torch.from_numpy(part).bfloat16() for part in (points[:2000], points[2000:]))
    assert far_share(*tensors) == pytest.approx(0.05, abs=0.03)
    assert far_share([[0.0], [1.0]], [[1.5], [3.0]]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: far_share([[0.0]], [[1.0]]), "at least 2 seeds and 1 sample, got 1 and 1; "),
        (lambda: far_share([[0.0]] * 2, np.zeros((0, 1))), "2 seeds and 1 sample, got 2 and 0; "),
        (lambda: far_share([[0.0]] * 2, [[1.0, 2.0]]), r"embeddings must have shape \(n, 1\)"),
        (lambda: choose_k([[0.0]] * 9, [1.0] * 9, ks=()), "ks must hold at least 1 number"),
        (lambda: choose_k([[0.0]] * 9, [1.0] * 9, ks=(5, 0)), "ks must be a whole number of at l"),
        (lambda: intervals([1, 2], [1, 2], (), resamples=0), "resamples must be a whole number"),
    ],
)
def test_too_little_to_compare_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("graph", ["seeds", "all"])
def test_the_graph_network_predicts_a_store(store, graph):
    points, _ = smooth(sum(SIZES))
    made = extrapolate_score(
        store.path, "seed", "full", None, method="gnn", k=4, layer="sage", graph=graph, folds=2
    )
    assert made["predicted"] == 164
    full, seeds = store.score("full"), store.score("seed")
    known = np.isfinite(seeds)
    model, rest = GNN(4, layer="sage", graph=graph), points[~known]
    model.fit(points[known], seeds[known], rest=rest if graph == "all" else None)
    want = model.predict_rest() if graph == "all" else model.predict(rest)
    np.testing.assert_allclose(full[~known], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(full[known], seeds[known])
    how = store.provenance("full")
    assert (how["layer"], how["graph"]) == ("sage", graph)


def test_only_a_prediction_is_appended_to(store):
    with pytest.raises(ss.MissingScoreError, match=r"must be a prediction by knn.*got 'sum'"):
        append_score(store.path, "seed")


def test_all_embeddings_and_signals_are_read_without_a_second_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_SHARDS_AT_ONCE", 2)
    sizes = [60, 64, 1, 50, 64] * 8
    store = ss.index(write_shards(tmp_path / "d", sizes), tmp_path / "s.zarr")
    points = np.random.default_rng(0).normal(size=(sum(sizes), 512)).astype(np.float16)
    ends = np.cumsum([0, *sizes])
    embedding, signals = store.embedding_array("e", 512), store.signal_array("e", 1, ("loss",))
    for shard, (first, end) in enumerate(pairwise(ends)):
        embedding[shard, : end - first] = points[first:end]
        signals[shard, : end - first] = points[first:end, :1, None]
    tracemalloc.start()
    try:
        found = store.embedding("e")
        assert tracemalloc.get_traced_memory()[1] < 1.6 * points.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, points)
    np.testing.assert_array_equal(store.signals("e")[:, 0, 0], points[:, 0])
