import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.extrapolate import KNN, cross_validate
from shardsieve.extrapolate.quality import keep_agreement, spearman

setups = st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))


def draw(m, d, seed, n=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)), rng.normal(size=m), rng.normal(size=(n, d))


@given(setups, st.sampled_from(["exp", "mean", "inverse"]))
def test_predictions_match_the_reference(setup, weights):
    m, d, k, seed = setup
    seeds, scores, points = (a.astype(np.float32) for a in draw(m, d, seed))
    points[0] = seeds[0]
    got = KNN(k, weights).fit(seeds, scores).predict(points)
    want = [reference.knn(seeds.tolist(), scores.tolist(), p, k, weights) for p in points.tolist()]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert scores.min() <= got.min() <= got.max() <= scores.max()


@given(
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.integers(1, 40),
    st.sampled_from(["exp", "inverse"]),
)
def test_neighbours_that_agree_are_agreed_with_to_the_bit(score, k, weights):
    seeds, _, points = draw(40, 3, 0)
    got = KNN(k, weights).fit(seeds, np.full(40, score)).predict(points)
    assert set(got.tolist()) == {score}


@given(setups)
def test_the_order_of_seeds_does_not_matter(setup):
    m, d, k, seed = setup
    seeds, scores, points = draw(m, d, seed)
    order = np.random.default_rng(seed + 1).permutation(m)
    a = KNN(k).fit(seeds, scores).predict(points)
    b = KNN(k).fit(seeds[order], scores[order]).predict(points)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_nearest_seed_at_distance_zero_returns_its_own_score():
    seeds, scores, _ = draw(30, 8, 0)
    got = KNN(1).fit(seeds * 1000, scores).predict(seeds * 1000)
    np.testing.assert_array_equal(got, scores.astype(np.float32))


def test_far_samples_do_not_underflow_and_blocks_do_not_matter():
    seeds, scores, _ = draw(40, 3, 1)
    points = np.random.default_rng(2).normal(size=(9000, 3)) + 1e3
    model = KNN(5).fit(seeds, scores)
    got = model.predict(points)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[8999:], model.predict(points[8999:]), rtol=1e-4)
    assert got.min() >= scores.min() - 1e-6
    assert got.max() <= scores.max() + 1e-6


def test_cross_validation_tells_a_smooth_score_from_noise():
    points = np.random.default_rng(0).normal(size=(400, 2))
    noise = np.random.default_rng(1).normal(size=400)
    good = cross_validate(lambda: KNN(5), points, points.sum(axis=1))
    bad = cross_validate(lambda: KNN(5), points, noise)
    assert good.spearman > 0.95
    assert good.agreement["0.5"] > 0.9
    assert abs(bad.spearman) < 0.2
    assert good.num_held_out == 400


def test_agreement_and_ranks_match_values_worked_by_hand():
    assert keep_agreement([4, 3, 2, 1], [4, 1, 3, 2], 0.5) == 0.5
    # Row 0 and one of rows 1 and 2 are kept, of the prediction one of rows 0 and 3 beside row 1.
    assert keep_agreement([4, 2, 2, 1], [3, 5, 1, 3], 0.5) == (0.5 + 0.5) / 2
    assert keep_agreement([4, 2, 2, 1], [4, 2, 2, 1], 0.5) == (1 + 0.25 + 0.25) / 2
    assert spearman([1, 1, 3], [1, 2, 3]) == pytest.approx(3**0.5 / 2)
    assert spearman([1, 1], [1, 2]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KNN(0), "k must be a whole number of at least 1, got 0; "),
        (lambda: KNN(2.5), "k must be a whole number of at least 1, got 2.5; "),
        (lambda: KNN("auto"), "k must be a whole number of at least 1, got 'auto'; "),
        (lambda: KNN(weights="gauss"), "weights must be one of"),
        (lambda: KNN().predict([[1.0]]), "must be fitted"),
        (lambda: KNN().fit([[1.0]], [1.0, 2.0]), r"scores must have shape \(1,\)"),
        (lambda: KNN().fit([[np.nan]], [1.0]), "row 0 is not"),
        (lambda: KNN().fit([[1.0], [1e300]], [1.0, 2.0]), "got inf: row 1 is not"),
        (lambda: KNN().fit([[1.0]], [np.nan]), "got nan for seed 0"),
        (lambda: KNN(metric="cosine").fit([[2.0], [0.0]], [1.0, 2.0]), "a zero vector in row 1; "),
        (lambda: KNN().fit([[1.0]], [1.0]).predict([[1.0, 2.0]]), r"shape \(n, 1\)"),
        (lambda: spearman(np.ma.masked_equal([1, 2], 2), [1, 2]), "no masked values"),
        (lambda: cross_validate(KNN, [[1.0]] * 3, [1.0] * 3), r"folds must lie in \[2, 3\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
