"""Scores against an independent oracle, hand-worked cases, and the pitfalls of other code."""

import inspect

import numpy as np
import pytest
import reference_scores as reference
from hypothesis import given
from hypothesis import strategies as st
from recordings import outputs, presentations, same, tracks

from shardsieve import scores
from shardsieve.scores import ORIENTATION, StreamingDynamicUncertainty, oriented


@given(tracks(least_epochs=4), st.data())
def test_dynamic_uncertainty_matches_the_reference(q, data):
    skip = data.draw(st.integers(0, len(q) - 3))
    last = data.draw(st.booleans())
    window = data.draw(st.integers(2, len(q) - skip - (not last)))
    options = {
        "include_last": last,
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
def test_moments_of_the_label_probability_match_the_reference(q):
    same(scores.confidence(q), reference.confidence(q.tolist()))
    same(scores.threshold_closeness(q), reference.threshold_closeness(q.tolist()))
    same(scores.variability(q), reference.variability(q.tolist()))


@given(outputs())
def test_el2n_is_the_mean_of_norms_over_runs(recorded):
    p, labels = recorded
    same(scores.el2n(p, labels), reference.el2n(p.tolist(), labels.tolist()))
    same(scores.el2n(p[0], labels), reference.el2n([p[0].tolist()], labels.tolist()))


@given(outputs(), st.booleans(), st.integers(1, 4))
def test_grand_of_the_last_layer_is_the_norm_of_its_written_out_gradient(recorded, bias, dim):
    p, labels = recorded
    features = np.random.default_rng(dim).normal(size=(*p.shape[:-1], dim))
    want = [
        reference.grand_last_layer(one.tolist(), labels.tolist(), inputs.tolist(), bias)
        for one, inputs in zip(p, features, strict=True)
    ]
    same(scores.grand_last_layer(p[0], labels, features[0], bias), want[0])
    same(scores.grand_last_layer(p, labels, features, bias), np.mean(want, axis=0))


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


@pytest.mark.parametrize("name", sorted(ORIENTATION))
def test_every_scorer_has_a_worked_example(name):
    assert f">>> {name}(" in getattr(scores, name).__doc__


def test_low_scores_are_turned_round_so_that_the_hardest_is_kept_first():
    values = np.array([1.0, -2.0, np.nan])
    low = {name for name, row in ORIENTATION.items() if row.keep == "low"}
    assert low == {"aum", "confidence", "margin", "semdedup"}
    for name in sorted(set(ORIENTATION) - {"moderate_distance"}):
        want = -values if name in low else values
        np.testing.assert_array_equal(oriented(name, values), want)
        assert not np.shares_memory(oriented(name, values), values)
