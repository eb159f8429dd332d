"""Policies inside the trainer: killed, resumed, weighted, and handed over as scores."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tars import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.policy.named import POLICIES, make_policy
from shardsieve.train.config import TrainConfig
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import load_model
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.subset import train_subset

CONFIG = TrainConfig(epochs=4, batch_size=32, size=8, channels=1, augment="crop")
CONSTANTS = {
    "annealed": {"score": "up", "keep_fraction": 0.3},
    "epsilon-greedy": {"keep_fraction": 0.4, "period": 2},
    "infobatch": {"prune_probability": 0.5},
    "random-dynamic": {"keep_fraction": 0.4},
    "seta": {"ratio": 0.1, "alpha": 0.6},
    "ucb": {"keep_fraction": 0.4, "period": 2, "score": "up"},
}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    shards = pack("digits", folder, samples_per_shard=100, test_fraction=0.8)[0]
    made = ss.index(shards.pattern, folder / "s.zarr")
    made.put_score("up", np.linspace(0, 2, len(made)))
    return made


def trained(store, name, folder, kills=()):
    """Train under a policy, killed after these steps; return weights and the batches seen."""
    seen = {}
    for kill in (*kills, None):
        policy = make_policy(name, epochs=CONFIG.epochs, seed=1, **CONSTANTS[name])
        torch.manual_seed(0)
        trainer = Trainer(
            load_model("light", 10, 1),
            store,
            policy,
            CONFIG,
            Accelerator(cpu=True),
            folder=RunFolder(folder),
            checkpoint_steps=3,
        )

        update = trainer.sampler.update

        def watched(ids, losses, trainer=trainer, update=update):
            seen[trainer.done.steps] = ids.tolist()
            update(ids, losses)

        def progress(done, total, note="", kill=kill):
            if done == kill:
                raise Killed

        trainer.sampler.update = watched
        try:
            for _ in trainer.epochs(None, progress):
                pass
        except Killed:
            continue
    return trainer, seen


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_a_killed_run_under_a_policy_makes_the_steps_of_an_undisturbed_one(store, tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, batches = trained(store, name, tmp_path / "a")
    cut, again = trained(store, name, tmp_path / "b", kills=(2, 7, 16))
    assert again == batches
    a, b = whole.network.state_dict(), cut.network.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    losses = [[row["loss"] for row in t.done.history] for t in (whole, cut)]
    assert losses[0] == losses[1]
    assert whole.done.samples == cut.done.samples == sum(len(ids) for ids in batches.values())
    if name not in ("annealed", "random-dynamic"):
        policies = [t.sampler.policy for t in (whole, cut)]
        np.testing.assert_array_equal(policies[0].learned(), policies[1].learned())


def test_an_epochs_loss_is_the_mean_over_its_samples(store):
    """Also of those in a smaller last batch."""
    keep = ss.select(store, rule="random", keep_fraction=1)
    trainer = Trainer(load_model("light", 10, 1), store, keep, CONFIG, Accelerator(cpu=True))
    seen, update = [], trainer.sampler.update
    trainer.sampler.update = lambda ids, losses: seen.append(losses) or update(ids, losses)
    next(trainer.epochs())
    assert len(seen[-1]) < len(seen[0])
    wanted = torch.cat(seen).mean().item()
    assert trainer.done.history[0]["loss"] == pytest.approx(wanted, rel=1e-6)


def test_weights_of_the_policy_reach_the_gradient(store):
    """A step under weights is the step on the weighted mean of per-sample losses."""
    policy = ss.InfoBatch(0.5, num_epochs=4, seed=1)
    policy.bind(store)
    policy.update(store.ids(), np.linspace(0, 1, len(store)))
    torch.manual_seed(0)
    trainer = Trainer(load_model("light", 10, 1), store, policy, CONFIG, Accelerator(cpu=True))
    trainer.sampler.set_epoch(1)
    batch = next(iter(trainer.loader))
    assert set(batch.weights.tolist()) == {1.0, 2.0}
    weights = trainer.sampler.keep_set.weights_of(batch.ids.numpy())
    assert torch.equal(batch.weights, torch.from_numpy(weights))
    how = {"epoch": 1, "place": 0, "share": 1.0, "last": True}
    logits, losses = trainer.stepper.batch(batch, **how)
    ours = [p.grad.clone() for p in trainer.stepper.bare.parameters()]
    trainer.stepper.optimizer.zero_grad()
    one_by_one = torch.nn.functional.cross_entropy(logits.detach(), batch.labels, reduction="none")
    torch.testing.assert_close(one_by_one, losses)
    heavy = batch._replace(weights=batch.weights * 3)
    trainer.stepper.batch(heavy, **how)
    for mine, theirs in zip(ours, trainer.stepper.bare.parameters(), strict=True):
        torch.testing.assert_close(3 * mine, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_hands_its_policy_over_as_a_score_and_says_what_it_took(store, tmp_path):
    policy = make_policy("infobatch", epochs=4, seed=1)
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(), "policy_score": "learned"}
    result = train_subset(store, policy, CONFIG, **how)
    scored = store.score("learned")
    assert np.isfinite(scored).all()
    assert store.provenance("learned")["definition"].startswith("infobatch(prune_probability=0.5")
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    kept = [json.loads(line)["kept"] for line in lines]
    assert kept[0] == kept[-1] == len(store) > min(kept)
    assert result["policy"]["policy"] == "infobatch"
    assert result["samples"] == sum(kept)
    cost = result["cost"]
    assert cost["full_run"]["measured"] is False
    assert cost["full_run"]["backward"] == 4 * len(store)
    assert cost["saved"]["trained_samples"] == 4 * len(store) - sum(kept)
    again = ss.select(store, score="learned", keep_fraction=0.5)
    assert len(again) == ss.num_kept(len(store), 0.5)
    with pytest.raises(ss.ShardsieveError, match="another run: keep is"):
        train_subset(store, again, CONFIG, folder=tmp_path / "run", accelerator=Accelerator())


def test_a_finished_run_hands_its_policy_over_without_training_again(store, tmp_path):
    config = replace(CONFIG, epochs=1, batch_size=256)

    def trained(name, policy_score):
        how = {"folder": tmp_path / name, "accelerator": Accelerator()}
        policy = ss.InfoBatch(num_epochs=1)
        return train_subset(store, policy, config, policy_score=policy_score, **how)

    result = trained("with", "first")
    assert trained("with", "again") == result
    np.testing.assert_array_equal(store.score("again"), store.score("first"))
    result = trained("without", None)
    with pytest.raises(ss.ShardsieveError, match="finished without policy_score and its policy is"):
        trained("without", "late")
    assert trained("without", None) == result


def test_a_loss_that_is_not_finite_is_counted_and_its_sample_kept(store, caplog):
    policy = ss.InfoBatch(0.9, num_epochs=9)
    policy.bind(store)
    losses = np.ones(len(store))
    losses[5] = np.nan
    policy.update(store.ids(), losses)
    assert 5 in policy.choose(1).rows
    assert policy.not_finite == 1
    state = policy.state_dict()
    twin = ss.InfoBatch(0.9, num_epochs=9)
    twin.bind(store)
    twin.load_state_dict(state)
    assert twin.not_finite == 1
    assert np.isnan(twin.learned()[5])
    assert f"sample id {store.ids()[5]} is nan" in caplog.text


def test_bad_policies_are_one_line_before_training(store, tmp_path):
    with pytest.raises(ValueError, match="policy must be one of annealed, epsilon-greedy"):
        make_policy("infobach", epochs=4)
    with pytest.raises(ValueError, match=r"seta must be given ratio, groups, .* got 'period'"):
        make_policy("seta", epochs=4, period=3)
    with pytest.raises(ValueError, match="ucb must be given keep_fraction, got none"):
        make_policy("ucb", epochs=4)
    with pytest.raises(ValueError, match="annealed must be given score, got none"):
        make_policy("annealed", epochs=4, keep_fraction=0.5)
    short, long = (ss.InfoBatch(num_epochs=CONFIG.epochs + by) for by in (-1, 1))
    how = {"folder": tmp_path / "run", "accelerator": Accelerator()}
    with pytest.raises(ValueError, match="num_epochs must be the run's 4, got 5"):
        train_subset(store, long, CONFIG, **how)
    with pytest.raises(ValueError, match="must be below num_epochs=3, got 3; plan longer"):
        train_subset(store, short, CONFIG, **how)
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    with pytest.raises(ValueError, match="policy_score must come with a policy"):
        train_subset(store, keep, CONFIG, policy_score="x", **how)
    with pytest.raises(ValueError, match="RandomDynamic learns no score; leave policy_score out"):
        train_subset(store, ss.RandomDynamic(0.5), CONFIG, policy_score="x", **how)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("told", [True, False])
def test_a_loop_that_forgets_set_epoch_under_a_policy_is_warned_once(tmp_path, caplog, told):
    store = ss.index(write_shards(tmp_path / "d", [9]), tmp_path / "s.zarr")
    sampler = ss.PrunedShardSampler(store, policy=ss.RandomDynamic(0.5), batch_size=2)
    for epoch in range(4):
        if told:
            sampler.set_epoch(epoch)
        assert len(list(sampler)) == 5
    said = [one for one in caplog.messages if "call sampler.set_epoch(epoch)" in one]
    assert len(said) == (not told)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("cut", [True, False])
def test_a_loop_that_cuts_a_keep_set_that_grows_is_warned_once(tmp_path, caplog, cut, workers):
    """As `transformers.Trainer` does, which counts the steps of one epoch before it begins."""
    store = ss.index(write_shards(tmp_path / "d", [40]), tmp_path / "s.zarr")
    store.put_score("up", range(40))
    sampler = ss.PrunedShardSampler(store, policy=ss.AnnealedScore("up", 0.3, 1.0, 4))
    data, how = ss.ShardDataset(store), {"collate_fn": list, "num_workers": workers}
    loader = Accelerator(cpu=True).prepare(DataLoader(data, 4, sampler=sampler, **how))
    steps = len(loader)
    for epoch in range(4):
        loader.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(steps if cut else len(loader)):
            next(batches)
    said = [one for one in caplog.messages if "was left after" in one]
    assert len(said) == cut
    assert not cut or "epoch 1 was left after 12 of 21 samples" in said[0]
