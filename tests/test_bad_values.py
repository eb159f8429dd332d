"""What is no number, no id or no name is refused from Python too, and nothing is lost by it."""

import io
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset as wds
from tars import write_shards

import shardsieve as ss
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.turtle import TurtleConfig

N = 9


@pytest.fixture
def store(tmp_path):
    """Two shards with a score and an embedding."""
    made = ss.index(write_shards(tmp_path / "d", [5, 4]), tmp_path / "s.zarr")
    made.put_score("mine", np.arange(N))
    made.embedding_array("points", 2)[:] = 1
    return made


NO_NUMBERS = {
    "complex": np.ones(N, dtype=complex),
    "text": np.array(["0.5"] * N),
    "dates": np.datetime64("2020-01-01") + np.arange(N),
    "masked": np.ma.masked_array(np.ones(N), mask=[True] + [False] * (N - 1)),
    "a dictionary": dict.fromkeys(range(N), 0.5),
    "a set": set(range(N)),
    "a generator": (0.5 for _ in range(N)),
    "sparse": torch.ones(N).to_sparse(),
    "beyond all floats": [10**400] * N,
}


@pytest.mark.parametrize("values", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_values_that_are_no_real_numbers_are_refused_wherever_scores_are_taken(store, values):
    fit = ss.extrapolate.KNN(k=1).fit
    points = np.ones((N, 2), dtype=np.float32)
    for take in (
        lambda: store.put_score("new", values),
        lambda: ss.keep_top(values, 0.5),
        lambda: ss.keep_threshold(values, 0.5),
        lambda: fit(points, values),
        lambda: ss.scores.confidence(values),
    ):
        with pytest.raises(ValueError, match=r"real numbers|masked values"):
            take()
    assert store.scores == ["mine"]


def test_numbers_of_any_real_type_are_taken_alike(store):
    for values in (
        np.arange(N, dtype=">f8"),
        np.arange(N, dtype=object),
        np.ma.masked_array(np.arange(N)),
        torch.arange(N),
        np.repeat(np.arange(N), 2)[::2],
        range(N),
    ):
        store.put_score("mine", values)
        assert store.score("mine").tolist() == list(range(N))
    store.put_score("mine", [None, *range(N - 1)])
    assert np.isnan(store.score("mine")[0])


def test_what_lies_behind_a_mask_is_no_truth_and_no_label():
    hidden = np.ma.masked_array([0, 1], [False, True])
    for take in (
        lambda: ss.scores.forgetting(hidden[None]),
        lambda: ss.scores.forgetting([[0, 1]], presented=hidden[None]),
        lambda: ss.keep_class_balanced([1.0, 2.0], hidden, 0.5),
    ):
        with pytest.raises(ValueError, match="must hold no masked values; fill them first"):
            take()


@pytest.mark.parametrize(
    "ids", [[1.5], [True] * N, ["1"], torch.tensor([1.0]), np.ma.masked_array([1, 2], [1, 0])]
)
def test_ids_never_go_through_a_float_or_a_mask(store, ids):
    for take in (store.rows, lambda ids: ss.KeepSet.from_ids(store, ids)):
        with pytest.raises(ValueError, match=r"ids must (be integers|hold no masked)"):
            take(ids)
    assert store.rows([]).tolist() == ss.KeepSet.from_ids(store, []).ids().tolist() == []


@pytest.mark.parametrize("mode", ["w", "a", "x", "rb", "", None])
def test_a_store_opened_in_another_mode_is_not_made_afresh(store, mode):
    with pytest.raises(ValueError, match="mode must be r or r"):
        ss.open_store(store.path, mode=mode)
    assert ss.open_store(store.path).scores == ["mine"]


@pytest.mark.parametrize("name", ["dyn_unk", None])
def test_of_many_scores_an_error_names_the_nearest(store, name):
    for number in range(12):
        store.put_score(f"run{number}_el2n", np.arange(N))
    store.put_score("dyn_unc", np.arange(N))
    with pytest.raises(ss.MissingScoreError, match=r"\(14, such as \w+, \w+, \w+; `sh") as raised:
        store.score(name)
    assert name is None or "such as dyn_unc, " in str(raised.value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../score", "mine/..", None, 3, b"mine", "x" * 300]
)
def test_what_is_no_name_names_nothing_and_deletes_nothing(store, name):
    assert not store.has_score(name)
    for forget in (store.forget_score, store.forget_embedding, store.forget_pseudo_labels):
        forget(name)
    assert (store.scores, store.embeddings) == (["mine"], ["points"])
    with pytest.raises(ss.MissingScoreError, match="score must be one of those in"):
        store.score(name)
    with pytest.raises(ss.StoreFormatError, match="has no array"):
        store.embedding(name)
    with pytest.raises(ValueError, match="name must be made of letters"):
        store.put_score(name, np.arange(N))


def test_the_place_of_a_store_is_a_path(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    for place in (None, 3, b"s.zarr", store):
        for take in (ss.open_store, lambda place: ss.index(tmp_path / "d/s-000.tar", place)):
            with pytest.raises(TypeError, match="the place of a store must be a path or a URL"):
                take(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_open_store_is_asked_for_where_something_else_is_given(store):
    for other in (None, 3, {}):
        with pytest.raises(TypeError, match="store must be what open_store or index returns"):
            ss.select(other, keep_fraction=0.5, rule="random")
        with pytest.raises(TypeError, match="store must be what open_store or index returns"):
            ss.realign(other, store)
    takes_a_path = (
        partial(ss.realign, store),
        ss.ShardDataset,
        partial(ss.PrunedShardSampler, policy=ss.UCB(0.5)),
        partial(ss.prune, None),
    )
    for call in takes_a_path:
        with pytest.raises(TypeError, match="store must be open, got its path"):
            call(str(store.path))


def test_a_shard_that_is_not_there_has_no_keys(store):
    for shard in (-1, 2):
        with pytest.raises(ValueError, match=rf"shard must lie in \[0, 2\), got {shard}"):
            store.keys(shard)


def test_labels_of_samples_may_be_a_list(store):
    assert ss.ShardDataset(store, labels=list(range(N)))[64]["__label__"] == 5
    with pytest.raises(ValueError, match="labels must be integers, got float64"):
        ss.ShardDataset(store, labels=[0.5] * N)


def test_one_score_is_realigned_by_its_name(store, tmp_path):
    other = ss.index(tmp_path / "d/s-001.tar", tmp_path / "other.zarr")
    assert ss.realign(store, other, scores="mine") == ["mine"]


def test_a_prediction_is_realigned_once_with_its_measured_score_and_also_without(store, tmp_path):
    predicted = {"definition": "knn(mine)", "source": "mine"}
    store.put_score("full", range(N), provenance=predicted)
    for name, wanted in (("with", ["full", "mine"]), ("without", ["full"])):
        other = ss.index(tmp_path / "d/s-001.tar", tmp_path / f"{name}.zarr")
        assert ss.realign(store, other) == wanted == other.scores
        store.forget_score("mine")


def test_a_truth_value_is_no_fraction_and_no_count():
    with pytest.raises(ValueError, match=r"keep_fraction must lie in \(0, 1\], got True"):
        ss.num_kept(10, True)
    with pytest.raises(ValueError, match=r"keep_fraction must lie in \(0, 1\], got '0.5'"):
        ss.keep_top([1.0, 2.0], "0.5")
    with pytest.raises(ValueError, match="window must be a whole number of at least 2, got True"):
        ss.scores.dynamic_uncertainty(np.ones((4, 2)), window=True)


def sampler(store, **how):
    return ss.PrunedShardSampler(store, **{"keep_fraction": 0.5, "score": "mine", **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": ""}, "batch_size must be a whole number of at least 1, got ''"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": float("inf")}, "seed must be a whole number, got inf"),
        ({"window": 1.5}, "window must be at least 0 shards, got 1.5"),
        ({"groups": 1.5}, "groups must be at least 1, got 1.5"),
    ],
)
def test_a_sampler_takes_whole_numbers(store, how, message):
    with pytest.raises(ValueError, match=message):
        sampler(store, **how)


def test_a_sampler_is_told_its_world_and_its_epoch_as_such(store):
    with pytest.raises(TypeError, match=r"world must be a World\(rank, size\), got 2"):
        sampler(store, world=2)
    with pytest.raises(TypeError, match=r"world must be a World\(rank, size\), got 3"):
        ss.prune(wds.WebDataset(store.urls, shardshuffle=False), store, world=3)
    with pytest.raises(TypeError, match=r"storage must be a Storage\(latency, .* got 3; leave it"):
        ss.prune(wds.WebDataset(store.urls, shardshuffle=False), store, storage=3)
    with pytest.raises(ValueError, match="rank and size must be whole numbers"):
        ss.World(0.5, 1)
    with pytest.raises(ValueError, match="epoch must be a whole number"):
        sampler(store).set_epoch(1.5)


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_that_is_cut_would_be_another_one(seed):
    for policy in (ss.InfoBatch, lambda seed: ss.UCB(0.5, seed=seed)):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            policy(seed=seed)
    if seed is not True:
        with pytest.raises(ValueError, match="a seed or epoch must be a whole number"):
            ss.keep_random(10, 0.5, seed=seed)


def test_a_factor_without_end_is_refused():
    with pytest.raises(ValueError, match="c must be at least 0, got inf"):
        ss.UCB(0.5, c=float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "state must be what state_dict of a sampler returned, got None"),
        (lambda state: [state], "state must be what state_dict of a sampler returned"),
        (lambda state: {}, "belongs to another plan"),
        (lambda state: {"plan": state["plan"]}, "epoch of the sampler's state must be a whole"),
        (lambda state: state | {"epoch": 1.5}, "must be a whole number of at least 0, got 1.5"),
        (lambda state: state | {"samples_done": -1}, "samples_done of the sampler's state must"),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(store, change, message):
    one = sampler(store, batch_size=2)
    before = one.state_dict()
    with pytest.raises(ValueError, match=message):
        one.load_state_dict(change(before))
    assert one.state_dict() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, "state must be what state_dict of a policy returned, got None"),
        (
            lambda state: {},
            "state must be what state_dict of a policy returned, got one without 'policy'",
        ),
        (
            lambda state: {k: v for k, v in state.items() if k != "waiting"},
            "got one without 'waiting'",
        ),
        (lambda state: state | {"arrays": {}}, "lacks what the policy holds as 'mean'"),
        (
            lambda state: state | {"arrays": {n: a[:1] for n, a in state["arrays"].items()}},
            "lacks what the policy holds as 'mean': another release saved it",
        ),
    ],
)
def test_what_is_no_state_of_a_policy_is_refused_and_changes_nothing(store, change, message):
    one, twin = (ss.PrunedShardSampler(store, policy=ss.UCB(0.5)) for _ in range(2))
    list(one)
    state = one.state_dict()
    with pytest.raises(ValueError, match=message):
        twin.load_state_dict(state | {"epoch": 3, "policy": change(state["policy"])})
    assert (twin.epoch, list(twin)) == (0, list(one))


@pytest.mark.parametrize("policy", ["infobatch", ss.InfoBatch])
def test_a_policy_is_an_object(store, policy):
    with pytest.raises(TypeError, match=r"policy must be one, such as InfoBatch\(\), got"):
        ss.PrunedShardSampler(store, policy=policy)


@pytest.mark.parametrize("policy", [ss.EpsilonGreedy(0.5), ss.UCB(0.5), ss.InfoBatch(), ss.SeTa()])
def test_a_policy_without_a_store_says_who_gives_it_one(policy):
    for call in (
        lambda: policy.choose(0),
        lambda: policy.again(0),
        policy.state_dict,
        policy.learned,
    ):
        with pytest.raises(ValueError, match="bound to a store; give it to PrunedShardSampler"):
            call()


def test_what_a_dataset_cannot_use_is_named_before_it_reads(store):
    with pytest.raises(ValueError, match="max_unreadable must be a whole number of at least 0"):
        ss.ShardDataset(store, on_error="skip", max_unreadable="many")
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        ss.ShardDataset(store, on_error="ignore")
    with pytest.raises(ss.MissingScoreError, match="score must be one of those in"):
        ss.ShardDataset(store, score="")
    with pytest.raises(TypeError, match=r"decode must be a function .*, got 'pil'"):
        ss.ShardDataset(store, "pil")  # a name of webdataset's


def test_what_is_no_count_no_tensor_and_no_sample_is_named(store):
    for count in (float("inf"), -1, 2.5):
        with pytest.raises(ValueError, match=f"num_samples must be a whole number.*got {count}"):
            ss.num_kept(count, 0.5)
    with pytest.raises(ValueError, match=r"losses must be a tensor .* got int"):
        ss.weighted(5, [1.0])
    with pytest.raises(IndexError, match="-1 fills up batches"):
        ss.ShardDataset(store)[-1]


@pytest.mark.parametrize("sample_id", [1.5, np.float64(2.0), torch.tensor(2.0), True, "2"])
def test_ids_of_samples_are_integers(store, sample_id):
    """An id that went through a float may be that of another sample."""
    data = ss.ShardDataset(store)
    with pytest.raises(ValueError, match="sample ids must be integers, got "):
        data[sample_id]
    for same in (2, np.int32(2), torch.tensor(2)):
        assert data[same]["__id__"] == 2


def test_weights_are_not_rounded_to_losses_of_few_bits():
    losses = torch.tensor([1.0, 3.0], dtype=torch.bfloat16, requires_grad=True)
    mean = ss.weighted(losses, torch.tensor([1.2345, 0.77]))
    mean.backward()
    assert float(mean.detach()) == pytest.approx((1.2345 + 3 * 0.77) / 2, rel=1e-6)
    assert losses.grad.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("policy", "name", "wrong"),
    [
        (ss.EpsilonGreedy, "epsilon", 1.1),
        (ss.EpsilonGreedy, "epsilon", -0.1),
        (ss.UCB, "alpha", 0),
        (ss.UCB, "alpha", 1.1),
        (ss.UCB, "keep_fraction", 1.1),
        (ss.InfoBatch, "prune_probability", 1.0),
        (ss.InfoBatch, "quantile", 1.0),
        (ss.SeTa, "ratio", 1.0),
        (ss.SeTa, "alpha", 0),
        (ss.SeTa, "alpha", 1.1),
        (ss.SeTa, "rounding", "floor"),
    ],
)
def test_settings_of_policies_out_of_range_are_refused(policy, name, wrong):
    needed = {} if policy in (ss.InfoBatch, ss.SeTa) else {"keep_fraction": 0.5}
    with pytest.raises(ValueError, match=rf"^{name} must .*got '?{wrong}"):
        policy(**needed | {name: wrong})


@pytest.mark.parametrize(
    "batch", [{"image": 1}, [{"image": 1}] * 2, (torch.ones(2, 3), torch.ones(2)), object()]
)
def test_a_batch_without_weights_is_told_the_cure(batch):
    with pytest.raises(ValueError, match=r"one weight per sample, got a .* hand on `__weight__`"):
        ss.weighted(torch.ones(2), batch)


def test_weights_are_found_in_a_batch_of_any_form():
    weights = torch.tensor([2.0, 1.0])
    samples = [{"__weight__": 2.0}, {"__weight__": 1.0}]
    for batch in (weights, samples, {"__weight__": weights}, SimpleNamespace(weights=weights)):
        assert ss.weighted(torch.tensor([1.0, 2.0]), batch) == 2
    for losses in (torch.ones(3), torch.ones(2, 1), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="losses must have one value per weight"):
            ss.weighted(losses, weights)


NUMBERED = {
    "random": lambda half, n: ss.RandomDynamic(half),
    "ucb": lambda half, n: ss.UCB(half, period=n, c=half),
    "infobatch": lambda half, n: ss.InfoBatch(half, num_epochs=n),
    "seta": lambda half, n: ss.SeTa(ratio=half, groups=n, num_epochs=n),
    "annealed": lambda half, n: ss.AnnealedScore("mine", half, half, n),
}


@pytest.mark.parametrize("make", NUMBERED.values(), ids=NUMBERED)
def test_constants_of_policies_may_be_numpys_numbers_and_states_hold_plain_ones(store, make):
    """Such a state could not be read again, or was another plan's."""
    states, plans = [], []
    for policy in (make(np.linspace(0, 1, 3)[1], np.int64(3)), make(0.5, 3)):
        state = ss.PrunedShardSampler(store, policy=policy).state_dict()
        plans.append(state["plan"])
        file = io.BytesIO()
        torch.save(state, file)
        held = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        states.append(json.dumps(held["policy"]["policy"]))
    assert states[0] == states[1]
    assert plans[0] == plans[1]


def test_settings_of_runs_may_be_numpys_numbers_and_are_written_as_plain_ones():
    sizes = {"resolutions": ((np.int64(0), np.int32(8)),)}
    config = TrainConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), **sizes)
    plain = TrainConfig(epochs=3, learning_rate=0.5, resolutions=((0, 8),))
    assert TrainConfig(compile=np.True_).compile is True
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())
    attack = Adversary(steps=np.int64(2), epsilon=np.float32(0.5))
    assert json.dumps(attack.to_dict()) == json.dumps(Adversary(steps=2, epsilon=0.5).to_dict())
    assert json.dumps(vars(TurtleConfig(np.int64(2)))) == json.dumps(vars(TurtleConfig(2)))


@pytest.mark.parametrize(
    ("name", "last", "beyond"),
    [
        *((name, 1, 0) for name in ("epochs", "accumulate", "size")),
        *((name, 0, -1) for name in ("workers", "max_unreadable", "shuffle_window", "seed")),
        *((name, 3, 2.5) for name in ("epochs", "batch_size", "seed", "size", "channels")),
        *((name, 0, -1e-9) for name in ("weight_decay", "momentum", "label_smoothing", "ema")),
        *((name, 0.999, 1) for name in ("momentum", "label_smoothing", "ema")),
        *(("learning_rate", 1e-9, wrong) for wrong in (0, True, "0.1", np.inf, None)),
        ("batch_size", 2, 1),
        ("epochs", 2**63 - 1, 2**63),
        ("seed", 2**32 - 2, 2**32 - 1),
        ("size", 65_535, 65_536),
        ("channels", 1, 0),
        ("channels", None, 4),
        ("schedule", "cosine", "linear"),
        ("precision", "fp16", "fp8"),
        ("resolutions", ((0, 1),), ((-1, 1),)),
        ("resolutions", ((0, 1), (1, 1)), ((1, 8), (0, 8), (1, 9))),
        ("resolutions", [[2, 65_535]], [[2, 65_536]]),
        ("resolutions", (), ((1, 2, 3),)),
    ],
)
def test_settings_of_a_run_end_at_their_limits(name, last, beyond):
    assert getattr(TrainConfig(**{name: last}), name) == last
    with pytest.raises(ValueError, match=f"^{name} must"):
        TrainConfig(**{name: beyond})


def test_rates_begin_and_end_as_they_are_said_to():
    one = TrainConfig(learning_rate=0.5)
    assert [one.rate(share) for share in (0, 0.3, 1)] == pytest.approx([0.02, 0.5, 2e-6], rel=1e-9)
    assert one.rate(0.15) == pytest.approx(0.26)
    cosine = TrainConfig(learning_rate=0.5, schedule="cosine")
    assert [cosine.rate(share) for share in (0, 1, 1.01)] == pytest.approx([0.5, 0, 0])


def test_how_a_score_was_made_that_is_not_there_is_one_line(store):
    with pytest.raises(ss.MissingScoreError, match=r"\(mine\), got 'nope'; run"):
        store.provenance("nope")


def test_a_sampler_and_its_loader_have_one_batch_size(store):
    """Steps were counted by the one and made by the other, so that a state lost its place."""
    sampler = ss.PrunedShardSampler(store, batch_size=2)
    loader = torch.utils.data.DataLoader(ss.ShardDataset(store), 3, sampler=sampler)
    for ask in (list, len):
        with pytest.raises(ValueError, match="must be what its loader gives one rank, 3, got 2"):
            ask(loader)
