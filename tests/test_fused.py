import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.extrapolate import KNN, Direct, Fused, pearson
from shardsieve.extrapolate.signals import make_regressor, signal_features


def draw(m, n, seed=0):
    """Embeddings, signals and labels of seeds and rest."""
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(k, 3)).astype("f4"), rng.normal(size=(k, 2, 3)), rng.integers(0, 3, k))
        for k in (m, n)
    ]


def near_by_hand(point, label, pool, k, leave_out=None):
    """What Fused sees of a sample's neighbourhood, one number at a time."""
    rows = [
        (math.dist(point, p), row, s, y) for row, (p, s, y) in enumerate(pool) if row != leave_out
    ]
    near = sorted(rows)[:k]
    scores, ds = [r[2] for r in near], [r[0] for r in near]
    mean = sum(scores) / len(near)
    weights = [math.exp(-d) for d in ds]
    alike = [r[2] for r in near if r[3] == label >= 0]
    return [
        mean,
        sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights),
        math.sqrt(sum((s - mean) ** 2 for s in scores) / len(near)),
        sum(ds) / len(near),
        sum(ds[:5]) / len(ds[:5]),
        len(alike) / len(near),
        sum(alike) / len(alike) if alike else mean,
    ]


@settings(max_examples=15)
@given(st.integers(1, 12), st.booleans(), st.integers(0, 5))
def test_fused_is_a_regression_on_the_features_worked_out_one_by_one(k, all_held_out, seed):
    (points, signals, labels), (rest, rest_signals, rest_labels) = draw(20, 9, seed)
    labels[3] = -1
    scores = np.float32(np.random.default_rng(seed).normal(size=20))
    trained = [] if all_held_out else list(range(0, 20, 2))
    signals[trained] = np.nan
    pool_rows = list(range(20)) if all_held_out else trained
    pool = [(points[i], float(scores[i]), labels[i]) for i in pool_rows]
    held = [i for i in range(20) if i not in trained]
    own = {i: pool_rows.index(i) if all_held_out else None for i in held}
    near = [near_by_hand(points[i], labels[i], pool, k, own[i]) for i in held]
    model = make_regressor("ridge", len(held), 0)
    model.fit(np.c_[signal_features(signals, 20)[held], np.float32(near)], scores[held])
    near = [near_by_hand(p, y, pool, k) for p, y in zip(rest, rest_labels, strict=True)]
    want = model.predict(np.c_[signal_features(rest_signals, 9), np.float32(near)])
    fused = Fused(k, "ridge").fit(points, scores, signals, labels=labels)
    got = fused.predict(rest, rest_signals, labels=rest_labels)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_features_of_several_networks_hold_their_mean_and_deviation():
    got = signal_features([[[1, 5], [3, 5]], [[0, 2], [0, 4]]], 2)
    np.testing.assert_allclose(got, [[1, 5, 3, 5, 2, 5, 1, 0], [0, 2, 0, 4, 0, 3, 0, 1]])


@pytest.mark.parametrize("make", [Direct, Fused])
@pytest.mark.parametrize("regressor", ["ridge", "boosting"])
def test_samples_that_the_network_was_trained_on_teach_nothing(make, regressor):
    (points, signals, _), (rest, rest_signals, _) = draw(400, 300)
    scores = signals[:, 1, 0] + 0.1 * points[:, 0]
    trained = np.arange(400) % 4 == 0
    signals[trained] = np.nan
    memorised = np.where(trained, 50.0, scores)  # would spoil any fit
    got = make(regressor=regressor).fit(points, memorised, signals).predict(rest, rest_signals)
    assert pearson(got, rest_signals[:, 1, 0]) > 0.95
    assert abs(got.mean()) < 1


def test_fused_uses_what_neither_neighbours_nor_signals_know_alone():
    rng = np.random.default_rng(0)
    points, signals = rng.normal(size=(1500, 2)), rng.normal(size=(1500, 1))
    scores = points[:, 0] + signals[:, 0]
    fit, rest = slice(0, 1000), slice(1000, None)
    how = points[fit], scores[fit]
    fused = Fused(20).fit(*how, signals[fit]).predict(points[rest], signals[rest])
    direct = Direct().fit(*how, signals[fit]).predict(points[rest], signals[rest])
    alone = KNN(20).fit(*how).predict(points[rest])
    truth = scores[rest]
    assert max(pearson(truth, direct), pearson(truth, alone)) < 0.8 < 0.95 < pearson(truth, fused)


def test_unknown_signals_and_other_order_of_names_change_nothing_that_is_known():
    (points, signals, _), (rest, rest_signals, _) = draw(200, 50)
    scores = signals[:, 0, 0]
    by_name = {"b": signals[:, 0, 0], "a": signals[:, 1]}
    again = {"a": rest_signals[:, 1], "b": rest_signals[:, 0, 0]}
    direct = Direct("ridge").fit(points, scores, by_name)
    got = direct.predict(rest, again)
    assert pearson(got, rest_signals[:, 0, 0]) > 0.999
    again["a"] = np.full((50, 3), np.nan)
    assert pearson(direct.predict(rest, again), rest_signals[:, 0, 0]) > 0.999


@pytest.mark.parametrize("make", [Direct, Fused])
@pytest.mark.parametrize("shape", [(0,), (0, 2), (0, 3, 2)])
def test_nothing_to_predict_is_nothing(make, shape):
    model = make().fit(np.zeros((4, 2), "f4"), np.arange(4.0), np.ones((4, *shape[1:])))
    assert model.predict(np.zeros((0, 2)), np.zeros(shape)).shape == (0,)


P, S = np.zeros((4, 2), "f4"), np.arange(4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Direct("forest"), "regressor must be one of auto, ridge, boosting"),
        (lambda: Fused(0), "k must be at least 1"),
        (lambda: Direct().predict(P, S), "Direct must be fitted"),
        (lambda: Fused().predict(P, S), "Fused must be fitted"),
        (lambda: Direct().fit(P, S), "signals must be given"),
        (lambda: Direct().fit(P, S, S[:3]), "one row for each of 4"),
        (lambda: Direct().fit(P, S, S * np.nan), "at least one sample"),
        (lambda: Direct().fit(P, S[:2], S), r"scores must have shape \(4,\)"),
        (lambda: Direct().fit(P, S, S).predict(P, np.zeros((4, 2))), "those of fit, which made 1"),
        (lambda: Fused(2).fit(P, S, S).predict(P, S, labels=[0] * 4), "both fit and predict"),
        (lambda: Fused(2).fit(P, S, S, labels=[0.5] * 4), "labels must be integers"),
        (lambda: Fused(2).fit(P[:1], S[:1], S[:1]), "use Direct"),
        (lambda: Direct().fit(P, S, [1, 2, np.inf, 3]), "got an infinity for sample 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
