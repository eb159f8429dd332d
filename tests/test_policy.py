import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.policy.seta import groups_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    made = ss.index(write_shards(folder / "d", [40, 23, 37]), folder / "s.zarr")
    made.put_score("up", range(100))
    return made


def fed(policy, store, epochs, losses):
    """Run a policy over epochs on losses (E, n); return every epoch's choice."""
    policy.bind(store)
    choices = []
    for epoch in range(epochs):
        choice = policy.choose(epoch)
        choices.append(choice)
        ids = store.ids()[choice.rows]
        for part in np.array_split(np.arange(len(ids)), 3):
            policy.update(ids[part], losses[epoch, choice.rows[part]])
    return choices


LOSSES = np.random.default_rng(0).gamma(2, 1, (40, 100))


# Random ------------------------------------------------------------------------------------


@given(st.sampled_from([0.07, 0.3, 0.5, 0.66, 0.9, 1.0]), st.integers(0, 5))
def test_random_without_replacement_sees_everything_once_per_pass(store, fraction, seed):
    policy = ss.RandomDynamic(fraction, seed=seed)
    policy.bind(store)
    kept = ss.num_kept(100, fraction)
    seen = np.zeros(100, dtype=int)
    for epoch in range(30):
        rows = policy.choose(epoch).rows
        assert len(set(rows.tolist())) == len(rows) == kept
        seen[rows] += 1
        whole, _ = divmod((epoch + 1) * kept, 100)
        assert whole <= seen.min() <= seen.max() <= whole + 1 + (kept == 100)
    again = ss.RandomDynamic(fraction, seed=seed)
    again.bind(store)
    last, before = again.choose(29).rows, policy.choose(3).rows
    np.testing.assert_array_equal(last, policy.choose(29).rows)
    np.testing.assert_array_equal(before, again.choose(3).rows)


def test_random_with_replacement_draws_anew(store):
    policy = ss.RandomDynamic(0.5, replacement=True)
    policy.bind(store)
    seen = np.zeros(100, dtype=int)
    for epoch in range(200):
        seen[policy.choose(epoch).rows] += 1
    assert seen.min() < 100 < seen.max()
    assert seen.mean() == 100


# Raju et al. -------------------------------------------------------------------------------


def slow_averages(choices, losses, alpha, ucb):
    mean, variance = np.ones(100), np.zeros(100)
    for epoch, choice in enumerate(choices):
        for row in choice.rows:
            loss = losses[epoch, row]
            if ucb:
                variance[row] = (1 - alpha) * variance[row] + alpha * (loss - mean[row]) ** 2
            mean[row] = (1 - alpha) * mean[row] + alpha * loss
    return mean, variance


@pytest.mark.parametrize("ucb", [False, True])
def test_periodic_rules_follow_their_averages(store, ucb):
    make = ss.UCB if ucb else ss.EpsilonGreedy
    policy = make(0.3, period=4, seed=1)
    choices = fed(policy, store, 12, LOSSES)
    for epoch, choice in enumerate(choices):
        np.testing.assert_array_equal(choice.rows, choices[epoch - epoch % 4].rows)
        assert len(choice.rows) == 30
    mean, variance = slow_averages(choices[:8], LOSSES, 0.8, ucb)
    score = mean + variance if ucb else mean
    # Samples that were never seen tie at the first value: who of them is kept is drawn.
    cut = np.sort(score)[-30 if ucb else -27]
    assert (score > cut).sum() > 10
    assert set(np.flatnonzero(score > cut).tolist()) <= set(choices[8].rows.tolist())
    policy.choose(12)
    mean, variance = slow_averages(choices, LOSSES, 0.8, ucb)
    policy.to_score(f"learned{ucb}")
    expected = mean + variance if ucb else mean
    np.testing.assert_allclose(store.score(f"learned{ucb}"), expected, rtol=1e-6)
    assert store.provenance(f"learned{ucb}")["settings"] == policy.settings()


def test_a_stored_score_is_a_prior(store):
    policy = ss.EpsilonGreedy(0.3, epsilon=0.0, prior="up")
    policy.bind(store)
    assert policy.choose(0).rows.tolist() == list(range(70, 100))
    for pruned_at_once in (ss.InfoBatch(prior="up"), ss.SeTa(0.0, alpha=0.6, prior="up")):
        pruned_at_once.bind(store)
        expected = pruned_at_once.expect(0)
        assert expected.low < expected.kept < expected.high == 100
        assert len(pruned_at_once.choose(0).rows) < 100
    store.put_score("torn", np.where(np.arange(100) == 7, np.nan, 1.0))
    with pytest.raises(ss.MissingScoreError, match="'torn' must be there for every sample"):
        ss.UCB(0.3, prior="torn").bind(store)


# InfoBatch ---------------------------------------------------------------------------------


def test_infobatch_drops_only_below_the_mean_and_ends_in_full_data(store):
    policy = ss.InfoBatch(0.5, num_epochs=10, seed=3)
    choices = fed(policy, store, 10, LOSSES)
    assert len(choices[0].rows) == 100
    last = LOSSES[0].copy()
    for epoch in range(1, 10):
        rows, weights = choices[epoch]
        if epoch >= 10 * 0.875:
            assert weights is None
            assert len(rows) == 100
            continue
        low = last < last.mean()
        assert set(np.flatnonzero(~low)) <= set(rows.tolist())
        np.testing.assert_array_equal(weights, np.where(low[rows], 2.0, 1.0))
        assert 0 < low[rows].sum() < low.sum()
        last[rows] = LOSSES[epoch, rows]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("quantile", [None, 0.2])
def test_infobatch_weights_are_unbiased(store, fixed, quantile):
    total, draws = np.zeros(100), 3000
    policy = ss.InfoBatch(0.7, fixed=fixed, quantile=quantile)
    policy.bind(store)
    policy.update(store.ids(), LOSSES[0])
    for epoch in range(1, draws + 1):
        rows, weights = policy.choose(epoch)
        total[rows] += weights
    assert abs(total.mean() / draws - 1) < (1e-6 if fixed else 0.01)
    np.testing.assert_allclose(total / draws, 1, atol=0.15)


# SeTa --------------------------------------------------------------------------------------


def test_groups_are_those_of_scikit_learns_kmeans():
    from sklearn.cluster import KMeans

    values = np.concatenate([np.random.default_rng(i).normal(5 * i, 0.5, 30) for i in range(4)])
    theirs = KMeans(4, n_init=10, random_state=0).fit(values[:, None])
    rank = np.argsort(np.argsort(theirs.cluster_centers_[:, 0]))
    np.testing.assert_array_equal(groups_of(values, 4), rank[theirs.labels_])


def squares(values, group):
    return sum(((values[group == g] - values[group == g].mean()) ** 2).sum() for g in set(group))


def slow_least_squares(values, groups):
    """Return the least sum of squares over all ways to cut ascending values."""
    ordered, least = np.sort(values), {(0, 0): 0.0}
    for end in range(1, len(values) + 1):
        for used in range(1, groups + 1):
            ways = [
                least[begin, used - 1] + ((part := ordered[begin:end]) - part.mean()).dot(part)
                for begin in range(end)
                if (begin, used - 1) in least
            ]
            least[end, used] = min(ways, default=np.inf)
    return min(least[len(values), used] for used in range(1, groups + 1))


@given(
    st.lists(st.floats(0, 8).map(lambda x: round(x**4, 2)), min_size=1, max_size=25),
    st.integers(1, 5),
)
def test_groups_have_the_least_squares(losses, groups):
    values = np.array(losses)
    found = groups_of(values, groups)
    assert set(found.tolist()) <= set(range(groups))
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert squares(values, found) == pytest.approx(slow_least_squares(values, groups), abs=1e-6)


def test_groups_of_huge_losses_are_found():
    values = np.array([1e300] * 4 + [2.0] * 5 + [5e299])
    np.testing.assert_array_equal(groups_of(values, 3), [2] * 4 + [0] * 5 + [1])


@pytest.mark.parametrize("easy", [280, 28_000])
def test_few_hard_samples_are_groups_of_their_own(easy):
    """Late in a run nearly all losses are small."""
    rng = np.random.default_rng(0)
    sizes = (easy, 5, 5, 5, 5)
    values = np.concatenate([rng.normal(i, 0.01, size) for i, size in enumerate(sizes)])
    np.testing.assert_array_equal(groups_of(values, 5), np.repeat(np.arange(5), sizes))


def test_seta_slides_its_window_from_easy_to_hard(store):
    policy = ss.SeTa(0.0, groups=5, alpha=0.6, num_epochs=20)
    assert policy.width == 3
    policy.bind(store)
    losses = np.repeat(np.arange(5.0), 20)
    for epoch in range(20):
        policy.update(store.ids(), losses)
        kept = sorted(set(losses[policy.choose(epoch).rows].tolist()))
        start = epoch % 3
        expected = [float(g) for g in range(start, start + 3)]
        assert kept == (expected if epoch < 17.5 else [0.0, 1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("hard", [0, 1, 20])
def test_seta_never_trains_on_nothing(store, hard):
    """A network that has learned all but a few samples has a loss of 0 for the others."""
    policy = ss.SeTa(0.0, groups=5, alpha=0.6, num_epochs=20)
    losses = np.zeros((20, 100))
    losses[:, :hard] = 3.0
    choices = fed(policy, store, 16, losses)
    sizes = [len(choice.rows) for choice in choices]
    assert min(sizes) >= 1
    assert all(policy.expect(e).low <= size for e, size in enumerate(sizes))


def test_seta_rounds_as_paper_or_code():
    assert [ss.SeTa(alpha=0.9, rounding=r).width for r in ("ceil", "round")] == [5, 4]
    assert ss.SeTa(alpha=0.6).width == 3


@pytest.mark.parametrize(("epochs", "kept"), [(1, [80]), (2, [80, 40]), (5, [80, 70, 60, 50, 40])])
def test_a_keep_fraction_is_annealed_in_equal_steps_from_the_first_to_the_last(store, epochs, kept):
    choices = fed(ss.AnnealedScore("up", 0.8, 0.4, epochs), store, epochs, LOSSES)
    assert [choice.rows.tolist() for choice in choices] == [list(range(100))[-k:] for k in kept]


# All of them -------------------------------------------------------------------------------


MAKERS = {
    "random": lambda: ss.RandomDynamic(0.4),
    "greedy": lambda: ss.EpsilonGreedy(0.4, period=3),
    "ucb": lambda: ss.UCB(0.4, period=3),
    "infobatch": lambda: ss.InfoBatch(0.5, num_epochs=12),
    "seta": lambda: ss.SeTa(0.2, alpha=0.6, num_epochs=12),
    "annealed": lambda: ss.AnnealedScore("up", 1.0, 0.3, 12),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_restored_policy_chooses_as_if_never_stopped(store, name, tmp_path):
    whole = fed(MAKERS[name](), store, 12, LOSSES)
    for stop in range(1, 12):
        first = MAKERS[name]()
        fed(first, store, stop, LOSSES)
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = MAKERS[name]()
        second.bind(store)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for a, b in ((second.choose(stop), whole[stop]),):
            np.testing.assert_array_equal(a.rows, b.rows)
            assert (a.weights is None) == (b.weights is None)
            if a.weights is not None:
                np.testing.assert_array_equal(a.weights, b.weights)


@pytest.mark.parametrize("name", MAKERS)
def test_expected_counts_hold(store, name):
    policy = MAKERS[name]()
    for epoch, choice in enumerate(fed(policy, store, 12, LOSSES)):
        expected = policy.expect(epoch)
        assert expected.low <= len(choice.rows) <= expected.high
        assert expected.low <= expected.kept <= expected.high
        assert epoch or expected == (len(choice.rows),) * 3


@pytest.mark.parametrize("name", ["greedy", "ucb", "infobatch", "seta"])
def test_a_loss_that_is_not_finite_keeps_its_sample(store, name, caplog):
    policy = MAKERS[name]()
    policy.bind(store)
    losses = LOSSES[0].copy()
    losses[7] = math.nan
    policy.update(store.ids(), losses)
    for epoch in range(3, 9):
        assert 7 in policy.choose(epoch).rows
    assert policy.not_finite == 1
    assert f"sample id {store.ids()[7]} is nan" in caplog.text


@pytest.mark.parametrize("epsilon", [0.5, 1.0])
def test_epsilon_greedy_keeps_what_is_not_finite_before_it_draws(store, epsilon):
    policy = ss.EpsilonGreedy(0.2, epsilon=epsilon, period=1)
    policy.bind(store)
    losses = LOSSES[0].copy()
    losses[40:55] = math.nan
    policy.update(store.ids(), losses)
    kept = policy.choose(1).rows.tolist()
    assert set(range(40, 55)) < set(kept)
    assert len(kept) == 20
    policy.update(store.ids(), np.full(100, math.nan))
    assert len(policy.choose(2).rows) == 20


def test_all_losses_that_are_not_finite_are_named_up_to_eight_of_a_batch(store, caplog):
    policy = ss.InfoBatch(num_epochs=4)
    policy.bind(store)
    ids = store.ids()[-10:]
    policy.update(ids[:3], [math.nan, 1.0, math.inf])
    assert caplog.messages == [
        f"the loss of sample id {ids[0]} is nan, of sample id {ids[2]} is inf"
    ]
    policy.update(ids, [math.nan] * 10)
    assert f"sample id {ids[7]} is nan, 2 more of the batch are not finite" in caplog.messages[1]
    assert f"sample id {ids[8]}" not in caplog.messages[1]


def test_bad_updates_are_refused(store, tmp_path):
    policy = ss.InfoBatch(num_epochs=4)
    with pytest.raises(ValueError, match="must be bound"):
        policy.update([0], [1.0])
    policy.bind(store)
    for ids, losses, message in [
        ([0, 1], [1.0], "one value per id"),
        ([[0, 1]], [[1.0, 2.0]], "one value per id"),
        ([0, 2, 2], [1.0, 2.0, 3.0], "got 2 twice"),
        ([0.0], [1.0], "must be integers, got float64; a float loses large ids"),
        ([10**9], [1.0], "must name samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy.update(ids, losses)
    policy.update([-1, 3], [0.0, 1.0])
    policy.update([], [])  # what is left of a batch that could not be read
    with pytest.raises(ValueError, match="must be below num_epochs=4"):
        policy.choose(4)
    other = ss.index(write_shards(tmp_path / "d", [5]), tmp_path / "s.zarr")
    with pytest.raises(ss.StoreMismatchError, match="another store"):
        policy.bind(other)
    twin = ss.InfoBatch(num_epochs=4)
    twin.bind(other)
    with pytest.raises(ss.StoreMismatchError, match="another store"):
        twin.load_state_dict(policy.state_dict())
    fresh = ss.InfoBatch(0.3, num_epochs=4)
    fresh.bind(store)
    with pytest.raises(ss.StoreMismatchError, match="another policy"):
        fresh.load_state_dict(policy.state_dict())


@pytest.mark.parametrize("policy", [ss.InfoBatch, ss.SeTa])
def test_a_schedule_that_is_none_is_refused(policy):
    with pytest.raises(ValueError, match="num_epochs must be a whole number of at least 1, got 0"):
        policy(num_epochs=0)
    with pytest.raises(ValueError, match=r"delta must lie in \[0, 1\], got -1"):
        policy(num_epochs=3, delta=-1)


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (lambda **how: ss.UCB(0.5, **how), "period"),
        (lambda **how: ss.EpsilonGreedy(0.5, **how), "period"),
        (ss.SeTa, "groups"),
        (ss.SeTa, "num_epochs"),
        (ss.InfoBatch, "num_epochs"),
        (lambda **how: ss.AnnealedScore("up", 1.0, 0.5, **how), "num_epochs"),
    ],
    ids=["ucb", "greedy", "seta-groups", "seta", "infobatch", "annealed"],
)
def test_counts_are_whole_numbers(policy, name):
    for wrong in (2.5, 0):
        said = f"{name} must be a whole number of at least 1, got {wrong}"
        with pytest.raises(ValueError, match=said):
            policy(**{name: wrong})


# In a loop ---------------------------------------------------------------------------------


def ids_and_weights(samples):
    return {name: torch.tensor([s[name] for s in samples]) for name in ("__id__", "__weight__")}


@pytest.mark.parametrize("workers", [0, 2])
def test_three_lines_in_a_loop(store, workers):
    sampler = ss.PrunedShardSampler(store, policy=ss.InfoBatch(num_epochs=8, seed=1), batch_size=16)
    loader = DataLoader(
        ss.ShardDataset(store),
        batch_size=16,
        sampler=sampler,
        collate_fn=ids_and_weights,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    planned = sampler.steps(8)
    assert planned.low <= planned <= planned.high == 8 * 7
    steps = 0
    for epoch in range(8):
        sampler.set_epoch(epoch)
        seen = []
        for batch in loader:
            ids = batch["__id__"]
            losses = torch.from_numpy(LOSSES[epoch][store.rows(ids.numpy())])
            loss = ss.weighted(losses, batch)
            assert loss.item() == pytest.approx(float((losses * batch["__weight__"]).mean()))
            sampler.update(ids, losses)
            seen += zip(ids.tolist(), batch["__weight__"].tolist(), strict=True)
            steps += 1
        assert sorted(i for i, _ in seen) == sampler.keep_set.ids().tolist()
        weights = {w for _, w in seen}
        assert weights == ({1.0} if epoch in (0, 7) else {1.0, 2.0})
    assert planned.low <= steps <= planned.high


def test_a_sampler_with_a_policy_resumes_in_mid_epoch(store):
    def sampler():
        policy = ss.InfoBatch(num_epochs=8, seed=1)
        return ss.PrunedShardSampler(store, policy=policy, batch_size=8)

    first = sampler()
    first.update(store.ids(), LOSSES[0])
    first.set_epoch(1)
    whole = list(first)
    first.update(whole[:16], LOSSES[1][store.rows(whole[:16])])
    second = sampler()
    second.load_state_dict({**first.state_dict(), "samples_done": 16})
    assert list(second) == whole[16:]
    first.set_epoch(2)
    second.set_epoch(2)
    assert list(second) == list(first)


def test_an_epoch_beyond_the_schedule_is_refused_however_often_it_is_asked_for(store):
    sampler = ss.PrunedShardSampler(store, policy=ss.InfoBatch(num_epochs=4), batch_size=8)
    sampler.set_epoch(3)
    for _ in range(2):
        with pytest.raises(ValueError, match="epoch must be below num_epochs=4, got 4"):
            sampler.set_epoch(4)
        assert sampler.epoch == sampler.state_dict()["epoch"] == 3
    with pytest.raises(ValueError, match="epoch must be below num_epochs=4, got 4"):
        sampler.steps(5)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        ss.PrunedShardSampler(store).set_epoch(-1)


def test_a_score_that_is_stored_anew_changes_no_run(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [40]), tmp_path / "s.zarr")
    made = ss.AnnealedScore("mine", 0.5, 0.5, 3)
    with pytest.raises(ss.MissingScoreError):
        made.bind(store)
    store.put_score("mine", range(40))
    first = ss.PrunedShardSampler(store, policy=made)
    state = first.state_dict()
    store.put_score("mine", range(40, 0, -1))
    first.set_epoch(1)
    assert first.keep_set.ids().tolist() == list(range(20, 40))
    again = ss.PrunedShardSampler(store, policy=ss.AnnealedScore("mine", 0.5, 0.5, 3))
    assert again.keep_set.ids().tolist() == list(range(20))
    again.load_state_dict(state)
    assert again.keep_set.digest == first.keep_set.digest
    earlier = ss.AnnealedScore("mine", 0.5, 0.5, 3)
    earlier.bind(store)
    with pytest.raises(ss.StoreMismatchError, match="lacks what the policy holds as 'values'"):
        earlier.load_state_dict({**made.state_dict(), "arrays": {}})


def test_static_rules_know_their_steps(store):
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random", batch_size=16)
    assert sampler.steps(3) == sampler.steps(3).low == sampler.steps(3).high == 12
    assert json.dumps(sampler.steps()) == "4"


@pytest.mark.parametrize("how", [{"policy": ss.InfoBatch()}, {"keep_fraction": 0.5, "score": "up"}])
def test_no_epochs_are_no_steps(store, how):
    sampler = ss.PrunedShardSampler(store, **how, batch_size=16)
    none = sampler.steps(0)
    assert (none, none.low, none.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        sampler.steps(-1)


@pytest.mark.parametrize("how", [{"policy": ss.UCB(0.5)}, {"keep_fraction": 0.5, "score": "up"}])
def test_a_state_of_something_else_is_refused(store, how):
    sampler = ss.PrunedShardSampler(store, **how)
    with pytest.raises(ss.StoreMismatchError, match="belongs to another plan"):
        sampler.load_state_dict({"epoch": 3})
