"""Stratified rules (by class and by score), thresholds, missing scores, and `select`'s options."""

import functools
from collections import Counter

import numpy as np
import pytest
import reference_rules as reference
import webdataset as wds
from hypothesis import example, given
from hypothesis import strategies as st
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.order import uniform
from shardsieve.rules import Asked, checked_rule
from shardsieve.selection import class_quotas
from shardsieve.strata import without_hardest

# Whole numbers: ties, edges of bins and negative values come up all the time.
values = st.lists(st.integers(-6, 9), min_size=1, max_size=60)
shares = st.integers(1, 16).map(lambda eighths: eighths / 16)
cuts = st.integers(0, 15).map(lambda eighths: eighths / 16)


# Ranges of the score -----------------------------------------------------------------------


@given(values, shares, cuts, st.integers(1, 12), st.integers(0, 3))
def test_ccs_gives_every_range_of_the_score_its_budget(scores, fraction, cut, bins, seed):
    left = reference.cut(scores, cut)
    count = reference.rounded(fraction * len(scores))
    if count > len(left):
        with pytest.raises(ValueError, match=r"^keep_fraction must be at most what hard_cutoff="):
            ss.keep_ccs(scores, fraction, hard_cutoff=cut, bins=bins, seed=seed)
        return
    kept = ss.keep_ccs(scores, fraction, hard_cutoff=cut, bins=bins, seed=seed).tolist()
    assert kept == sorted(set(kept) & set(left))
    assert len(kept) == count
    bin_of = dict(zip(left, reference.bins_of([scores[row] for row in left], bins), strict=True))
    sizes = Counter(bin_of.values())
    want = reference.budgets([sizes[one] for one in range(bins)], count)
    got = Counter(bin_of[row] for row in kept)
    assert [got[one] for one in range(bins)] == want


@given(values, shares, st.integers(1, 12))
def test_ccs_follows_neither_the_origin_nor_the_unit_of_the_score(scores, fraction, bins):
    kept = ss.keep_ccs(scores, fraction, bins=bins)
    moved = [4.0 * value - 1000 for value in scores]
    np.testing.assert_array_equal(ss.keep_ccs(moved, fraction, bins=bins), kept)


def test_the_best_sample_is_in_the_top_bin_where_every_score_is_negative():
    """The published code loses it: its upper edge is the maximum times 1.0001."""
    scores = [-5.0, -4.0, -3.0, -2.0, -1.0]
    assert 4 in ss.keep_ccs(scores, 0.4, bins=2, hard_cutoff=0)
    assert len(ss.keep_ccs(scores, 1.0, bins=2)) == 5


def test_a_draw_from_a_bin_is_uniform_and_seeded():
    scores = np.zeros(12)
    draws = [ss.keep_ccs(scores, 0.25, seed=seed) for seed in range(800)]
    np.testing.assert_array_equal(draws[3], ss.keep_ccs(scores, 0.25, seed=3))
    counts = np.bincount(np.concatenate(draws), minlength=12)
    # 800 draws of 3 from 12: 200 each, standard deviation 12.2.
    assert np.abs(counts - 200).max() < 55


def test_the_cut_goes_by_its_own_difficulty():
    scores, hardness = np.arange(10.0), np.arange(10.0)[::-1]
    kept = ss.keep_ccs(scores, 0.7, hard_cutoff=0.3, difficulty=hardness)
    assert kept.tolist() == list(range(3, 10))
    assert ss.keep_ccs(scores, 0.7, hard_cutoff=0.3).tolist() == list(range(7))


def test_huge_ranges_do_not_overflow():
    scores = [-1.7e308, -1.6e308, 1.6e308, 1.7e308]
    for seed in range(8):
        kept = ss.keep_ccs(scores, 0.5, bins=2, seed=seed)
        assert len(set(kept) & {0, 1}) == len(set(kept) & {2, 3}) == 1


# Classes -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 180), st.integers(0, 8))
@example([5, 1, 29, 22, 2, 1], 43, 2)  # two classes are at their floor, one is below it
def test_quotas_are_the_largest_remainders_above_their_floors(sizes, total, floor):
    total = min(total, sum(sizes))
    if sum(min(size, floor) for size in sizes) > total:
        with pytest.raises(ValueError, match=r"^class_floor must leave its share to every class"):
            class_quotas(sizes, total, floor)
        return
    got = class_quotas(sizes, total, floor)
    assert got.tolist() == reference.quotas(sizes, total, floor)
    assert got.sum() == total
    assert all(min(size, floor) <= kept <= size for size, kept in zip(sizes, got, strict=True))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1), shares)
def test_class_balanced_keeps_the_best_of_every_class(rows, fraction):
    scores, labels = map(np.array, zip(*rows, strict=True))
    kept = ss.keep_class_balanced(scores, labels, fraction).tolist()
    assert kept == ss.keep_stratified(scores, labels, fraction).tolist()
    sizes = [int((labels == c).sum()) for c in range(4)]
    quotas = reference.quotas(sizes, reference.rounded(fraction * len(rows)))
    for c in range(4):
        own = sorted(np.flatnonzero(labels == c), key=lambda row: (-scores[row], row))
        assert sorted(own[: quotas[c]]) == [row for row in kept if labels[row] == c]


def test_a_floor_saves_a_rare_class():
    labels = [0] * 18 + [1, 1]
    scores = np.arange(20.0)[::-1]
    assert not set(ss.keep_class_balanced(scores, labels, 0.2)) & {18, 19}
    kept = ss.keep_class_balanced(scores, labels, 0.2, class_floor=1)
    assert kept.tolist() == [0, 1, 2, 18]


def test_both_kinds_of_strata_go_through_one_door():
    scores = np.arange(10.0)
    labels = [0, 1] * 5
    assert ss.keep_stratified(scores, labels, 0.4).tolist() == [6, 7, 8, 9]
    ccs = ss.keep_ccs(scores, 0.4, hard_cutoff=0.2, seed=3).tolist()
    assert ss.keep_stratified(scores, None, 0.4, hard_cutoff=0.2, seed=3).tolist() == ccs
    drawn = [ss.keep_stratified(scores, 0.4, bins=2, seed=seed).tolist() for seed in range(4)]
    assert drawn == [ss.keep_ccs(scores, 0.4, bins=2, seed=seed).tolist() for seed in range(4)]
    assert drawn[0] not in drawn[1:]
    plain = ss.keep_ccs(scores, 0.4).tolist()
    assert ss.keep_stratified(scores, keep_fraction=0.4).tolist() == plain
    assert ss.keep_stratified(scores, 0.4).tolist() == plain


# Thresholds --------------------------------------------------------------------------------


@given(values, st.integers(-8, 10))
def test_a_threshold_keeps_equals_together(scores, threshold):
    want = [row for row, value in enumerate(scores) if value >= threshold]
    assert ss.keep_threshold(scores, threshold).tolist() == want


# Beta --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.8])
def test_beta_draws_as_successive_weighted_draws_do(fraction):
    rng = np.random.default_rng(5)
    scores, sure = rng.random(5), rng.random(5)
    weights = reference.beta_weights(scores, sure, fraction)
    count, times = ss.num_kept(5, fraction), np.zeros(5)
    for seed in range(1500):
        times[ss.keep_beta(scores, sure, fraction, seed=seed)] += 1
    want = reference.drawn_shares(weights, count)
    np.testing.assert_allclose(times / 1500, want, atol=4 * 0.5 / np.sqrt(1500))


@given(st.lists(st.tuples(st.floats(0, 1e300), st.floats(0, 1)), min_size=1, max_size=40), shares)
def test_beta_keeps_the_exact_number_whatever_the_values(pairs, fraction):
    scores, sure = map(np.array, zip(*pairs, strict=True))
    kept = ss.keep_beta(scores, sure, fraction)
    assert len(set(kept.tolist())) == ss.num_kept(len(pairs), fraction)
    assert kept.tolist() == sorted(kept.tolist())


@pytest.mark.parametrize("exponent", [4, 11])
def test_beta_goes_by_the_ten_highest_of_many(exponent):
    rng = np.random.default_rng(6)
    scores, lots = rng.random(200), uniform(200, 7, 0xBE7A)
    sure = (scores + rng.random(200)) / 2
    for fraction in (0.1, 0.5, 0.9):
        weights = reference.beta_weights(scores, sure, fraction, exponent)
        first = np.argsort(-np.log(lots) / weights)[: ss.num_kept(200, fraction)]
        kept = ss.keep_beta(scores, sure, fraction, exponent=exponent, seed=7)
        np.testing.assert_array_equal(kept, np.sort(first))


def test_beta_takes_0_and_1_for_the_least_and_most_that_float32_tells():
    sure = np.arange(60) % 3 / 2  # 0, 1/2 and 1
    for fraction in (0.05, 0.5, 0.9):
        kept = ss.keep_beta(np.ones(60), sure, fraction)
        told = np.clip(sure, 2.0**-24, 1 - 2.0**-24)
        np.testing.assert_array_equal(ss.keep_beta(np.ones(60), told, fraction), kept)


def test_beta_refuses_what_is_no_dual_score_and_no_confidence():
    with pytest.raises(ValueError, match=r"scores must lie in \[0, inf\], got -1"):
        ss.keep_beta([-1.0, 1], [0.5, 0.5], 0.5)
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], got 2"):
        ss.keep_beta([1.0, 1], [0.5, 2], 0.5)
    with pytest.raises(ValueError, match="exponent must be above 0"):
        ss.keep_beta([1.0, 1], [0.5, 0.5], 0.5, exponent=0)
    with pytest.raises(ValueError, match="shape of scores"):
        ss.keep_beta([1.0, 1], [0.5], 0.5)


# A store -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rules")
    store = ss.index(write_shards(folder / "d", [20, 20]), folder / "s.zarr")
    rng = np.random.default_rng(0)
    store.put_score("score", rng.normal(size=40) - 5)
    store.put_score("hard", rng.normal(size=40))
    store.put_score("holes", np.where(np.arange(40) % 8 == 0, np.nan, np.arange(40.0) - 30))
    store.embedding_array("mine", 2)[:, :20] = rng.normal(size=(2, 20, 2))
    return store


def rows_of(store, **how):
    return store.rows(ss.select(store, **how).ids()).tolist()


def test_select_is_each_rules_own_function(store):
    scores, labels = store.score("score"), store.labels()
    half = {"score": "score", "keep_fraction": 0.5}
    ccs = ss.keep_ccs(scores, 0.5, bins=50, seed=4).tolist()
    assert ss.keep_ccs(scores, 0.5, seed=4).tolist() == ccs
    assert rows_of(store, rule="ccs", seed=4, **half) == ccs
    assert rows_of(store, rule="stratified", hard_cutoff=0.0, seed=4, **half) == ccs
    how = {"hard_cutoff": 0.25, "bins": 5}
    want = ss.keep_ccs(scores, 0.5, difficulty=store.score("hard"), **how).tolist()
    assert rows_of(store, rule="ccs", difficulty="hard", **how, **half) == want
    drawn = ss.keep_random(40, 0.5, seed=4).tolist()
    assert rows_of(store, rule="random", keep_fraction=0.5, seed=4) == drawn
    balanced = ss.keep_class_balanced(scores, labels, 0.5).tolist()
    assert rows_of(store, rule="stratified", **half) == balanced
    assert rows_of(store, rule="class_balanced", **half) == balanced
    want = ss.keep_class_balanced(scores, labels, 0.3, class_floor=4).tolist()
    few = {"score": "score", "keep_fraction": 0.3}
    assert rows_of(store, rule="stratified", class_floor=4, **few) == want
    want = ss.keep_threshold(scores, -5).tolist()
    assert rows_of(store, rule="threshold", score="score", threshold=-5) == want
    sure = np.linspace(0.1, 0.9, 40)
    store.put_score("unsure", -sure)
    store.put_score("dual", np.exp(scores))
    want = ss.keep_beta(store.score("dual"), -store.score("unsure"), 0.3, seed=4).tolist()
    how = {"score": "dual", "difficulty": "unsure", "keep_fraction": 0.3, "seed": 4}
    assert rows_of(store, rule="beta", **how) == want
    with pytest.raises(ss.MissingScoreError, match="difficulty must name the stored confidence"):
        ss.select(store, rule="beta", score="dual", keep_fraction=0.3)
    store.put_score("torn", np.where(np.arange(40) % 2, -sure, np.nan))
    how |= {"rule": "beta", "difficulty": "torn", "drop_missing": True}
    want = ss.keep_beta(store.score("dual")[1::2], -store.score("torn")[1::2], 12 / 20, seed=4)
    assert rows_of(store, **how) == (2 * want + 1).tolist()
    assert rows_of(store, **how | {"keep_fraction": 0.5}) == list(range(1, 40, 2))
    with pytest.raises(ss.MissingScoreError, match="more than the 20 samples with scores 'dual'"):
        ss.select(store, **how | {"keep_fraction": 0.6})
    want = ss.keep_moderate(store.embedding("mine"), labels, 0.3).tolist()
    assert rows_of(store, rule="moderate", keep_fraction=0.3) == want


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("random", {"drop_missing": True, "keep_fraction": 0.5}),
        ("top", {"drop_missing": True, "keep_fraction": 1}),
        ("ccs", {"hard_cutoff": 0.3, "keep_fraction": 1}),
    ],
)
def test_what_a_score_alone_could_leave_out_is_not_passed_over(store, rule, how):
    """Of all samples too, which nothing else needs a score for."""
    with pytest.raises(ss.MissingScoreError, match="name a stored score"):
        ss.select(store, rule=rule, **how)


def test_the_strata_of_a_store_without_labels_are_of_the_score(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [(f"{row:02d}.jpg", b"x") for row in range(40)])
    bare = ss.index(shard, tmp_path / "bare.zarr")
    scores = np.random.default_rng(0).normal(size=40).astype(np.float32)
    bare.put_score("mine", scores)
    ccs = ss.keep_ccs(scores, 0.5, seed=4).tolist()
    half = {"score": "mine", "keep_fraction": 0.5}
    assert rows_of(bare, rule="stratified", seed=4, **half) == ccs
    with pytest.raises(ss.MissingScoreError, match=r"name a stored score \(mine\), got None"):
        ss.select(bare, rule="ccs", keep_fraction=0.5)
    for asked in ({"rule": "stratified", "class_floor": 1}, {"rule": "class_balanced"}):
        with pytest.raises(ss.MissingScoreError, match="labels must be known"):
            ss.select(bare, **asked, **half)


def test_the_strata_of_a_store_with_some_labels_are_classes_and_a_missing_one_is_told(tmp_path):
    members = [("a.jpg", b"x"), ("b.cls", b"1"), ("c.cls", b"0")]
    some = ss.index(write_tar(tmp_path / "s.tar", members), tmp_path / "some.zarr")
    with pytest.raises(ss.MissingScoreError, match=r"name a stored score \(none yet\), got None"):
        ss.select(some, rule="top", keep_fraction=0.5)
    some.put_score("mine", range(3))
    with pytest.raises(ss.MissingScoreError, match="labels must be known"):
        ss.select(some, rule="stratified", score="mine", keep_fraction=0.5)


def test_one_class_is_a_stratum_too(tmp_path):
    members = [(f"{row:02d}.cls", b"0") for row in range(40)]
    store = ss.index(write_tar(tmp_path / "s.tar", members), tmp_path / "s.zarr")
    store.put_score("mine", scores := np.random.default_rng(0).normal(size=40))
    kept = rows_of(store, rule="stratified", score="mine", keep_fraction=0.5)
    assert kept == ss.keep_top(scores, 0.5).tolist() != ss.keep_ccs(scores, 0.5).tolist()


@pytest.mark.parametrize("rule", ["top", "random", "stratified", "ccs", "threshold"])
def test_missing_scores_are_refused_or_left_out_by_every_rule(store, rule):
    how = {"score": "holes", "rule": rule, "keep_fraction": 0.5}
    how |= {"threshold": -100.0} if rule == "threshold" else {}
    scored = np.flatnonzero(np.isfinite(store.score("holes")))
    if rule != "random":
        with pytest.raises(ss.MissingScoreError, match=r"5 of 40 are not scored"):
            ss.select(store, **how)
    kept = rows_of(store, drop_missing=True, **how)
    assert set(kept) <= set(scored)
    assert len(kept) == (35 if rule == "threshold" else 20)
    if rule != "threshold":
        all_scored = how | {"keep_fraction": 35 / 40, "drop_missing": True}
        assert rows_of(store, **all_scored) == scored.tolist()
    if rule == "top":
        assert kept == scored[-20:].tolist()
    if rule == "random":
        assert kept == scored[ss.keep_random(35, 20 / 35)].tolist()
    if rule == "ccs":
        own = ss.keep_ccs(store.score("holes")[scored], 20 / 35)
        assert kept == scored[own].tolist()
    for fraction in (0.9, 1.0) if rule != "threshold" else ():
        with pytest.raises(ss.MissingScoreError, match="more than the 35 samples"):
            ss.select(store, drop_missing=True, **how | {"keep_fraction": fraction})


def test_moderate_leaves_samples_without_an_embedding_out_when_asked(store):
    points = store.embedding("mine").astype(np.float64)
    points[[3, 30]] = np.nan
    store.embedding_array("torn", 2)[:, :20] = points.reshape(2, 20, 2)
    how = {"rule": "moderate", "embedding": "torn", "keep_fraction": 0.5}
    with pytest.raises(ss.MissingScoreError, match="got 2 of 40 without"):
        ss.select(store, **how)
    present = np.flatnonzero(np.isfinite(points[:, 0]))
    kept = rows_of(store, drop_missing=True, **how)
    own = ss.keep_moderate(store.embedding("torn")[present], store.labels()[present], 20 / 38)
    assert kept == present[own].tolist()
    with pytest.raises(ss.MissingScoreError, match="got 2 of 40 without"):
        ss.select(store, drop_missing=True, **how | {"keep_fraction": 1.0})
    assert rows_of(store, **how | {"keep_fraction": 1.0}) == list(range(40))


MISUSED = {
    "floor of a plain top": ({"class_floor": 2}, r"^class_floor must come with rule stratified or"),
    "cut-off of classes": (
        {"rule": "class_balanced", "hard_cutoff": 0.1},
        r"^hard_cutoff must come with rule stratified or ccs, got rule 'class_balanced'; ",
    ),
    "threshold of a top": ({"threshold": 1.0}, r"^threshold must come with rule threshold, got"),
    "embedding of a top": ({"embedding": "mine"}, r"^embedding must come with rule moderate, "),
    "both kinds of strata": (
        {"rule": "stratified", "hard_cutoff": 0.1, "class_floor": 1},
        r"^class_floor must not come with hard_cutoff, got both; ",
    ),
    "cut of everything": (
        {"rule": "ccs", "hard_cutoff": 1.0},
        r"^hard_cutoff must lie in \[0, 1\), got 1\.0; ",
    ),
    "cut that is a text": (
        {"rule": "ccs", "hard_cutoff": "0.1"},
        r"^hard_cutoff must lie in \[0, 1\), got '0\.1'; ",
    ),
    "cut of too much": (
        {"rule": "ccs", "hard_cutoff": 0.6},
        r"^keep_fraction must be at most what hard_cutoff=0\.6 leaves, got 20 to keep of 16 left; ",
    ),
    "no bins": ({"rule": "ccs", "bins": 0}, r"^bins must be at least 1, got 0; "),
    "negative floor": (
        {"rule": "stratified", "class_floor": -1},
        r"^class_floor must be at least 0, got -1",
    ),
    "floors above what is kept": (
        {"rule": "stratified", "class_floor": 9},
        r"^class_floor must leave its share to every class, got 9 for 3 classes ",
    ),
    "no threshold": ({"rule": "threshold"}, r"^threshold must be given for rule 'threshold', "),
    "threshold that is NaN": (
        {"rule": "threshold", "threshold": float("nan")},
        r"^threshold must be a number, got nan",
    ),
    "no fraction": ({"keep_fraction": None}, r"^keep_fraction must be given for rule 'top', "),
}
SEEN_IN_THE_STORE = {"cut of too much", "floors above what is kept", "no fraction"}


@pytest.mark.parametrize("name", MISUSED)
def test_an_option_of_another_rule_is_refused(store, name):
    how, message = MISUSED[name]
    asked = {"rule": "top", "score": "score", "keep_fraction": 0.5, **how}
    with pytest.raises(ValueError, match=message):
        ss.select(store, **asked)
    if name not in SEEN_IN_THE_STORE:
        with pytest.raises(ValueError, match=message):
            checked_rule(asked.pop("rule"), Asked(**asked))


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match=r"^class_floor must come with labels, got 2"):
        ss.keep_stratified([1.0, 2.0], keep_fraction=0.5, class_floor=2)
    for how in ({"hard_cutoff": 0.1}, {"difficulty": [0.0, 1.0]}, {"bins": 7}):
        with pytest.raises(
            ValueError, match=r"^hard_cutoff, difficulty and bins must come without"
        ):
            ss.keep_stratified([1.0, 2.0], [0, 1], 0.5, **how)
    with pytest.raises(ValueError, match=r"^keep_fraction must be given, got None"):
        ss.keep_stratified([1.0, 2.0], [0, 1])
    with pytest.raises(
        ss.MissingScoreError, match=r"^difficulty must be finite, got nan for row 1"
    ):
        ss.keep_ccs([1.0, 2.0], 0.5, difficulty=[0.0, np.nan])
    with pytest.raises(ValueError, match=r"^difficulty must have the shape of scores"):
        ss.keep_ccs([1.0, 2.0], 0.5, difficulty=[0.0])
    with pytest.raises(ValueError, match=r"^scores must have shape \(n,\), got \(1, 2\)"):
        ss.keep_top([[1.0, 2.0]], 0.5)
    with pytest.raises(ValueError, match=r"^labels must be integers, got float64"):
        ss.keep_class_balanced([1.0, 2.0], [0.0, 1.0], 0.5)
    with pytest.raises(ValueError, match=r"^labels must have shape \(2,\), got \(\)"):
        ss.keep_stratified([1.0, 2.0], 0.3, 0.5)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match=rf"^class_floor must be at least 0, got {wrong}"):
            ss.keep_class_balanced([1.0, 2.0], [0, 1], 0.5, class_floor=wrong)
        with pytest.raises(ValueError, match=rf"^num_samples must be a whole number.*got {wrong}"):
            ss.num_kept(wrong, 0.5)
    with pytest.raises(ValueError, match=r"^bins must be at most 1000000, got 1000001"):
        ss.keep_ccs([1.0, 2.0], 0.5, bins=1_000_001)
    assert ss.keep_ccs([1.0, 2.0], 1.0, bins=1_000_000).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"^hard_cutoff must lie in \[0, 1\), got 1.0"):
        without_hardest(np.ones(2), 1.0)


# Loaders -----------------------------------------------------------------------------------

REACH = [
    {"rule": "ccs", "score": "score", "keep_fraction": 0.3, "hard_cutoff": 0.2, "seed": 5},
    {"rule": "stratified", "score": "score", "keep_fraction": 0.3, "class_floor": 2},
    {"rule": "threshold", "score": "score", "threshold": -5.0},
    {"rule": "top", "score": "holes", "keep_fraction": 0.3, "drop_missing": True},
    {"rule": "moderate", "keep_fraction": 0.3, "embedding": "mine"},
]


@pytest.mark.parametrize("how", REACH, ids=lambda how: how["rule"])
def test_every_rule_reaches_the_sampler_and_prune_unchanged(store, how):
    want = ss.select(store, **how)
    assert ss.PrunedShardSampler(store, **how).keep_set.digest == want.digest
    pipeline = ss.prune(wds.WebDataset(store.urls, shardshuffle=False), store, **how)
    assert sorted(sample["__id__"] for sample in pipeline) == want.ids().tolist()


def test_a_sampler_that_selects_nothing_takes_no_options_of_select(store):
    keep = ss.select(store, keep_fraction=1.0)
    with pytest.raises(TypeError, match="threshold must come without keep_set"):
        ss.PrunedShardSampler(store, keep_set=keep, threshold=1.0)
    with pytest.raises(TypeError, match="keep_set must come without policy"):
        ss.PrunedShardSampler(store, keep_set=keep, policy=ss.RandomDynamic(0.5))
    for how in ({"keep_fraction": 0.5}, {"score": "score"}, {"rule": "random"}):
        for beside in ({"keep_set": keep}, {"policy": ss.RandomDynamic(0.5)}):
            (name,), (other,) = how, beside
            with pytest.raises(TypeError, match=f"{name} must come without {other}"):
                ss.PrunedShardSampler(store, **beside, **how)
    with pytest.raises(TypeError, match="keep_fraction, score must come without keep_set"):
        ss.PrunedShardSampler(store, keep_set=keep, keep_fraction=0.5, score="mine")
    with pytest.raises(TypeError, match="keep_fraction, rule must come without policy"):
        ss.PrunedShardSampler(store, policy=ss.UCB(0.5), keep_fraction=0.5, rule="random")
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    with pytest.raises(TypeError, match="keep_fraction must come without keep_set"):
        ss.prune(pipeline, store, keep_set=keep, keep_fraction=0.5)
    with pytest.raises(TypeError, match="thresold"):
        ss.PrunedShardSampler(store, rule="random", thresold=1.0)


def test_an_empty_keep_set_keeps_nothing(store):
    nothing = ss.KeepSet.from_ids(store, np.zeros(0, dtype=np.int64))
    sampler = ss.PrunedShardSampler(store, keep_set=nothing)
    assert (list(sampler), len(sampler)) == ([], 0)
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    assert list(ss.prune(pipeline, store, keep_set=nothing)) == []


def test_a_keep_set_of_another_store_of_the_same_shape_is_refused(store, tmp_path):
    other = ss.index(write_shards(tmp_path / "other", [19, 20]), tmp_path / "other.zarr")
    keep = ss.select(other, keep_fraction=1.0)
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    for use in (ss.PrunedShardSampler, functools.partial(ss.prune, pipeline)):
        with pytest.raises(ss.StoreMismatchError, match="another shard index"):
            use(store, keep_set=keep)
