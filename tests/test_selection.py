from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tars import write_shards

import shardsieve as ss
from shardsieve.order import permutation

scores = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 7.0]), min_size=1, max_size=40)
fractions = st.floats(0.01, 1.0)


@pytest.mark.parametrize(
    ("n", "fraction", "kept"),
    [
        (50_000, 1 - 0.9, 5000),
        (50_000, 0.2, 10_000),
        (10, 0.05, 1),
        (3, 0.5, 2),
        (7, 1.0, 7),
        (0, 0.5, 0),
    ],
)
def test_num_kept_rounds_half_up(n, fraction, kept):
    assert ss.num_kept(n, fraction) == kept


@given(st.integers(0, 2_000_000), st.integers(1, 99))
@example(5, 10)  # as 1 - 0.9 none were kept
@example(50, 29)
def test_half_a_sample_rounds_up_however_the_fraction_was_written(n, percent):
    wanted = (2 * n * percent + 100) // 200
    assert ss.num_kept(n, percent / 100) == ss.num_kept(n, 1 - (100 - percent) / 100) == wanted


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), None, [0.5]])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"keep_fraction must lie in \(0, 1\]"):
        ss.num_kept(10, fraction)


@given(scores, fractions, fractions)
def test_top_keep_sets_nest(values, a, b):
    small, large = sorted((a, b))
    assert set(ss.keep_top(values, small)) <= set(ss.keep_top(values, large))


@given(scores, fractions)
def test_top_equals_a_slow_sort_with_ties_to_the_lower_row(values, fraction):
    ranked = sorted(range(len(values)), key=lambda row: (-values[row], row))
    assert ss.keep_top(values, fraction).tolist() == sorted(
        ranked[: ss.num_kept(len(values), fraction)]
    )


@given(st.integers(1, 60), fractions, fractions, st.integers(0, 5))
def test_random_keep_sets_nest_and_have_the_right_size(n, a, b, seed):
    small, large = sorted((a, b))
    kept = ss.keep_random(n, small, seed=seed)
    assert len(kept) == len(set(kept)) == ss.num_kept(n, small)
    assert set(kept) <= set(ss.keep_random(n, large, seed=seed))


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 3)), min_size=1), fractions)
def test_stratified_keeps_the_exact_total_and_fair_shares(rows, fraction):
    values, labels = map(np.array, zip(*rows, strict=True))
    kept = ss.keep_stratified(values, labels, fraction)
    assert len(kept) == ss.num_kept(len(rows), fraction)
    for label in np.unique(labels):
        share = (labels == label).sum() * len(kept) / len(rows)
        assert abs((labels[kept] == label).sum() - share) < 1


def test_moderate_keeps_the_middle_distances():
    points = np.array([[0.0], [1], [2], [3], [10]])
    assert ss.keep_moderate(points, np.zeros(5, int), 0.4).tolist() == [0, 3]


@example(60, 55)  # 60 * (0.5 - 0.55 / 2) is 13.499999999999998
@given(st.integers(1, 80), st.integers(1, 100))
def test_moderate_keeps_the_published_window_where_that_has_the_exact_count(n, percent):
    f = Fraction(percent, 100)
    low, high = (floor(n * (Fraction(1, 2) + side * f / 2) + Fraction(1, 2)) for side in (-1, 1))
    assume(high - low == ss.num_kept(n, percent / 100))
    points = np.arange(n, dtype=float)[:, None]
    distances = np.abs(points[:, 0] - np.median(points))
    want = np.sort(np.argsort(distances, kind="stable")[low:high])
    np.testing.assert_array_equal(ss.keep_moderate(points, np.zeros(n, int), percent / 100), want)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ss.MissingScoreError, match=r"got nan for row 1 \(1 of 2"):
        ss.keep_top([1.0, np.nan], 0.5)
    with pytest.raises(ss.MissingScoreError, match="labels must be known"):
        ss.keep_stratified([1.0, 2.0], [0, -1], 0.5)


def test_select_follows_its_rule_on_a_store(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [5, 1, 7]), tmp_path / "s.zarr")
    values = np.arange(13.0)
    store.put_score("up", values)
    top = ss.select(store, score="up", keep_fraction=0.5)
    assert top.ids().tolist() == store.ids()[-7:].tolist()
    assert top.counts.tolist() == [0, 0, 7]
    assert top.positions(2).tolist() == list(range(7))
    assert len(ss.select(store, score="up", rule="threshold", threshold=10)) == 3
    assert len(ss.select(store, score="up", rule="stratified", keep_fraction=0.3)) == 4
    assert len(ss.select(store, rule="random", keep_fraction=0.3, seed=2)) == 4
    assert len(ss.select(store, keep_fraction=1)) == 13
    store.put_score("holes", np.where(values == 6, np.nan, values))
    with pytest.raises(ss.MissingScoreError, match="sample id 128"):
        ss.select(store, score="holes", keep_fraction=0.5)
    with pytest.raises(ValueError, match="rule must be one of"):
        ss.select(store, score="up", keep_fraction=0.5, rule="best")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_scores_that_equal_a_threshold_are_kept_in_every_precision(kind):
    for threshold in np.arange(-20, 21) / 10:
        scores = np.array([threshold - 0.1, threshold, threshold + 0.1], dtype=kind)
        assert ss.keep_threshold(scores, threshold).tolist() == [1, 2]
    assert ss.keep_threshold(scores, 1e300).tolist() == []
    assert ss.keep_threshold(scores, -1e300).tolist() == [0, 1, 2]
    assert ss.keep_threshold(scores, -np.inf).tolist() == [0, 1, 2]


def test_stored_scores_that_equal_a_threshold_are_kept(tmp_path):
    """The store holds float32: that of 0.7 is less than what was put, that of 0.1 is more."""
    store = ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    for threshold in (0.7, 0.1, -0.1, 1 / 3):
        store.put_score("own", [threshold - 0.1, threshold, threshold + 0.1])
        kept = ss.select(store, score="own", rule="threshold", threshold=threshold)
        assert kept.ids().tolist() == [1, 2], threshold


def test_the_permutation_is_pinned_and_is_one():
    """Runs resume across releases, so a new order is a breaking change: announce it."""
    assert permutation(8, 0, 0).tolist() == [0, 7, 2, 5, 4, 6, 3, 1]
    assert sorted(permutation(1000, 3, 1)) == list(range(1000))
    assert permutation(1000, 3, 1).tolist() != permutation(1000, 3, 2).tolist()


def test_draws_are_pinned():
    """Runs of a rule that draws resume across releases too."""
    assert ss.keep_random(30, 0.2).tolist() == [4, 11, 13, 17, 21, 26]
    assert ss.keep_ccs(np.zeros(30), 0.2).tolist() == [3, 4, 7, 11, 15, 21]
    assert ss.keep_beta(np.ones(30), np.full(30, 0.5), 0.2).tolist() == [1, 17, 20, 21, 24, 27]


@pytest.mark.parametrize(
    "keep",
    [
        lambda none: ss.keep_top(none, 0.5),
        lambda none: ss.keep_random(0, 0.5),
        lambda none: ss.keep_ccs(none, 0.5),
        lambda none: ss.keep_class_balanced(none, none.astype(np.int64), 0.5, class_floor=2),
        lambda none: ss.keep_beta(none, none, 0.5),
        lambda none: ss.keep_threshold(none, 0.0),
        lambda none: ss.keep_moderate(none.reshape(0, 2), none.astype(np.int64), 0.5),
    ],
    ids=["top", "random", "ccs", "class_balanced", "beta", "threshold", "moderate"],
)
def test_of_nothing_nothing_is_kept(keep):
    kept = keep(np.zeros(0))
    assert (kept.shape, kept.dtype) == ((0,), np.int64)
