import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.extrapolate import KNN, Direct, Fused, lesson, pearson
from shardsieve.extrapolate.search import ExactSearch
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


def short_run(m=300, held=60, n=400, seed=0, spoiled=()):
    """Seeds and rest of a run of 4 networks that name the score with noise of their own.

    Trained seeds' signals are turned round in the `spoiled` networks, as where they are memorised.
    """
    rng = np.random.default_rng(seed)
    score = rng.normal(size=m + n)
    signals = score[:, None, None] + 0.5 * rng.normal(size=(m + n, 4, 2))
    trained = np.arange(m) >= held
    signals[:m][np.ix_(trained, list(spoiled))] *= -1
    points = rng.normal(size=(m + n, 3)).astype("f4")
    scores = (score[:m] + 0.5 * rng.normal(size=m)).astype("f4")
    return (points[:m], scores, signals[:m], trained), (points[m:], signals[m:], score[m:])


@settings(max_examples=10)
@given(st.sampled_from([Direct, Fused]), st.integers(0, 3), st.integers(0, 9))
def test_trained_seeds_teach_by_the_share_that_held_out_seeds_bear_out(make, spoiled, seed):
    late = range(4 - spoiled, 4)
    (points, scores, signals, trained), (rest, rest_signals, _) = short_run(
        m=150, held=50, n=40, seed=seed, spoiled=late
    )
    model = make(regressor="ridge").fit(points, scores, signals, trained=trained)
    got = model.predict(rest, rest_signals)
    held = np.flatnonzero(~trained)
    # The same by hand: a line per number of networks, clipped, tried on the held-out seeds.
    hidden = signals.copy()
    hidden[trained] = np.nan
    alone = make(regressor="ridge").fit(points, scores, hidden)
    assert alone.lesson is None
    beside, rest_beside = np.zeros((150, 0)), np.zeros((40, 0))
    if make is Fused:
        pool = [(points[i], float(scores[i]), 0) for i in np.flatnonzero(trained)]
        place = {row: at for at, row in enumerate(np.flatnonzero(trained))}
        beside = np.array(
            [near_by_hand(p, 1, pool, 50, place.get(i)) for i, p in enumerate(points)]
        )
        rest_beside = np.array([near_by_hand(p, 1, pool, 50) for p in rest])
        beside, rest_beside = beside[:, :5], rest_beside[:, :5]
    best = (-1.0, None)
    for count in range(1, 5):
        x = np.c_[signal_features(signals[:, :count], 150), beside].astype("f4")
        y = np.c_[signal_features(rest_signals[:, :count], 40), rest_beside].astype("f4")
        line = make_regressor("ridge", 100, 0).fit(x[trained], scores[trained])
        low, high = x[trained].min(0), x[trained].max(0)
        told = line.predict(np.clip(x[held], low, high))
        agreement = max(pearson(scores[held], told), 0)
        share = agreement / (1 + agreement)
        if share > best[0]:
            unit = (line.predict(np.clip(y, low, high)) - told.mean()) / told.std()
            best = share, scores[held].mean() + scores[held].std() * unit, count
    share, told, count = best
    assert model.lesson.networks == count
    assert model.lesson.share == pytest.approx(share, abs=1e-3)
    want = (1 - share) * alone.predict(rest, rest_signals) + share * told
    np.testing.assert_allclose(got, want, atol=5e-3)
    assert got.dtype == np.float32


@pytest.mark.parametrize("make", [Direct, Fused])
@pytest.mark.parametrize("seed", range(3))
def test_networks_that_have_memorised_the_trained_seeds_are_not_asked(make, seed):
    (points, scores, signals, trained), _ = short_run(600, 200, seed=seed, spoiled=(2, 3))
    assert make().fit(points, scores, signals, trained=trained).lesson.networks <= 2


@pytest.mark.parametrize("make", [Direct, Fused])
def test_trained_seeds_help_where_few_are_held_out_and_change_nothing_where_they_are_wrong(make):
    gains = []
    for seed in range(4):
        seeds, (rest, rest_signals, truth) = short_run(m=500, held=10, seed=seed)
        points, scores, signals, trained = seeds
        hidden = np.where(trained[:, None, None], np.nan, signals)
        alone = make().fit(points, scores, hidden).predict(rest, rest_signals)
        both = make().fit(points, scores, signals, trained=trained).predict(rest, rest_signals)
        gains.append(pearson(truth, both) - pearson(truth, alone))
    assert np.mean(gains) > 0.02
    wrong = np.where(trained, -scores, scores)
    alone = make().fit(points, wrong, hidden).predict(rest, rest_signals)
    both = make().fit(points, wrong, signals, trained=trained)
    assert both.lesson.to_dict()["share"] == 0
    np.testing.assert_array_equal(both.predict(rest, rest_signals), alone)


@pytest.mark.parametrize("make", [Direct, Fused])
def test_what_trained_seeds_teach_depends_on_data_and_seed_alone(make, monkeypatch):
    (points, scores, signals, trained), (rest, rest_signals, _) = short_run()

    def got(seed, signals=signals):
        model = make(seed=seed).fit(points, scores, signals, trained=trained)
        return model.predict(rest, rest_signals)

    np.testing.assert_array_equal(got(0), got(1))
    monkeypatch.setattr(lesson, "MOST", 50)
    np.testing.assert_array_equal(got(0), got(0))
    assert (got(0) != got(1)).any()
    # Trained seeds without signals are no lesson, nor is a single one with them.
    hidden = np.where(trained[:, None, None], np.nan, signals)
    want = got(0, hidden)
    hidden[-1] = signals[-1]
    np.testing.assert_array_equal(got(0, hidden), want)


def test_seeds_are_split_into_held_out_and_trained_ones_with_signals(monkeypatch):
    features = np.where(np.arange(12) == 5, np.nan, np.ones(12))[:, None]

    def found(trained, seed=0):
        return [rows.tolist() for rows in lesson.split(features, np.isin(range(12), trained), seed)]

    assert found([3, 4, 5, 7]) == [[0, 1, 2, 6, 8, 9, 10, 11], [3, 4, 7]]
    assert found([3, 5, 9])[1] == [3, 9]
    assert found([3, 5])[1] == []
    monkeypatch.setattr(lesson, "MOST", 4)
    # Pinned: `extrapolate --append` draws them again, perhaps by a later release.
    assert found(range(2, 12), 0) == [[0, 1], [7, 8, 9, 11]]
    assert found(range(2, 12), 1) == [[0, 1], [2, 3, 9, 11]]


@pytest.mark.parametrize("make", [Direct, Fused])
@pytest.mark.parametrize("same", ["held out", "trained"])
def test_a_lesson_that_no_held_out_seed_can_judge_has_no_share(make, same):
    (points, scores, signals, trained), (rest, rest_signals, _) = short_run(90, 30, n=20)
    scores[trained == (same == "trained")] = 1.0
    model = make(regressor="ridge").fit(points, scores, signals, trained=trained)
    assert model.lesson.to_dict() == {"networks": 1, "share": 0.0}
    hidden = np.where(trained[:, None, None], np.nan, signals)
    alone = make(regressor="ridge").fit(points, scores, hidden).predict(rest, rest_signals)
    np.testing.assert_array_equal(model.predict(rest, rest_signals), alone)


@pytest.mark.parametrize("make", [Direct, Fused])
def test_a_missing_signal_of_trained_seeds_leaves_the_others_to_teach(make):
    (points, scores, signals, trained), (rest, rest_signals, truth) = short_run()
    by_name = {"known": signals[..., 0], "gone": signals[..., 1], "fixed": signals[:, 0, 0]}
    by_name = {n: a[..., None] if a.ndim == 2 else a for n, a in by_name.items()}
    by_name["gone"] = np.where(trained[:, None, None], np.nan, by_name["gone"])
    model = make().fit(points, scores, by_name, trained=trained)
    asked = {"known": rest_signals[..., :1], "gone": rest_signals[..., 1:]}
    got = model.predict(rest, asked | {"fixed": rest_signals[:, 0, 0]})
    assert model.lesson.networks == 4
    assert pearson(truth, got) > 0.9


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


@pytest.mark.parametrize("make", [Direct, lambda: Fused(2)], ids=["direct", "fused"])
@pytest.mark.parametrize(
    "other",
    [{"loss": S, "margin": S}, {"loss": S}, np.stack([S, S], axis=1)],
    ids=["another", "too few", "none"],
)
def test_signals_of_other_names_than_those_of_the_fit_are_refused(make, other):
    """As many features are not the same features."""
    model = make().fit(P, S, {"loss": S, "entropy": 2 * S})
    assert model.predict(P, {"entropy": 2 * S, "loss": S}).shape == (4,)
    with pytest.raises(ValueError, match=r"named as those of fit \(entropy, loss\), got "):
        model.predict(P, other)
    unnamed = make().fit(P, S, np.stack([S, 2 * S], 1))
    with pytest.raises(
        ValueError, match=r"named as those of fit \(no names\), got entropy, loss; "
    ):
        unnamed.predict(P, {"entropy": 2 * S, "loss": S})


def several():
    """Fitted on signals of two networks."""
    signals = np.random.default_rng(0).normal(size=(4, 2, 3))
    return Fused(2).fit(P, S, signals, trained=np.arange(4) > 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Direct("forest"), "regressor must be one of auto, ridge, boosting"),
        (lambda: Fused(0), "k must be a whole number of at least 1, got 0; "),
        (lambda: Fused(1.5), "k must be a whole number of at least 1, got 1.5; "),
        (lambda: Direct().predict(P, S), "Direct must be fitted"),
        (lambda: Fused().predict(P, S), "Fused must be fitted"),
        (lambda: Direct().fit(P, S), "signals must be given"),
        (lambda: Direct().fit(P, S, {}), "signals must be given, "),
        (lambda: Direct().fit(P, S, S[:3]), "one row for each of 4"),
        (lambda: Direct().fit(P, S, S * np.nan), "at least one sample"),
        (lambda: Direct().fit(P, S[:2], S), r"scores must have shape \(4,\)"),
        (lambda: Direct().fit(P, S, S).predict(P, np.zeros((4, 2))), "those of fit, which made 1"),
        (lambda: Fused(2).fit(P, S, S).predict(P, S, labels=[0] * 4), "both fit and predict"),
        (lambda: Fused(2).fit(P, S, S, labels=[0.5] * 4), "labels must be integers"),
        (lambda: Fused(2).fit(P[:1], S[:1], S[:1]), "use Direct"),
        (lambda: Fused(2).fit(P, S, S, trained=[1, 0, 1, 0]), "trained must be booleans"),
        (lambda: Direct().fit(P, S, S, trained=[True]), r"got bool of shape \(1,\)"),
        (lambda: Fused(2).fit(P, S, S, trained=[True] * 4), "trained must leave out a seed"),
        (lambda: several().predict(P, np.ones((4, 3, 2))), "those of fit, which made 17 features"),
        (lambda: Direct().fit(P, S, [1, 2, np.inf, 3]), "got an infinity for sample 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_seeds_are_laid_out_once_for_all_predictions(monkeypatch):
    made = []

    class Counted(ExactSearch):
        def __init__(self, seeds, device):
            made.append(len(seeds))
            super().__init__(seeds, device)

    monkeypatch.setattr("shardsieve.extrapolate.fused.ExactSearch", Counted, raising=False)
    monkeypatch.setattr("shardsieve.extrapolate.knn.ExactSearch", Counted)
    (points, signals, _), (rest, rest_signals, _) = draw(20, 9)
    fused = Fused(5).fit(points, points[:, 0], signals)
    whole = fused.predict(rest, rest_signals)
    parts = [fused.predict(rest[[i]], rest_signals[[i]]) for i in range(9)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
    assert made == [20]


def test_many_seeds_are_searched_by_codes_that_find_nearly_all(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2000, 4)) @ rng.normal(size=(4, 16))
    scores, signals = np.float32(np.sin(points[:, 0])), np.ones((1500, 1))
    signals[300:] = np.nan
    fit = points[:1500], scores[:1500], signals
    exact = Fused(10).fit(*fit)
    assert exact.choose(points[1500:]).search == "exact"
    want = exact.predict(points[1500:], np.ones((500, 1)))
    monkeypatch.setattr("shardsieve.extrapolate.approximate._EXACT_PAIRS", 100)
    coded = Fused(10).fit(*fit)
    found = coded.choose(points[1500:])
    assert found.search == "scan"
    assert found.recall >= 0.98
    got = coded.predict(points[1500:], np.ones((500, 1)))
    assert pearson(got, want) > 0.99
