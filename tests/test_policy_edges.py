"""What policies do at the edges of their settings and schedules."""

import copy
import math

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve.loaders.moving import StepCount
from shardsieve.policy.base import Expected
from shardsieve.policy.named import POLICIES, make_policy, named_policy, takes
from shardsieve.policy.seta import groups_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    made = ss.index(write_shards(folder / "d", [30, 20]), folder / "s.zarr")
    made.put_score("up", range(50))
    return made


@pytest.mark.parametrize("make", [ss.EpsilonGreedy, ss.UCB])
def test_the_last_loss_alone_keeps_what_is_not_finite_again_and_again(store, make):
    policy = make(0.2, period=1, alpha=1.0)
    policy.bind(store)
    losses = np.linspace(1, 2, 50)
    for epoch in range(3):
        policy.update(store.ids(), np.where(np.arange(50) == 7, math.nan, losses))
        assert 7 in policy.choose(epoch).rows
    policy.update(store.ids(), losses)
    np.testing.assert_allclose(policy.learned(), losses)


@pytest.mark.parametrize(("first", "last"), [(0.08, 0.01), (0.03, 0.29), (0.05, 0.21)])
def test_the_last_epoch_keeps_what_its_fraction_keeps(store, first, last):
    policy = ss.AnnealedScore("up", first, last, 4)
    policy.bind(store)
    assert policy.choose(3).rows.tolist() == ss.keep_top(np.arange(50), last).tolist()


SETTINGS = [
    (
        lambda: ss.RandomDynamic(0.5),
        {"policy": "random", "keep_fraction": 0.5, "replacement": False, "seed": 0},
    ),
    (
        lambda: ss.EpsilonGreedy(0.5),
        {"policy": "epsilon_greedy", "keep_fraction": 0.5, "period": 10, "alpha": 0.8}
        | {"seed": 0, "prior": None, "epsilon": 0.1},
    ),
    (
        lambda: ss.UCB(0.5),
        {"policy": "ucb", "keep_fraction": 0.5, "period": 10, "alpha": 0.8}
        | {"seed": 0, "prior": None, "c": 1.0},
    ),
    (
        ss.InfoBatch,
        {"policy": "infobatch", "prune_probability": 0.5, "num_epochs": None, "delta": 0.875}
        | {"fixed": False, "quantile": None, "seed": 0, "prior": None},
    ),
    (
        ss.SeTa,
        {"policy": "seta", "ratio": 0.1, "groups": 5, "alpha": 0.9, "num_epochs": None}
        | {"delta": 0.875, "rounding": "ceil", "seed": 0, "prior": None},
    ),
    (
        lambda: ss.AnnealedScore("up", 1.0, 0.5, 3),
        {"policy": "annealed_score", "score": "up", "first": 1.0, "last": 0.5, "num_epochs": 3},
    ),
]


@pytest.mark.parametrize(("make", "settings"), SETTINGS, ids=[one["policy"] for _, one in SETTINGS])
def test_settings_and_their_defaults_are_pinned(make, settings):
    """Saved states are refused where they differ."""
    assert make().settings() == settings


DRAWS = {
    "random": (
        lambda: ss.RandomDynamic(0.3),
        [0, 1, 4, 5, 7, 10, 13, 14, 15, 21, 36, 37, 40, 46, 49],
    ),
    "anew": (lambda: ss.RandomDynamic(0.2, True), [7, 12, 15, 16, 17, 19, 20, 40, 45, 46]),
    "greedy": (
        lambda: ss.EpsilonGreedy(0.2, 0.5, period=1),
        [7, 11, 21, 27, 30, 40, 43, 44, 46, 47],
    ),
    "ucb": (lambda: ss.UCB(0.2, period=1), [3, 11, 20, 25, 27, 30, 37, 41, 43, 47]),
    "seta": (lambda: ss.SeTa(0.8, alpha=1), [1, 3, 14, 32, 33, 36, 38, 41, 44, 45]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_pinned(store, name):
    """Runs resume across releases, so another draw is a breaking change: announce it."""
    make, rows = DRAWS[name]
    policy = make()
    policy.bind(store)
    assert policy.choose(6).rows.tolist() == rows


@pytest.mark.parametrize(("fixed", "dropped"), [(False, [4, 11, 12]), (True, [5, 9, 10, 19, 24])])
def test_what_infobatch_drops_is_pinned(store, fixed, dropped):
    policy = ss.InfoBatch(0.2, fixed=fixed)
    policy.bind(store)
    policy.update(store.ids(), np.arange(50.0))
    rows, weights = policy.choose(6)
    assert sorted(set(range(50)) - set(rows.tolist())) == dropped
    assert weights.dtype == np.float32


def test_infobatch_drops_strictly_below_the_mean_or_of_the_lowest_share(store):
    losses = np.repeat([1.0, 2.0, 3.0], [20, 10, 20])
    for how, candidates in (({}, 20), ({"quantile": 0.2}, 10), ({"quantile": 0.7}, 35)):
        policy = ss.InfoBatch(0.9, **how)
        policy.bind(store)
        policy.update(store.ids(), losses if not how else np.arange(50.0))
        kept = [set(policy.choose(epoch).rows.tolist()) for epoch in range(1, 60)]
        assert set.intersection(*kept) == set(range(candidates, 50))


@pytest.mark.parametrize("fixed", [False, True])
def test_infobatch_draws_the_lowest_share_among_losses_that_are_all_0(store, fixed):
    """Late in a run many are: nothing lay below such a quantile, and nothing was dropped."""
    policy, times = ss.InfoBatch(0.5, quantile=0.2, fixed=fixed), np.zeros(50)
    policy.bind(store)
    policy.update(store.ids(), np.repeat([0.0, 1.0], [40, 10]))
    for epoch in range(1, 2001):
        rows, weights = policy.choose(epoch)
        assert (weights == 2).sum() + 50 - len(rows) == 10
        times[rows] += weights
    assert (times[40:] == 2000).all()
    # Of 40 samples that are tied 10 are candidates: a mean weight of 1, with a spread of 1/2.
    assert abs(times[:40] / 2000 - 1).max() < 4 * 0.5 / 2000**0.5


def test_infobatch_keeps_at_least_one_of_a_fixed_number(store):
    policy = ss.InfoBatch(0.9, fixed=True)
    policy.bind(store)
    policy.update(store.ids(), [0.0] + [1.0] * 49)
    rows, weights = policy.choose(1)
    assert (len(rows), weights.tolist()) == (50, [1.0] * 50)


MADE = {
    "infobatch": (lambda **how: ss.InfoBatch(0.2, **how), (45.0, 1, 50), 50),
    "seta": (lambda **how: ss.SeTa(0.2, alpha=0.6, **how), (24.0, 1, 40), 40),
    "annealed": (lambda **how: ss.AnnealedScore("up", 0.8, 0.8, **how), (40, 40, 40), 40),
}


@pytest.mark.parametrize("name", MADE)
def test_the_last_part_is_expected_and_there_is_no_epoch_behind_it(store, name):
    make, early, full = MADE[name]
    policy = make(num_epochs=8)
    policy.bind(store)
    assert policy.expect(0) == (full, full, full)
    assert policy.expect(1) == pytest.approx(early)
    assert policy.expect(7) == (full, full, full)
    for ask in (policy.expect, policy.choose):
        with pytest.raises(ValueError, match="epoch must be below num_epochs=8, got 8"):
            ask(8)


def test_what_prunes_nothing_is_expected_to_keep_everything(store):
    for policy in (ss.InfoBatch(0), ss.SeTa(0, alpha=1)):
        policy.bind(store)
        policy.update(store.ids(), np.arange(50.0))
        assert policy.expect(3) == (50, 50, 50)
        assert len(policy.choose(3).rows) == 50


def test_a_window_of_seta_holds_a_group(store):
    assert ss.SeTa(alpha=0.05, rounding="round").width == 1


def test_of_many_values_each_lies_nearest_to_the_mean_of_its_own_group():
    values = np.random.default_rng(0).gamma(2, 1, 30_000)
    groups = groups_of(values, 5)
    means = np.array([values[groups == group].mean() for group in range(5)])
    nearest = np.abs(values[:, None] - means).argmin(axis=1)
    np.testing.assert_array_equal(groups, nearest)


def test_epsilon_greedy_draws_the_share_that_was_asked_for(tmp_path):
    """0.58 * 50 is 28.999999999999996."""
    store = ss.index(write_shards(tmp_path / "d", [100]), tmp_path / "s.zarr")
    policy = ss.EpsilonGreedy(0.5, epsilon=0.58, period=1)
    policy.bind(store)
    policy.update(store.ids(), np.arange(100.0))
    kept = [set(policy.choose(epoch).rows.tolist()) for epoch in range(1, 60)]
    assert set.intersection(*kept) == set(range(100 - 50 + 29, 100))
    assert {len(rows) for rows in kept} == {50}
    assert set.union(*kept) == set(range(100))


REFUSED = [
    (lambda: ss.EpsilonGreedy(0.5, epsilon=-0.1), r"epsilon must lie in \[0, 1\], got -0.1"),
    (lambda: ss.EpsilonGreedy(0.5, epsilon=1.1), r"epsilon must lie in \[0, 1\], got 1.1"),
    (lambda: ss.EpsilonGreedy(1.1), r"keep_fraction must lie in \(0, 1\], got 1.1"),
    (lambda: ss.UCB(0), r"keep_fraction must lie in \(0, 1\], got 0"),
    (lambda: ss.UCB(0.5, c=-1), "c must be at least 0, got -1"),
    (lambda: ss.RandomDynamic(0), r"keep_fraction must lie in \(0, 1\], got 0"),
    (lambda: ss.AnnealedScore("up", 0, 0.5, 3), r"keep_fraction must lie in \(0, 1\], got 0"),
    (lambda: ss.AnnealedScore("up", 0.5, 0, 3), r"keep_fraction must lie in \(0, 1\], got 0"),
    (lambda: ss.InfoBatch(delta=1.01), r"delta must lie in \[0, 1\], got 1.01"),
    (lambda: ss.SeTa(delta=-0.01), r"delta must lie in \[0, 1\], got -0.01"),
]


def test_constants_that_are_out_of_range_are_refused():
    for make, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            make()
    assert ss.UCB(0.5, c=0).settings()["c"] == 0
    for delta in (0, 1):
        assert ss.InfoBatch(num_epochs=1, delta=delta).settings()["delta"] == delta


def test_a_loss_that_is_not_finite_says_nothing_of_the_variance(store):
    policy = ss.UCB(1.0, c=2.0, period=1)
    policy.bind(store)
    for loss in (2.0, math.nan, 3.0, 4.0):
        policy.update(store.ids(), np.full(50, loss))
        policy.choose(0)
    # 0.8 of (2 - 1) squared, a fifth of it twice, as a new mean begins at 3, and 0.8 of 1.
    variance = 0.8 * 1 * 0.2 * 0.2 * 0.2 + 0.8 * 1
    np.testing.assert_allclose(policy.learned(), 0.2 * 3 + 0.8 * 4 + 2 * variance)


@pytest.mark.parametrize("alpha", [0, 1.1])
def test_weights_of_losses_and_windows_that_are_none_are_refused(alpha):
    for make in (lambda: ss.UCB(0.5, alpha=alpha), lambda: ss.SeTa(alpha=alpha)):
        with pytest.raises(ValueError, match=rf"alpha must lie in \(0, 1\], got {alpha}"):
            make()


def test_a_share_below_one_is_refused_at_one():
    with pytest.raises(ValueError, match=r"prune_probability must lie in \[0, 1\), got 1"):
        ss.InfoBatch(1)


@pytest.mark.parametrize(("prior", "seen"), [(None, 50), ("loss", 10)])
def test_ucb_sees_every_sample_from_nothing_and_the_highest_alone_from_a_prior(store, prior, seen):
    losses = np.linspace(0.1, 0.6, 50)  # below 1, where averages start from nothing
    store.put_score("loss", losses)
    policy, kept = ss.UCB(0.2, period=1, prior=prior), set()
    policy.bind(store)
    for epoch in range(9):
        rows = policy.choose(epoch).rows
        kept |= set(rows.tolist())
        policy.update(store.ids()[rows], losses[rows])
    assert len(kept) == seen


def test_a_learned_score_is_called_by_its_policy_and_settings():
    assert ss.RandomDynamic(0.5).definition() == (
        "random(keep_fraction=0.5, replacement=False, seed=0)"
    )


def test_a_state_stays_as_it_was_while_its_policy_goes_on(store):
    policy = ss.UCB(0.2, period=1)
    policy.bind(store)
    policy.bind(ss.open_store(store.path))  # the same one again
    losses = np.where(np.arange(50) // 2 == 3, math.nan, np.arange(50.0))
    for part in (slice(7), slice(7, 50)):
        policy.update(store.ids()[part], losses[part])
        policy.sync()
    early, state = policy.again(0).rows, policy.state_dict()
    assert policy.not_finite == 2
    policy.update(store.ids(), np.arange(50.0)[::-1])
    assert policy.choose(1).rows.tolist() != early.tolist()
    again = ss.UCB(0.2, period=1)
    again.bind(store)
    again.load_state_dict(state)
    assert again.not_finite == 2
    assert again.again(0).rows.tolist() == early.tolist()
    assert again.choose(1).rows.tolist() == [6, 7, *range(42, 50)]
    assert again.not_finite == 2
    learned = again.learned()
    again.bind(store)  # as a second sampler does
    np.testing.assert_array_equal(again.learned(), learned)


def test_of_a_sample_that_comes_again_the_first_loss_counts(store):
    policy, ids = ss.InfoBatch(num_epochs=4), store.ids()
    policy.bind(store)
    policy.update(ids[:2], [1.0, 2.0])
    policy.sync()
    policy.update(ids[1:3], [5.0, 6.0])
    again = ss.InfoBatch(num_epochs=4)
    again.bind(store)
    again.load_state_dict(policy.state_dict())
    for one in (policy, again):
        one.choose(1)
        assert one.learned()[:3].tolist() == [1, 2, 6]


def test_a_batch_that_was_filled_up_with_its_own_samples_is_handed_over_as_it_is(store):
    policy = ss.InfoBatch(num_epochs=4)
    sampler = ss.PrunedShardSampler(store, policy=policy, batch_size=64, tail="pad")
    ids = np.fromiter(sampler, np.int64)
    assert (len(ids), len(np.unique(ids[:50]))) == (64, 50)
    sampler.update(ids, np.arange(64.0))
    assert policy.learned()[store.rows(ids[:50])].tolist() == list(range(50))
    with pytest.raises(ValueError, match="once per batch"):
        policy.update(ids, np.arange(64.0))


def test_a_loss_that_is_not_finite_and_waits_is_counted_by_who_goes_on(store):
    """It is counted where it is joined: a state of before the join must not lose it."""
    policy, again = ss.InfoBatch(num_epochs=4), ss.InfoBatch(num_epochs=4)
    for one in (policy, again):
        one.bind(store)
    policy.update(store.ids()[:3], [math.nan, 1, math.inf])
    again.load_state_dict(policy.state_dict())
    for one in (policy, again):
        one.choose(1)
        assert one.not_finite == 2


def test_a_state_asked_for_early_takes_in_what_comes_until_the_policy_learns(store):
    policy = ss.UCB(0.2, period=1)
    policy.bind(store)
    early = policy.latest_state()
    assert policy.latest_state() is early
    policy.update(store.ids(), np.arange(50.0))
    assert (len(early), list(early)) == (5, list(policy.state_dict()))
    assert early["waiting"][1].tolist() == list(range(50))
    policy.choose(1)
    assert early["waiting"][1].tolist() == list(range(50))
    assert early["arrays"]["mean"].tolist() == [1.0] * 50
    later = policy.latest_state()
    copy.deepcopy(policy).choose(2)  # what goes to another process has a state of its own
    policy.update(store.ids()[:1], [3.0])
    policy.load_state_dict(early)
    assert later["waiting"][1].tolist() == [3.0]


@pytest.mark.parametrize(("bad", "named"), [(0, 0), (1, 1), (8, 8), (9, 8), (10, 8)])
def test_what_is_not_finite_of_a_batch_is_told_once_and_what_is_finite_never(
    store, caplog, bad, named
):
    policy = ss.InfoBatch(num_epochs=4)
    policy.bind(store)
    policy.update(store.ids(), np.where(np.arange(50) < bad, math.nan, 1).astype(np.float32))
    assert len(caplog.messages) == (bad > 0)
    assert caplog.text.count("sample id") == named
    assert ("more of the batch" in caplog.text) == (bad > named)
    assert policy.state_dict()["waiting"][1].dtype == torch.float64


def test_a_policy_without_a_store_says_where_to_give_it():
    policy = ss.UCB(0.5)
    for call in (policy.sync, policy.state_dict, policy.learned, lambda: policy.choose(0)):
        with pytest.raises(ValueError, match="bound to a store; give it to PrunedShardSampler"):
            call()


def test_policies_by_name_take_what_a_run_knows():
    known = {"epochs": 7, "seed": 3, "keep_fraction": 0.4, "score": "up"}
    wanted = {
        "annealed": ss.AnnealedScore("up", 1.0, 0.4, 7),
        "epsilon-greedy": ss.EpsilonGreedy(0.4, seed=3, prior="up"),
        "infobatch": ss.InfoBatch(num_epochs=7, seed=3, prior="up"),
        "random-dynamic": ss.RandomDynamic(0.4, seed=3),
        "seta": ss.SeTa(num_epochs=7, seed=3, prior="up"),
        "ucb": ss.UCB(0.4, seed=3, prior="up"),
    }
    assert wanted.keys() == POLICIES.keys()
    for name, policy in wanted.items():
        assert make_policy(name, **known).settings() == policy.settings()
        assert named_policy({"name": name}, **known).settings() == policy.settings()
    no_fraction = [name for name in POLICIES if not takes(name, "keep_fraction")]
    assert no_fraction == ["infobatch", "seta"]
    assert [name for name in POLICIES if not takes(name, "score")] == ["random-dynamic"]
    own = named_policy({"name": "ucb", "keep_fraction": 0.2, "c": 2, "score": "mine"}, **known)
    assert own.settings() == ss.UCB(0.2, 2, seed=3, prior="mine").settings()
    own = make_policy("annealed", first=0.9, last=0.3, **known)
    assert own.settings() == ss.AnnealedScore("up", 0.9, 0.3, 7).settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "policy must be one of annealed, .*, got ''"),
        ({"name": ["ucb"]}, r"policy must be one of annealed, .*, got \['ucb'\]"),
        ({"name": "seta", "seed": 1}, "seta must be given ratio, .*, got 'seed'"),
        ({"name": "seta", "epochs": 1}, "seta must be given ratio, .*, got 'epochs'"),
        ({"name": "seta", "num_epochs": 4}, "seta must be given ratio, .*, got 'num_epochs'"),
        ({"name": "ucb", "keep_fraction": 0.5, "c": "1"}, "c of ucb must be a number, got '1'"),
        ({"name": "ucb", "keep_fraction": True}, "keep_fraction of ucb must be a number, got True"),
        ({"name": "seta", "groups": 2.5}, "groups of seta must be a whole number, got 2.5"),
        ({"name": "seta", "groups": True}, "groups of seta must be a whole number, got True"),
        ({"name": "seta", "prior": 3}, "prior of seta must be a name, got 3"),
        ({"name": "infobatch", "fixed": 1}, "fixed of infobatch must be true or false, got 1"),
        ({"name": "infobatch", "quantile": "low"}, "quantile of infobatch must be a number, got"),
    ],
)
def test_constants_of_another_kind_or_policy_are_refused(given, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        named_policy(given, epochs=4)


def test_expected_steps_lie_within_their_bounds():
    expected = [Expected(0.3, 1, 5), Expected(2.6, 1, 2), Expected(2.4, 1, 5)]
    count = StepCount.over(expected, lambda samples: 10 * samples)
    assert (count.low, count, count.high) == (30, 50, 120)
