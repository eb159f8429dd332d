"""Scores from embeddings, neighbours and whole networks; variants; more streaming forms."""

import tracemalloc

import faiss
import numpy as np
import pytest
import reference_scores as reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import SEEDS, outputs, same, tracks, updates
from tars import write_shards

import shardsieve as ss
from shardsieve import scores
from shardsieve.commands.scoring import score_from_embedding
from shardsieve.extrapolate import neighbours
from shardsieve.scores import (
    StreamingDUAL,
    StreamingDynamicUncertainty,
    StreamingMoments,
    StreamingTDDS,
    clusters,
    oriented,
)


@st.composite
def clouds(draw):
    """Points (n, D), some of them equal, some of length 0; centres (K, D); labels (n,)."""
    rng = np.random.default_rng(draw(SEEDS))
    n, dim = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    points = rng.normal(size=(n, dim))
    points[rng.random(n) < 0.2] = points[0]
    points[rng.random(n) < 0.1] = 0
    return points, rng.normal(size=(draw(st.integers(1, 4)), dim)), rng.integers(0, 3, size=n)


@st.composite
def graphs(draw):
    """Scores (n,), half of them below 0, and a kNN table; distances in sixteenths."""
    rng = np.random.default_rng(draw(SEEDS))
    n = draw(st.integers(1, 10))
    ids = rng.integers(n, size=(n, draw(st.integers(1, 4))))
    apart = np.abs(ids - np.arange(n)[:, None]) / 16
    return rng.normal(size=n), ids, apart


# Variants and Fourier ----------------------------------------------------------------------

# methods.md 4.1: standard deviation over J - 1 or J, first and number of windows, scale.
PUBLISHED = {
    "paper": (1, 0, lambda t, j: t - j, 1),
    "official": (1, 0, lambda t, j: t - j, 10),
    "dual": (1, 0, lambda t, j: t - j + 1, 10),
    "schmidt": (0, 2, lambda t, j: t - j - 1, 1),
    "schmidt_unsupervised": (0, 0, lambda t, j: t - j, 1),
}


@pytest.mark.parametrize("variant", PUBLISHED)
@given(tracks(least_epochs=6))
def test_every_published_variant_of_dynamic_uncertainty_has_its_name(variant, q):
    less, first, count, scale = PUBLISHED[variant]
    assert set(scores.DYNAMIC_UNCERTAINTY) == set(PUBLISHED)
    window = 3
    windows = [q[first + k : first + k + window] for k in range(count(len(q), window))]
    want = scale * np.mean([rows.std(axis=0, ddof=less) for rows in windows], axis=0)
    same(scores.dynamic_uncertainty(q, window, variant=variant), want)


def test_an_option_goes_before_its_variant():
    q = np.random.default_rng(0).random((9, 4))
    got = scores.dynamic_uncertainty(q, 3, variant="dual", include_last=False)
    np.testing.assert_array_equal(got, 10 * scores.dynamic_uncertainty(q, 3))


@given(tracks())
def test_frequency_matches_the_reference(q):
    np.testing.assert_allclose(scores.frequency(q), reference.frequency(q.tolist()), atol=1e-9)


def test_frequencies_of_many_samples_take_no_multiple_of_their_signal():
    q = np.random.default_rng(0).random((20, 100_001))
    tracemalloc.start()
    try:
        found = scores.frequency(q)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * q.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found[:3], scores.frequency(q[:, :3]))


@given(outputs())
def test_least_confidence_is_one_less_the_largest(recorded):
    p, _ = recorded
    same(scores.least_confidence(p[0]), [1 - max(row) for row in p[0].tolist()])


# Streaming ---------------------------------------------------------------------------------


@given(tracks(least_epochs=2), st.data())
def test_streaming_dual_is_the_batch_form_to_the_bit(q, data):
    window = data.draw(st.integers(2, len(q)))
    stream = StreamingDUAL(q.shape[1], window)
    for epoch, positions in updates(np.ones_like(q), np.random.default_rng(0)):
        again = StreamingDUAL(q.shape[1], window)
        again.load_state_dict(stream.state_dict())
        stream = again
        stream.update(positions, q[epoch, positions])
    np.testing.assert_array_equal(stream.score(), scores.dual(q, window))


@given(outputs())
def test_streaming_means_are_the_batch_forms_to_the_bit(recorded):
    p, labels = recorded
    rows = np.arange(len(labels))
    z = 8 * p - 3
    others = np.where(np.arange(p.shape[2]) == labels[:, None], -np.inf, z).max(axis=2)
    signals = {
        "confidence": (p[:, rows, labels], scores.confidence(p[:, rows, labels])),
        "aum": (z[:, rows, labels] - others, scores.aum(z, labels)),
        "el2n": (np.stack([scores.el2n(q, labels) for q in p]), scores.el2n(p, labels)),
    }
    for values, want in signals.values():
        stream = StreamingMoments(len(labels))
        for epoch, positions in updates(np.ones_like(values), np.random.default_rng(0)):
            stream.update(positions, values[epoch, positions])
        np.testing.assert_array_equal(stream.mean(), want)
        np.testing.assert_allclose(stream.spread(), values.std(axis=0), atol=1e-12)


# Embeddings --------------------------------------------------------------------------------


@given(clouds(), st.sampled_from(["cosine", "euclidean"]))
def test_prototypicality_matches_the_reference(cloud, metric):
    points, centres, _ = cloud
    want = reference.prototypicality(points.tolist(), centres.tolist(), metric)
    np.testing.assert_allclose(scores.prototypicality(points, centres, metric), want, atol=1e-9)


@given(clouds())
def test_moderate_distance_matches_the_reference(cloud):
    points, _, labels = cloud
    want = reference.moderate_distance(points.tolist(), labels.tolist())
    np.testing.assert_allclose(scores.moderate_distance(points, labels), want, atol=1e-9)


@given(clouds(), st.sampled_from(["far", "near"]))
def test_semdedup_matches_the_reference(cloud, first):
    points, centres, _ = cloud
    # Equal distances to the centre may differ by rounding: keep points whose order is plain.
    own = [reference.nearest(point, centres.tolist(), "cosine") for point in points.tolist()]
    rounded = [(cluster, round(apart, 6)) for cluster, apart in own]
    points = points[sorted({row: i for i, row in enumerate(rounded)}.values())]
    want = reference.semdedup(points.tolist(), centres.tolist(), first)
    np.testing.assert_allclose(scores.semdedup(points, centres, first), want, atol=1e-9)


def test_blocks_change_no_score(monkeypatch):
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(300, 5)), rng.normal(size=(4, 5))
    calls = [
        lambda: scores.semdedup(points, centres),
        lambda: scores.prototypicality(points, centres),
        lambda: scores.prototypicality(points, centres, "euclidean"),
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr("shardsieve.scores.embedded._BUDGET", 120)
    for call, want in zip(calls, whole, strict=True):
        np.testing.assert_allclose(call(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["semdedup", "prototypicality", "euclidean", "moderate"])
def test_embeddings_are_never_copied_whole(monkeypatch, name):
    monkeypatch.setattr("shardsieve.scores.embedded._BUDGET", 2**16)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4096, 512)).astype(np.float16)
    centres, labels = rng.normal(size=(32, 512)), np.arange(4096) % 32
    calls = {
        "semdedup": lambda: scores.semdedup(points, centres),
        "prototypicality": lambda: scores.prototypicality(points, centres),
        "euclidean": lambda: scores.prototypicality(points, centres, "euclidean"),
        "moderate": lambda: scores.moderate_distance(points, labels),
    }
    tracemalloc.start()
    calls[name]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < points.nbytes


def test_the_second_of_two_equal_samples_is_the_duplicate():
    points = [[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    got = scores.semdedup(points, [[1.0, 0.0]])
    np.testing.assert_allclose(got, [0, np.sqrt(0.5), 1])
    assert oriented("semdedup", got).argmin() == 2


@given(clouds(), st.integers(1, 12))
def test_the_top_of_the_moderate_score_is_the_moderate_rule(cloud, count):
    points, _, labels = cloud
    fraction = min(count, len(points)) / len(points)
    score = oriented("moderate_distance", scores.moderate_distance(points, labels))
    top = ss.keep_top(score, fraction)
    np.testing.assert_array_equal(top, ss.keep_moderate(points, labels, fraction))


def test_a_missing_distance_has_no_rank():
    got = oriented("moderate_distance", [5.0, np.nan, 1.0, 3.0])
    np.testing.assert_array_equal(got, [-0.75, np.nan, -1.25, -0.25])


def test_k_means_finds_plain_clusters_and_repeats():
    rng = np.random.default_rng(0)
    middles = np.array([[9.0, 0.0], [0.0, 9.0], [-9.0, -9.0]])
    points = (middles[:, None] + 0.1 * rng.normal(size=(3, 40, 2))).reshape(-1, 2)
    centres = scores.k_means(points, 3, spherical=False, restarts=8)
    assert scores.prototypicality(middles, centres, "euclidean").max() < 0.1
    again = scores.k_means(points, 3, spherical=False, restarts=8)
    np.testing.assert_array_equal(centres, again)
    lengths = np.linalg.norm(scores.k_means(points, 3), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    far = scores.k_means(points, 3, seed=10**30)  # faiss takes seeds of 31 bits
    np.testing.assert_allclose(np.linalg.norm(far, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("samples", [300, 40])  # more and fewer than are thinned out
def test_k_means_by_rounds_is_that_of_one_call(monkeypatch, spherical, samples):
    monkeypatch.setattr(clusters, "_MOST", 50)
    points = np.random.default_rng(1).normal(size=(samples, 3)).astype(np.float32)
    told = []
    how = {"seed": 7, "spherical": spherical}
    found = scores.k_means(points, 4, **how, progress=lambda *done: told.append(done))
    engine = faiss.Kmeans(3, 4, niter=20, nredo=3, **how, max_points_per_centroid=50)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    engine.train(unit if spherical else points)
    np.testing.assert_array_equal(found, engine.centroids)
    assert told == sorted(told)
    assert told[-1] == (60, 60)


@pytest.mark.parametrize(("samples", "clusters_asked"), [(20_000, 100), (40, 40)])
def test_rounds_of_k_means_keep_the_last_bits_of_unit_centres(samples, clusters_asked):
    rng = np.random.default_rng(0)
    rng.normal(size=(5000, 16))
    points = rng.normal(size=(samples, 64)).astype(np.float32)
    how = {"seed": 30_973_114, "spherical": True}  # there a bit decides to whom a sample belongs
    found = scores.k_means(points, clusters_asked, restarts=1, **how)
    engine = faiss.Kmeans(64, clusters_asked, niter=20, **how, min_points_per_centroid=1)
    engine.train(points / np.linalg.norm(points, axis=1, keepdims=True))
    np.testing.assert_array_equal(found, engine.centroids)


# Messages ----------------------------------------------------------------------------------


@given(graphs())
def test_message_passing_matches_the_reference(graph):
    values, ids, apart = graph
    want = reference.message_passing(values.tolist(), ids.tolist(), apart.tolist())
    same(scores.message_passing(values, ids, apart), want)


@given(graphs(), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]))
def test_d2_takes_samples_in_the_order_of_the_reference(graph, absolute, gamma):
    values, ids, apart = graph
    got = scores.d2(values, ids, apart, gamma, absolute=absolute)
    want = reference.d2(values.tolist(), ids.tolist(), apart.tolist(), gamma, absolute)
    np.testing.assert_array_equal(got, want)


def test_d2_leaves_a_twin_for_last_where_a_plain_top_takes_both():
    points = np.array([[0.0], [0.01], [5.0], [9.0]])
    values = [3.0, 2.9, 1.0, 0.5]
    ids, apart = neighbours(points, points, 2)
    assert ss.keep_top(values, 0.5).tolist() == [0, 1]
    assert ss.keep_top(scores.d2(values, ids, apart), 0.5).tolist() == [0, 2]


def test_d2_without_a_gamma_is_the_papers():
    rng = np.random.default_rng(0)
    points, values = rng.normal(size=(60, 2)), rng.normal(size=60)
    graph = values, *neighbours(points, points, 6)
    plain = scores.d2(*graph)
    np.testing.assert_array_equal(plain, scores.d2(*graph, gamma=0.1))
    assert (plain != scores.d2(*graph, gamma=0.2)).any()


def test_d2_passes_no_messages_to_or_from_what_is_cut_as_too_hard(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [30]), tmp_path / "s.zarr")
    rng = np.random.default_rng(0)
    points, values, hard = (
        rng.normal(size=(30, 2)).astype("f2"),
        rng.normal(size=30),
        rng.random(30),
    )
    store.embedding_array("e", 2)[0, :30] = points
    store.put_score("mine", values)
    store.put_score("aum", hard)
    left = np.sort(np.argsort(hard)[:18])
    ids, apart = neighbours(points[left].astype("f4"), points[left].astype("f4"), 6)
    for spec, rows in (("", range(30)), (":hard_cutoff=0.4:difficulty=aum", left)):
        made = score_from_embedding(store.path, None, [f"d2:score=mine{spec}"], prefix=None)
        order = store.score(made["scores"][0])
        assert sorted(order[rows]) == list(range(1, len(rows) + 1))
    np.testing.assert_array_equal(order[left], scores.d2(store.score("mine")[left], ids, apart))
    assert not order[np.setdiff1d(np.arange(30), left)].any()
    with pytest.raises(ValueError, match=r"hard_cutoff must lie in \[0, 1\), got 1.0; 0 cuts"):
        score_from_embedding(store.path, None, ["d2:score=mine:hard_cutoff=1"], prefix=None)


# Whole networks ----------------------------------------------------------------------------


def small_net():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))


def test_grand_is_the_norm_of_one_backward_pass_per_sample_and_leaves_the_mode_alone():
    model, inputs = small_net(), torch.randn(5, 3)
    labels = torch.tensor([0, 1, 1, 0, 1])
    model[0].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    modes[2] = model[1].eval().training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = scores.grand(model, inputs, labels, chunk=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    model.eval()
    for i in range(5):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[i : i + 1]), labels[i : i + 1]).backward()
        parts = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        assert got[i] == pytest.approx(float(torch.stack(parts).norm()), rel=1e-5)


def test_grand_of_a_linear_model_is_the_closed_form_of_the_last_layer():
    torch.manual_seed(1)
    model, inputs = torch.nn.Linear(4, 3), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    probs = model(inputs).softmax(dim=1).detach().numpy().astype(float)
    want = scores.grand_last_layer(probs, labels.numpy(), inputs.numpy())
    np.testing.assert_allclose(scores.grand(model, inputs, labels), want, rtol=1e-4)


# Arguments ---------------------------------------------------------------------------------

POINTS = [[1.0, 0.0], [0.0, 1.0]]
REFUSED = {
    "no such variant": (
        lambda: scores.dynamic_uncertainty(np.full((5, 1), 0.5), 3, variant="best"),
        r"^variant must be one of paper, official, dual, .*, got 'best'; ",
    ),
    "embedding that is NaN": (
        lambda: scores.prototypicality([[1.0, np.nan]], POINTS),
        r"^embeddings must be finite, got nan for sample 0 \(1 of 2 values\); embed ",
    ),
    "centres of another width": (
        lambda: scores.semdedup(POINTS, [[1.0]]),
        r"^centroids must have the 2 columns of embeddings, got 1; ",
    ),
    "no such metric": (
        lambda: scores.prototypicality(POINTS, POINTS, "manhattan"),
        r"^metric must be one of cosine, euclidean, got 'manhattan'; ",
    ),
    "no such order": (
        lambda: scores.semdedup(POINTS, POINTS, "random"),
        r"^first must be one of far, near, got 'random'; ",
    ),
    "missing label": (
        lambda: scores.moderate_distance(POINTS, [0, -1]),
        r"^labels must lie in \[0, .*\), got -1 for sample 1 ",
    ),
    "neighbour out of range": (
        lambda: scores.message_passing([1.0], [[1]], [[0.0]]),
        r"^neighbours must lie in \[0, 1\) at distances of at least 0, got 1; ",
    ),
    "negative distance": (
        lambda: scores.d2([1.0, 2.0], [[1], [0]], [[0.5], [-0.5]]),
        r"^neighbours must lie .* got -0\.5; ",
    ),
    "neighbours as floats": (
        lambda: scores.d2([1.0], [[0.0]], [[0.0]]),
        r"^neighbours must be integers of the shape of distances, \(1, k\), got float64 ",
    ),
    "negative gamma": (
        lambda: scores.d2([1.0], [[0]], [[0.0]], -1.0),
        r"^gamma must be finite and at least 0, got -1\.0; ",
    ),
    "more clusters than samples": (
        lambda: scores.k_means(POINTS, 3),
        r"^embeddings must have shape \(n, D\) with n >= clusters=3 and D >= 1, got \(2, 2\); ",
    ),
    "clusters of NaN": (
        lambda: scores.k_means([[np.nan]], 1),
        r"^embeddings must be finite, got NaN or infinity; ",
    ),
    "labels of another length": (
        lambda: scores.grand(small_net(), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)),
        r"^labels must have length 2, got 1; ",
    ),
    "dual too early": (
        lambda: StreamingDUAL(2, 3).score(),
        r"^updates must bring at least window=3 values per sample, got 0 for sample 0; ",
    ),
    "a probability above 1": (
        lambda: StreamingDUAL(2, 3).update([1], [1.5]),
        r"^values must lie in \[0, 1\], got 1.5 for sample 1; ",
    ),
    "a window of one": (
        lambda: StreamingDUAL(2, 1),
        r"^window must be a whole number of at least 2, got 1",
    ),
    "a window of one, without the mean": (
        lambda: StreamingDynamicUncertainty(2, 1),
        r"^window must be a whole number of at least 2, got 1",
    ),
    "a window of one divergence": (
        lambda: StreamingTDDS(2, 2),
        r"^window must be a whole number of at least 3, got 2",
    ),
    "no value yet": (
        lambda: StreamingMoments(1).mean(),
        r"^updates must bring at least 1 value per sample, got 0 for sample 0; ",
    ),
    "streamed infinity": (
        lambda: StreamingMoments(3).update([2], [np.inf]),
        r"^values must be finite, got inf for sample 2; ",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_refused_with_its_value_and_a_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
