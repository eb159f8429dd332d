"""Scores against an independent oracle, hand-worked cases, and the pitfalls of other code."""

import inspect

import numpy as np
import pytest
import reference_scores as reference
from hypothesis import given
from hypothesis import strategies as st

from shardsieve import scores
from shardsieve.scores import (
    ORIENTATION,
    StreamingDynamicUncertainty,
    StreamingForgetting,
    StreamingTDDS,
    oriented,
)

SEEDS = st.integers(0, 2**32 - 1)


def softmax(logits):
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


@st.composite
def tracks(draw, least_epochs=1):
    """Probabilities of the label, (T, n): anything in [0, 1], its ends and repeats included."""
    shape = draw(st.integers(least_epochs, 16)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(SEEDS))
    q = rng.random(shape)
    return np.where(rng.random(shape) < 0.3, np.round(q), q)


@st.composite
def outputs(draw, least_epochs=1, least_classes=2):
    """Probabilities (T, n, C), some exactly 0 or 1, and labels (n,)."""
    shape = draw(st.integers(least_epochs, 14)), draw(st.integers(1, 5))
    num_classes = draw(st.integers(least_classes, 5))
    rng = np.random.default_rng(draw(SEEDS))
    p = softmax(rng.normal(size=(*shape, num_classes)) * draw(st.sampled_from([0.1, 1, 30])))
    certain = np.eye(num_classes)[rng.integers(num_classes, size=shape)]
    p = np.where(rng.random(shape)[..., None] < 0.2, certain, p)
    return p, rng.integers(num_classes, size=shape[1])


@st.composite
def presentations(draw):
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(SEEDS))
    right = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    return right, rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))


def same(got, want):
    assert got.shape == (len(want),)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(tracks(least_epochs=4), st.data())
def test_dynamic_uncertainty_matches_the_reference(q, data):
    skip = data.draw(st.integers(0, len(q) - 3))
    window = data.draw(st.integers(2, len(q) - skip - 1))
    options = {
        "include_last": data.draw(st.booleans()),
        "population": data.draw(st.booleans()),
        "skip_epochs": skip,
    }
    got = scores.dynamic_uncertainty(q, window, **options)
    same(got, reference.dynamic_uncertainty(q.tolist(), window, **options))


@given(tracks(least_epochs=2), st.data())
def test_dual_matches_the_reference(q, data):
    window = data.draw(st.integers(2, len(q)))
    same(scores.dual(q, window), reference.dual(q.tolist(), window))


@given(outputs(least_epochs=3), st.data())
def test_tdds_matches_the_reference(recorded, data):
    p, _ = recorded
    window = data.draw(st.integers(3, len(p)))
    decay = data.draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    options = {"kl": data.draw(st.booleans()), "squared": data.draw(st.booleans())}
    got = scores.tdds(p, window, decay, **options)
    same(got, reference.tdds(p.tolist(), window, decay, **options))


@given(outputs(least_epochs=3), st.booleans())
def test_tdds_of_recorded_divergences_is_tdds_of_the_probabilities(recorded, kl):
    p, _ = recorded
    d = np.stack([scores.divergence(p[t + 1], p[t], kl=kl) for t in range(len(p) - 1)])
    want_first = reference.divergence(p[1].tolist(), p[0].tolist(), kl)
    same(d[0], want_first)
    np.testing.assert_array_equal(
        scores.tdds_from_divergence(d, 3, 0.7), scores.tdds(p, 3, 0.7, kl=kl)
    )


@given(tracks())
def test_confidence_and_variability_match_the_reference(q):
    same(scores.confidence(q), reference.confidence(q.tolist()))
    same(scores.variability(q), reference.variability(q.tolist()))


@given(outputs())
def test_el2n_is_the_mean_of_norms_over_runs(recorded):
    p, labels = recorded
    same(scores.el2n(p, labels), reference.el2n(p.tolist(), labels.tolist()))
    same(scores.el2n(p[0], labels), reference.el2n([p[0].tolist()], labels.tolist()))


@given(outputs(), st.booleans(), st.integers(1, 4))
def test_grand_of_the_last_layer_is_the_norm_of_its_written_out_gradient(recorded, bias, dim):
    p, labels = recorded
    features = np.random.default_rng(dim).normal(size=(len(labels), dim))
    got = scores.grand_last_layer(p[0], labels, features, bias)
    want = reference.grand_last_layer(p[0].tolist(), labels.tolist(), features.tolist(), bias)
    same(got, want)


@given(outputs())
def test_snapshot_scores_match_the_reference(recorded):
    p, labels = recorded
    rows = p[0].tolist()
    same(scores.entropy(p[0]), reference.entropy(rows))
    same(scores.margin(p[0]), reference.margin(rows))
    same(scores.cross_entropy(p[0], labels), reference.cross_entropy(rows, labels.tolist()))


@given(outputs())
def test_aum_matches_the_reference(recorded):
    p, labels = recorded
    logits = 20 * p - 9
    same(scores.aum(logits, labels), reference.aum(logits.tolist(), labels.tolist()))


@given(presentations(), st.sampled_from(["hardest", "easiest"]))
def test_forgetting_matches_the_reference(recorded, never_learned):
    right, shown = recorded
    got = scores.forgetting(right, never_learned, presented=shown)
    same(got, reference.forgetting(right.tolist(), shown.tolist(), never_learned))
    everywhere = np.ones_like(shown).tolist()
    want = reference.forgetting(right.tolist(), everywhere, never_learned)
    same(scores.forgetting(right, never_learned), want)


@given(tracks(least_epochs=4), st.randoms(use_true_random=False))
def test_renaming_the_samples_only_renames_the_scores(q, random):
    order = np.array(random.sample(range(q.shape[1]), q.shape[1]))
    for scorer in (scores.dynamic_uncertainty, scores.dual, scores.tdds_from_divergence):
        np.testing.assert_array_equal(scorer(q[:, order], 3), scorer(q, 3)[order])


def updates(shown, rng):
    """Each epoch's samples in two shuffled batches: (epoch, positions)."""
    for epoch, row in enumerate(shown):
        positions = rng.permutation(np.flatnonzero(row))
        cut = rng.integers(len(positions) + 1)
        yield epoch, positions[:cut]
        yield epoch, positions[cut:]


@given(tracks(least_epochs=3), st.booleans(), st.booleans(), st.data())
def test_streaming_dynamic_uncertainty_is_the_batch_form_to_the_bit(q, last, population, data):
    window = data.draw(st.integers(2, len(q) - 1))
    options = {"include_last": last, "population": population}
    stream = StreamingDynamicUncertainty(q.shape[1], window, **options)
    for epoch, positions in updates(np.ones_like(q), np.random.default_rng(0)):
        stream.update(positions, q[epoch, positions])
    np.testing.assert_array_equal(stream.score(), scores.dynamic_uncertainty(q, window, **options))


@given(tracks(least_epochs=3), st.data())
def test_streaming_tdds_is_the_batch_form_to_the_bit(d, data):
    window = data.draw(st.integers(3, len(d) + 1))
    stream = StreamingTDDS(d.shape[1], window, 0.8)
    for epoch, positions in updates(np.ones_like(d), np.random.default_rng(0)):
        stream.update(positions, d[epoch, positions])
    np.testing.assert_array_equal(stream.score(), scores.tdds_from_divergence(d, window, 0.8))


@given(presentations(), st.sampled_from(["hardest", "easiest"]))
def test_streaming_forgetting_is_the_batch_form(recorded, never_learned):
    right, shown = recorded
    stream = StreamingForgetting(right.shape[1])
    for epoch, positions in updates(shown, np.random.default_rng(0)):
        stream.update(positions, right[epoch, positions])
    want = reference.forgetting(right.tolist(), shown.tolist(), never_learned)
    same(stream.score(never_learned), want)


def test_a_sample_that_missed_epochs_is_scored_from_the_values_it_has():
    rng = np.random.default_rng(3)
    tracks_of = [rng.random(9), rng.random(5)]
    stream = StreamingDynamicUncertainty(2, 4)
    for epoch in range(9):
        shown = np.flatnonzero([True, epoch % 2 == 0])
        stream.update(shown, [tracks_of[i][epoch // (1 + i)] for i in shown])
    want = [scores.dynamic_uncertainty(track[:, None], 4)[0] for track in tracks_of]
    np.testing.assert_array_equal(stream.score(), want)


STREAMS = {
    "dynamic uncertainty": lambda: StreamingDynamicUncertainty(4, 3),
    "tdds": lambda: StreamingTDDS(4, 3, 0.6),
    "forgetting": lambda: StreamingForgetting(4),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("stop", range(8))
def test_stopping_anywhere_changes_nothing(make, stop):
    values = np.random.default_rng(1).integers(0, 2, size=(7, 4))
    whole, first, second = make(), make(), make()
    everyone = np.arange(4)
    for row in values:
        whole.update(everyone, row)
    for row in values[:stop]:
        first.update(everyone, row)
    saved = first.state_dict()
    first.update(everyone, values[0])
    second.load_state_dict(saved)
    for row in values[stop:]:
        second.update(everyone, row)
    np.testing.assert_array_equal(second.score(), whole.score())
    assert whole.score().any()


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_a_refused_update_adds_nothing(make):
    stream = make()
    before = stream.state_dict()
    with pytest.raises(ValueError, match="values must"):
        stream.update([0, 1], [1.0, -1.0])
    with pytest.raises(ValueError, match="positions must"):
        stream.update([1, 1], [1.0, 1.0])
    after = stream.state_dict()
    assert len(after) >= 5
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_dynamic_uncertainty_leaves_the_last_window_out_by_default():
    q = [[0.5], [0.5], [1.0]]
    assert scores.dynamic_uncertainty(q, 2).tolist() == [0.0]
    np.testing.assert_allclose(
        scores.dynamic_uncertainty(q, 2, include_last=True), [np.sqrt(0.125) / 2]
    )


def test_the_last_window_can_flip_the_ranking_of_two_samples():
    q = np.array([[0.5, 0.4], [0.5, 0.6], [1.0, 0.6]])
    default = scores.dynamic_uncertainty(q, 2)
    every = scores.dynamic_uncertainty(q, 2, include_last=True)
    assert default[0] < default[1]
    assert every[0] > every[1]


def test_dynamic_uncertainty_divides_by_one_less_than_the_window():
    q = [[0.0], [1.0], [0.0]]
    np.testing.assert_allclose(scores.dynamic_uncertainty(q, 2), [np.sqrt(0.5)])
    np.testing.assert_allclose(scores.dynamic_uncertainty(q, 2, population=True), [0.5])


def test_dual_counts_the_last_window():
    want = (0.0 + np.sqrt(0.125) * 0.25) / 2
    np.testing.assert_allclose(scores.dual([[0.5], [0.5], [1.0]], 2), [want])


def test_tdds_weighs_the_newest_window_most():
    d = [[0.0], [2.0], [2.0]]
    np.testing.assert_allclose(scores.tdds_from_divergence(d, 3), [0.09 * np.sqrt(2)])
    np.testing.assert_allclose(scores.tdds_from_divergence(d[::-1], 3), [0.9 * np.sqrt(2)])
    np.testing.assert_allclose(scores.tdds_from_divergence(d[::-1], 3, squared=True), [1.8])


def test_the_divergence_of_tdds_takes_the_bars_inside_the_sum_over_classes():
    after, before = [[0.5, 0.5]], [[0.25, 0.75]]
    np.testing.assert_allclose(
        scores.divergence(after, before), [0.5 * np.log(2) + 0.5 * np.log(1.5)], rtol=1e-6
    )
    kl = 0.5 * np.log(2) - 0.5 * np.log(1.5)
    np.testing.assert_allclose(scores.divergence(after, before, kl=True), [kl], rtol=1e-6)


def test_a_probability_falling_to_zero_has_a_finite_divergence():
    got = scores.divergence([[1.0, 0.0]], [[0.0, 1.0]])
    np.testing.assert_allclose(got, [np.log(1 + 1e-8) - np.log(1e-8)])


def test_a_never_learned_sample_is_the_hardest_unless_told_otherwise():
    correct = np.array([[False, True], [False, False], [False, True], [False, False]])
    assert scores.forgetting(correct).tolist() == [4.0, 2.0]
    assert scores.forgetting(correct, "easiest").tolist() == [0.0, 2.0]


def test_forgetting_compares_with_the_last_presentation_not_the_previous_epoch():
    correct = np.array([[True, False], [False, True], [False, False]])
    presented = np.array([[True, True], [False, False], [True, True]])
    assert scores.forgetting(correct, presented=presented).tolist() == [1.0, 2.0]


def test_zero_times_log_zero_is_zero():
    got = scores.entropy([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.testing.assert_allclose(got, [0.0, np.log(2)])
    assert not np.signbit(got[0])


def test_a_label_of_probability_zero_has_a_large_but_finite_loss():
    got = scores.cross_entropy([[1.0, 0.0]], [1])
    np.testing.assert_allclose(got, [1022 * np.log(2)])


def test_el2n_averages_norms_not_errors():
    runs = [[[1.0, 0.0]], [[0.0, 1.0]]]
    np.testing.assert_allclose(scores.el2n(runs, [0]), [np.sqrt(2) / 2])


def test_the_bias_of_the_last_layer_counts_as_a_feature_of_one():
    arguments = [[0.5, 0.5]], [0], [[2.0, 2.0]]
    np.testing.assert_allclose(scores.grand_last_layer(*arguments), [np.sqrt(0.5) * 3])
    np.testing.assert_allclose(scores.grand_last_layer(*arguments, bias=False), [2.0])


def test_aum_takes_the_mean_over_all_epochs_and_leaves_the_logits_alone():
    logits = np.array([[[3.0, 1.0, 0.0]], [[1.0, 2.0, 5.0]]])
    before = logits.copy()
    assert scores.aum(logits, [0]).tolist() == [-1.0]
    np.testing.assert_array_equal(logits, before)


def test_scores_of_no_samples_are_empty():
    assert scores.dynamic_uncertainty(np.zeros((3, 0)), 2).shape == (0,)
    assert scores.el2n(np.zeros((0, 3)), []).shape == (0,)
    assert scores.forgetting(np.zeros((3, 0), dtype=bool)).shape == (0,)
    assert StreamingDynamicUncertainty(0, 2).score().shape == (0,)


def test_half_precision_recordings_are_computed_in_double_precision():
    q = np.random.default_rng(0).random((12, 3)).astype(np.float16)
    want = reference.dynamic_uncertainty(q.astype(np.float64).tolist(), 10)
    same(scores.dynamic_uncertainty(q), want)


def test_every_scorer_has_an_orientation_and_takes_the_signals_it_names():
    named = {n: getattr(scores, n) for n in scores.__all__}
    functions = {n: f for n, f in named.items() if inspect.isfunction(f)}
    helpers = {"divergence", "from_signals", "k_means", "oriented", "tdds_from_divergence"}
    assert set(ORIENTATION) == set(functions) - helpers
    for name, row in ORIENTATION.items():
        scorer = functions["tdds_from_divergence" if name == "tdds" else name]
        arguments = set(inspect.signature(scorer).parameters)
        assert row.signals
        assert set(row.signals) <= arguments
        assert row.arxiv is None or row.arxiv in inspect.getdoc(functions[name])


def test_low_scores_are_turned_round_so_that_the_hardest_is_kept_first():
    values = np.array([1.0, -2.0, np.nan])
    low = {name for name, row in ORIENTATION.items() if row.keep == "low"}
    assert low == {"aum", "confidence", "margin", "semdedup"}
    for name in sorted(set(ORIENTATION) - {"moderate_distance"}):
        want = -values if name in low else values
        np.testing.assert_array_equal(oriented(name, values), want)
        assert not np.shares_memory(oriented(name, values), values)


HALF = np.full((8, 3), 0.5)
PAIR = [[0.5, 0.5], [0.5, 0.5]]
NAN_TRACK = HALF.copy()
NAN_TRACK[6, 1] = NAN_TRACK[2, 2] = NAN_TRACK[7, 1] = np.nan

REFUSED = {
    "too short": (
        lambda: scores.dynamic_uncertainty(HALF),
        r"^p_true must have more than window=10 epochs, got 8; "
        r"train longer or pass a smaller window$",
    ),
    "as long as the window": (
        lambda: scores.dynamic_uncertainty(HALF, 8),
        r"^p_true must have more than window=8 epochs, got 8; ",
    ),
    "too short once skipped": (
        lambda: scores.dynamic_uncertainty(HALF, 6, skip_epochs=2),
        r"^p_true must have more than window=6 epochs, got 6 after skip_epochs=2; ",
    ),
    "too short for dual": (
        lambda: scores.dual(HALF, 9),
        r"^p_true must have at least window=9 epochs, got 8; train longer",
    ),
    "too short for tdds": (
        lambda: scores.tdds(np.full((4, 1, 2), 0.5), 5),
        r"^probs must have at least window=5 epochs, got 4; train longer",
    ),
    "too few divergences": (
        lambda: scores.tdds_from_divergence(HALF),
        r"^divergence must have at least window - 1 = 9 rows, got 8; train longer",
    ),
    "window of one": (
        lambda: scores.dynamic_uncertainty(HALF, 1),
        r"^window must be a whole number of at least 2, got 1; ",
    ),
    "window of half an epoch": (
        lambda: scores.dual(HALF, 2.5),
        r"^window must be a whole number of at least 2, got 2\.5; ",
    ),
    "a single divergence per window": (
        lambda: scores.tdds_from_divergence(HALF, 2),
        r"^window must be a whole number of at least 3, got 2; ",
    ),
    "negative skip": (
        lambda: scores.dynamic_uncertainty(HALF, 2, skip_epochs=-1),
        r"^skip_epochs must be a whole number of at least 0, got -1; ",
    ),
    "decay of zero": (
        lambda: scores.tdds_from_divergence(HALF, 3, 0.0),
        r"^decay must lie in \(0, 1\], got 0\.0; ",
    ),
    "first sample that is NaN": (
        lambda: scores.confidence(NAN_TRACK),
        r"^p_true must be finite, got nan for sample 1 in epoch 6 \(3 of 24 values\); record",
    ),
    "infinite logit": (
        lambda: scores.aum([[[0.0, 1.0], [np.inf, 0.0]]], [0, 1]),
        r"^logits must be finite, got inf for sample 1 in epoch 0 \(1 of 4 values\); ",
    ),
    "logits as probabilities": (
        lambda: scores.el2n([PAIR, [[0.5, 0.5], [-3.0, 4.0]]], [0, 1]),
        r"^probs must lie in \[0, 1\], got -3\.0 for sample 1 in run 1 \(2 of 8 values\); "
        r"pass probabilities, not logits$",
    ),
    "percent": (
        lambda: scores.variability([[0.5, 50.0]]),
        r"^p_true must lie in \[0, 1\], got 50\.0 for sample 1 in epoch 0 ",
    ),
    "missing axis": (
        lambda: scores.entropy([0.5, 0.5]),
        r"^probs must have shape \(n, C\), got \(2,\); ",
    ),
    "too many axes": (
        lambda: scores.el2n(np.zeros((1, 1, 1, 2)), [0]),
        r"^probs must have shape \(n, C\) or \(R, n, C\), got \(1, 1, 1, 2\); ",
    ),
    "no epochs": (
        lambda: scores.confidence(np.zeros((0, 3))),
        r"^p_true must have an entry along every axis of \(T, n\), got shape \(0, 3\); ",
    ),
    "label out of range": (
        lambda: scores.el2n(PAIR, [1, 2]),
        r"^labels must lie in \[0, 2\), got 2 for sample 1 \(1 of 2 values\); ",
    ),
    "negative label": (
        lambda: scores.cross_entropy(PAIR, [-1, 0]),
        r"^labels must lie in \[0, 2\), got -1 for sample 0 ",
    ),
    "labels of another length": (
        lambda: scores.aum([PAIR], [0]),
        r"^labels must have shape \(2,\), got \(1,\); pass one per sample$",
    ),
    "fractional labels": (
        lambda: scores.el2n(PAIR, [0.5, 1.0]),
        r"^labels must be integers, got float64; ",
    ),
    "features of another length": (
        lambda: scores.grand_last_layer(PAIR, [0, 1], [[1.0]]),
        r"^features must have 2 rows, one per row of probs, got 1; ",
    ),
    "epochs of different samples": (
        lambda: scores.divergence(PAIR, PAIR[:1]),
        r"^p_before must have the shape of p_next, \(2, 2\), got \(1, 2\); ",
    ),
    "one class has no margin": (
        lambda: scores.margin([[1.0]]),
        r"^probs must have at least 2 classes, got 1; ",
    ),
    "one class has no aum": (
        lambda: scores.aum([[[1.0]]], [0]),
        r"^logits must have at least 2 classes, got 1; ",
    ),
    "probabilities as truths": (
        lambda: scores.forgetting([[1.0, 0.7]]),
        r"^correct must be true or false, got 0\.7 for sample 1 in epoch 0 ",
    ),
    "presented of another shape": (
        lambda: scores.forgetting([[True, False]], presented=[[True]]),
        r"^presented must have the shape of correct, \(1, 2\), got \(1, 1\); ",
    ),
    "no such end": (
        lambda: scores.forgetting([[True]], "zero"),
        r"^never_learned must be 'hardest' or 'easiest', got 'zero'; ",
    ),
    "no such score": (
        lambda: oriented("eln2", [1.0]),
        r"^name must be one of aum, confidence, .*, got 'eln2'; ",
    ),
    "score too early": (
        lambda: StreamingDynamicUncertainty(2, 3).score(),
        r"^updates must bring more than window=3 values per sample, got 0 for sample 0; train",
    ),
    "tdds too early": (
        lambda: StreamingTDDS(2, 3).score(),
        r"^updates must bring at least window - 1 = 2 values per sample, got 0 for sample 0; ",
    ),
    "position out of range": (
        lambda: StreamingForgetting(2).update([0, 2], [True, True]),
        r"^positions must lie in \[0, 2\), got 2; ",
    ),
    "position twice": (
        lambda: StreamingForgetting(2).update([1, 1], [True, True]),
        r"^positions must be unique within an update, got 1 more than once; ",
    ),
    "positions of two axes": (
        lambda: StreamingForgetting(2).update([[0, 1]], [True, True]),
        r"^positions must have shape \(b,\), got \(1, 2\); ",
    ),
    "mask for positions": (
        lambda: StreamingForgetting(2).update([True, False], [True, True]),
        r"^positions must be integers, got bool; ",
    ),
    "one truth for two positions": (
        lambda: StreamingForgetting(2).update([0, 1], [True]),
        r"^values must have shape \(2,\), got \(1,\); pass one per position$",
    ),
    "one value for two positions": (
        lambda: StreamingTDDS(2).update([0, 1], [1.0]),
        r"^values must have shape \(2,\), got \(1,\); pass one per position$",
    ),
    "streamed logit": (
        lambda: StreamingDynamicUncertainty(9).update([8, 4, 6], [0.5, 3.0, np.nan]),
        r"^values must lie in \[0, 1\], got 3\.0 for sample 4; ",
    ),
    "streamed NaN": (
        lambda: StreamingTDDS(9).update([8], [np.nan]),
        r"^values must be finite and at least 0, got nan for sample 8; ",
    ),
    "negative size": (
        lambda: StreamingTDDS(-1),
        r"^num_samples must be a whole number of at least 0, got -1; ",
    ),
    "state of another window": (
        lambda: StreamingTDDS(2, 5).load_state_dict(StreamingTDDS(2, 4).state_dict()),
        r"^state must have window=5, got 4; ",
    ),
    "state of another scorer": (
        lambda: StreamingTDDS(2).load_state_dict(StreamingForgetting(2).state_dict()),
        r"^state must hold average, count, .*, got before, ",
    ),
    "state of another size": (
        lambda: StreamingForgetting(2).load_state_dict(StreamingForgetting(3).state_dict()),
        r"^state must have num_samples=2, got 3; ",
    ),
    "cut state": (
        lambda: StreamingForgetting(2).load_state_dict(
            StreamingForgetting(2).state_dict() | {"events": [1]}
        ),
        r"^state must have events of shape \(2,\), got \(1,\); ",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_argument_is_refused_with_its_value_and_a_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()
