import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardsieve as ss
from shardsieve.doubts import as_stored, quality_of_score
from shardsieve.extrapolate import (
    KNN,
    by_class,
    doubt,
    intervals,
    keep_agreement,
    match_quantiles,
    measure,
    out_of_fold,
    pearson,
    spearman,
    spread,
)
from shardsieve.extrapolate.resampling import resampled

# Few levels, so that ties are common.
pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=30)


@given(pairs, st.integers(0, 9))
def test_intervals_are_those_of_samples_written_out_as_often_as_they_are_drawn(rows, seed):
    true, predicted = np.array(rows, dtype=float).T
    wanted = []
    for draw in range(7):
        copies = resampled(len(true), seed, draw)
        assert copies.sum() == len(true)
        a, b = np.repeat(true, copies), np.repeat(predicted, copies)
        agreed = [keep_agreement(a, b, f) for f in (0.3, 0.5)]
        wanted.append([pearson(a, b), spearman(a, b), *agreed])
    got = intervals(true, predicted, (0.3, 0.5), resamples=7, seed=seed)
    ends = np.percentile(wanted, [2.5, 97.5], axis=0).T
    assert list(got) == ["pearson", "spearman", "0.3", "0.5"]
    np.testing.assert_allclose(list(got.values()), ends, atol=1e-9)


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        a = rng.normal(size=200)
        low, high = intervals(a, a + rng.normal(size=200), (), seed=trial)["pearson"]
        held += low < 0.5**0.5 < high
    assert 33 <= held <= 40


@given(pairs, st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20))
def test_matching_keeps_order_and_ties_and_takes_the_measured_distribution(rows, measured):
    predicted = np.array(rows, dtype=float)[:, 0]
    got = match_quantiles(predicted, measured)
    assert min(measured) <= got.min()
    assert got.max() <= max(measured)
    rise = np.subtract.outer(predicted, predicted)
    assert (np.subtract.outer(got, got)[rise > 0] >= 0).all()
    assert (np.subtract.outer(got, got)[rise == 0] == 0).all()


def test_a_single_prediction_is_matched_to_the_median():
    """As several that are tied are."""
    measured = [0.0, 1.0, 9.0]
    assert match_quantiles([7.0], measured).tolist() == [1.0]
    assert match_quantiles([7.0, 7.0], measured).tolist() == [1.0, 1.0]
    assert match_quantiles([], measured).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: match_quantiles([np.nan], [1.0]),
            "predicted must be finite, got nan for sample 0",
        ),
        (lambda: match_quantiles([1.0], [np.inf]), "measured must be finite, got inf for sample 0"),
        (
            lambda: doubt(measure([1, 2], [1, 2]).to_dict(), 7),
            r"keep_fraction must lie in \(0, 1\]",
        ),
        (lambda: match_quantiles([1.0], []), "measured must hold at least 1 score, got 0; "),
        (lambda: measure([1, 2], [1, 2], labels=[0]), r"labels must be integers of shape \(2,\)"),
        (
            lambda: by_class([1, 2], [1, 2], [0.5, 1]),
            r"labels must be integers of shape \(2,\), got f",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matched_predictions_are_distributed_as_the_measured_scores_to_the_value():
    rng = np.random.default_rng(0)
    measured = np.float32(rng.exponential(size=50))
    got = match_quantiles(rng.normal(size=50), measured)
    np.testing.assert_allclose(np.sort(got), np.sort(measured), rtol=1e-6)
    assert got.dtype == match_quantiles([], measured).dtype == np.float32


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1.0, 1e200, 1e307])
def test_correlations_follow_no_unit(unit):
    true = np.array([1.0, 2.0, 4.0, 4.0])
    assert pearson(true * unit, true) == pytest.approx(1)
    assert pearson(-true * unit, [0, 1, 0, 1]) == pytest.approx(pearson(true, [1, 0, 1, 0]))
    assert spearman(true * unit, true) == pytest.approx(1)
    many = np.linspace(0, 5, 50)
    assert intervals(many * unit, many, ())["pearson"] == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2], [1]), ([[1, 2]], [[1, 2]]), ([], []), ([1], [[1]])], ids=str
)
def test_scores_of_other_shapes_are_not_compared(a, b):
    for compare in (pearson, spearman, spread, lambda a, b: keep_agreement(a, b, 0.5)):
        with pytest.raises(ValueError, match=r"scores must have one shape \(n,\) with n >= 1, got"):
            compare(a, b)


def test_scores_that_are_missing_and_keep_sets_of_none_are_not_compared():
    for compare in (pearson, spearman, spread):
        with pytest.raises(ValueError, match="scores must be finite, got nan for row 1; "):
            compare([1, 2], [1, np.nan])
        with pytest.raises(ValueError, match="scores must be finite, got inf for row 0; "):
            compare([np.inf, 2], [1, 2])
    with pytest.raises(ValueError, match=r"keep_fraction must keep at least 1 of 2 .*, got 0\.2; "):
        keep_agreement([1, 2], [1, 2], 0.2)


def test_matching_widens_what_neighbours_have_averaged_and_changes_no_rank():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 2))
    scores = points[:, 0] + rng.normal(size=500)
    predicted = out_of_fold(lambda: KNN(30), points, scores)
    plain, matched = measure(scores, predicted), measure(scores, match_quantiles(predicted, scores))
    assert plain.spread.ratio < 0.75 < 0.95 < matched.spread.ratio < 1.05
    assert matched.spread.slope < plain.spread.slope
    assert matched.spearman == pytest.approx(plain.spearman)


def test_predictions_matched_to_tied_scores_keep_what_they_know_of_the_keep_set():
    """All alike they were kept by their rows."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=5000)
    events, told = np.maximum(np.round(2 * hard - 1), 0), hard + 0.5 * rng.normal(size=5000)
    matched = match_quantiles(told, events)
    assert (events == 0).mean() > 0.7
    for fraction in (0.1, 0.3, 0.5, 0.9):
        wanted = keep_agreement(events, told, fraction)
        assert keep_agreement(events, matched, fraction) == pytest.approx(wanted, abs=0.01)
        assert ss.keep_top(matched, fraction).tolist() == ss.keep_top(told, fraction).tolist()
    np.testing.assert_allclose(np.sort(matched), np.sort(events), atol=1.001e-3)
    # Seeds of an equal score come in the middle, neither before all of them nor behind.
    assert 0.4 < (matched[np.round(matched) == 1] > 1).mean() < 0.6


def test_spread_is_that_of_numbers_worked_by_hand():
    got = spread([0, 0, 4, 4], [1, 1, 2, 2])
    assert (got.measured_std, got.predicted_std, got.ratio, got.slope) == (2, 0.5, 0.25, 4)
    assert spread(range(101), range(100, -1, -1)).measured == [5, 25, 50, 75, 95]
    small = spread([0, 0, 0.4, 0.4], [0.1, 0.1, 0.2, 0.2])
    assert (small.ratio, small.slope) == pytest.approx((0.25, 4))
    assert spread([1, 1], [0, 1]).ratio == spread([0, 1], [1, 1]).slope == 0
    some, constant = np.arange(7), np.full(7, 0.1)  # whose mean is another number
    assert spread(constant, some).ratio == spread(some, constant).slope == 0


def test_a_prediction_without_accidents_agrees_with_a_run_as_the_root_of_how_runs_agree():
    """So a second run is no bound: its accidents count as well."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    first, second = score + rng.normal(size=(2, 20_000))
    assert pearson(first, second) == pytest.approx(0.5, abs=0.02)
    assert measure(first, score).pearson == pytest.approx(0.5**0.5, abs=0.02)


def test_classes_that_a_prediction_undervalues_show_in_their_kept_shares():
    rows = by_class([4, 3, 2, 1], [1, 2, 4, 3], [0, 0, 7, 7])
    assert [row["class"] for row in rows] == [0, 7]
    assert [row["kept"] for row in rows] == [1, 0]
    assert [row["kept_predicted"] for row in rows] == [0, 1]
    assert [row["spearman"] for row in rows] == pytest.approx([-1, 1])


def test_classes_are_stored_in_short_and_come_back_as_rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 500, size=9000)
    told = measure(*rng.normal(size=(2, 9000)), labels=labels).to_dict()
    kept = as_stored(told)
    assert all(isinstance(text, str) for text in kept["classes"].values())
    assert len(json.dumps(kept["classes"])) < 60 * 500
    back = quality_of_score({"quality": kept})
    assert back.keys() == told.keys()
    for row, want in zip(back["classes"], told["classes"], strict=True):
        assert row == pytest.approx(want, rel=1e-3)
        assert (row["class"], row["samples"]) == (want["class"], want["samples"])
    earlier = quality_of_score({"quality": told})
    assert earlier["classes"] == told["classes"]
    unlabelled = measure([1, 2, 3], [1, 3, 2]).to_dict()
    assert quality_of_score({"quality": as_stored(unlabelled)})["classes"] == []


def test_chance_is_doubted_and_a_good_prediction_is_not():
    rng = np.random.default_rng(0)
    true = rng.normal(size=2000)
    noise = measure(true, rng.normal(size=2000)).to_dict()
    good = measure(true, true + 0.5 * rng.normal(size=2000)).to_dict()
    for fraction in (0.1, 0.45, 0.9):
        assert "not shown to be better than a random" in doubt(noise, fraction)
        assert doubt(good, fraction) is None


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_prediction_that_knows_nothing_is_doubted_where_scores_are_tied_too(fraction):
    """Keep sets that both took the lower row of equals agreed far beyond chance."""
    rng = np.random.default_rng(0)
    few_levels = rng.poisson(1, size=(2, 1000)) * 1.0
    mostly_zero = (rng.random((2, 1000)) < 0.3) * rng.random((2, 1000))
    for true, predicted in (few_levels, mostly_zero, np.zeros((2, 1000))):
        assert keep_agreement(true, predicted, fraction) == pytest.approx(fraction, abs=0.06)
        assert doubt(measure(true, predicted).to_dict(), fraction) is not None
        best = measure(few_levels[0], few_levels[0]).to_dict()
        assert doubt(best, fraction) is None


def test_three_samples_show_nothing():
    """One order of six is right by accident."""
    for fraction in (0.3, 0.5, 0.7, 0.9):
        assert doubt(measure([0, 1, 2], [0, 1, 2]).to_dict(), fraction) is not None


@pytest.mark.parametrize("samples", [5, 8, 12])
def test_agreement_that_any_keep_set_has_is_doubted_of_few_samples_too(samples):
    """Of 5 samples 0.9 keeps all, so that any two keep sets agree."""
    true = np.arange(samples)
    for fraction in (0.3, 0.5, 0.7, 0.9):
        assert doubt(measure(true, true[::-1]).to_dict(), fraction) is not None
        assert (doubt(measure(true, true).to_dict(), fraction) is None) == (
            ss.num_kept(samples, fraction) < samples
        )


def test_each_tried_seed_is_predicted_from_the_others_and_from_all_that_are_not_tried():
    tried, fitted = np.arange(40) % 4 > 0, []

    class Beside:
        def fit(self, embeddings, scores, *, signals):
            np.testing.assert_array_equal(signals[:, 0], scores)
            fitted.append(set(scores.tolist()))

        def predict(self, embeddings, *, signals):
            assert not fitted[-1] & set(signals[:, 0].tolist())
            return signals[:, 0]

    values = np.arange(40, dtype=np.float32)
    how = {"tried": tried, "beside": {"signals": values[:, None]}}
    got = out_of_fold(Beside, values[:, None], values, **how)
    np.testing.assert_array_equal(got[tried], values[tried])
    assert np.isnan(got[~tried]).all()
    assert all(len(seen) == 34 and set(range(0, 40, 4)) <= seen for seen in fitted)
