"""`score`: every score of the recorded signals, more of them later, and the three paradigms."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tars import write_shards
from test_train import Killed, kill_after
from torch import nn

import shardsieve as ss
from shardsieve import cli as program
from shardsieve import scores
from shardsieve.pack import pack
from shardsieve.scores import RECORDED
from shardsieve.train import Recorder
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import Batch, normalised
from shardsieve.train.nets import light
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.seedscores import scores_from_dynamics
from shardsieve.train.stepping import Stepper
from shardsieve.train.turtle import TurtleConfig, score_unsupervised, task_encoders

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("seed_scores")

CONFIG = TrainConfig(epochs=5, batch_size=32)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack("digits", tmp_path_factory.mktemp("digits"), samples_per_shard=400)[0]


@pytest.fixture
def store(packed, tmp_path):
    return ss.index(packed.pattern, tmp_path / "s.zarr")


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory):
    """A store with a finished seed run, to be copied."""
    folder = tmp_path_factory.mktemp("scored")
    store = ss.index(packed.pattern, folder / "s.zarr")
    score_seeds(store, draw_seeds(store, 0.2), CONFIG, **settings(folder))
    return store.path


@pytest.fixture
def scored(finished, tmp_path):
    """A store with a finished seed run, of this test alone."""
    return ss.open_store(shutil.copytree(finished, tmp_path / "scored.zarr"))


def settings(folder, **more):
    return {"folder": folder / "run", "window": 3, "accelerator": Accelerator(cpu=True), **more}


# The supervised run ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_seed_run_stores_every_score_and_says_how_it_was_made(scored):
    names = {f"seed_{name}" for name in set(RECORDED) - {"grand_last_layer"}}
    assert set(scored.scores) == names
    recorder = Recorder.load(scored, "seed")
    rows = scored.rows(recorder.ids)
    for name in names:
        values = scored.score(name)
        assert np.flatnonzero(np.isfinite(values)).tolist() == rows.tolist()
        made = scored.provenance(name)
        assert (made["dynamics"], made["paradigm"], made["view"]) == (
            "seed",
            "supervised",
            "training",
        )
        assert (made["model"], made["epochs"], made["seeds"]) == ("light", 5, len(rows))
        assert made["training"]["learning_rate"] == 0.1
        assert made["measured"]
        assert made["paper"]
    hard = scored.score("seed_confidence")[rows]
    np.testing.assert_allclose(hard, -recorder.signal("p_true").mean(axis=0), rtol=1e-5)
    assert "times -1" in scored.provenance("seed_confidence")["orientation"]
    assert scored.provenance("seed_dyn_unc")["parameters"] == {"window": 3}


@pytest.mark.slow
def test_more_scores_come_from_stored_dynamics_without_training(scored):
    told = []
    names = scores_from_dynamics(
        scored,
        "seed",
        ["dyn_unc:variant=schmidt:window=2"],
        window=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 1)]
    assert names == ["seed_dyn_unc.variant-schmidt.window-2"]
    recorder = Recorder.load(scored, "seed")
    q = recorder.signal("p_true")
    want = scores.dynamic_uncertainty(q, 2, variant="schmidt")
    got = scored.score(names[0])[scored.rows(recorder.ids)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert scored.provenance(names[0])["model"] == "light"
    with pytest.raises(ss.StoreMismatchError, match=r"'seed_dual' holds the definition"):
        scores_from_dynamics(scored, "seed", ["dual"], window=4)
    with pytest.raises(ss.StoreFormatError, match=r"no dynamics of run 'other' \(it has seed\)"):
        scores_from_dynamics(scored, "other")
    before = scored.scores
    with pytest.raises(ValueError, match="got 'nonsense'"):
        scores_from_dynamics(scored, "seed", ["frequency:last=4", "nonsense"], window=3)
    assert scored.scores == before
    scores_from_dynamics(scored, "seed", ["dyn_unc:variant=dual"])  # the window of the run itself
    assert scored.provenance("seed_dyn_unc.variant-dual")["parameters"]["window"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(4,), (7, 23), (21, 38)])
def test_scoring_killed_inside_an_epoch_goes_on_to_the_same_dynamics(
    store, scored, tmp_path, stops
):
    seeds = draw_seeds(store, 0.2)
    how = settings(tmp_path, checkpoint_steps=3)
    for stop in stops:
        with pytest.raises(Killed):
            score_seeds(store, seeds, CONFIG, progress=kill_after(stop), **how)
    assert RunFolder(tmp_path / "run").newest_checkpoint() is not None
    score_seeds(store, seeds, CONFIG, **how)
    whole, cut = Recorder.load(scored, "seed"), Recorder.load(store, "seed")
    assert not np.isnan(cut.signal("loss")).any()
    for name in whole.signals:
        np.testing.assert_array_equal(whole.signal(name), cut.signal(name))


@pytest.mark.slow
def test_a_finished_run_adds_scores_and_records_gradients_when_asked(store, tmp_path):
    seeds, how = draw_seeds(store, 0.1), settings(tmp_path)
    asked = ["dyn_unc", "grand_last_layer"]
    first = score_seeds(store, seeds, CONFIG, scores=asked, **how)
    assert store.scores == ["seed_dyn_unc", "seed_grand_last_layer"]
    recorder = Recorder.load(store, "seed")
    ratio = recorder.signal("grand") / recorder.signal("el2n")
    assert (ratio >= 1).all()
    assert score_seeds(store, seeds, CONFIG, scores=["aum"], **how) == first
    assert "seed_aum" in store.scores


def test_a_wrong_score_is_refused_before_anything_is_trained(store, tmp_path):
    seeds, how = draw_seeds(store, 0.1), settings(tmp_path)
    with pytest.raises(ValueError, match=r"first must be at most the 5 recorded epochs"):
        score_seeds(store, seeds, CONFIG, scores=["dual:first=9"], **how)
    with pytest.raises(ValueError, match="clean_pass must not come with an adversary"):
        score_seeds(store, seeds, CONFIG, adversary=Adversary(), clean_pass=True, **how)
    asked = {"adversary": Adversary(), "scores": ["grand_last_layer"]}
    with pytest.raises(ValueError, match="grand_last_layer must come without an adversary"):
        score_seeds(store, seeds, CONFIG, **asked, **how)
    assert not (tmp_path / "run").exists()
    assert store.scores == []


# Adversarial -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_an_attack_stays_within_epsilon_and_raises_the_loss(method):
    torch.manual_seed(0)
    network, labels = light(10, 1), torch.arange(16) % 10
    images = normalised(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8))
    images.requires_grad_(False)
    network.train()
    network.body[0][1].eval()
    modes = [m.training for m in network.modules()]
    before = {n: v.clone() for n, v in network.state_dict().items()}
    attacked = Adversary(method=method, epsilon=0.1, step=0.02).attack(network, images, labels)
    apart = (attacked - images).abs()
    # 0.1 of the brightness is 0.4 standard deviations.
    assert apart.max() == pytest.approx(0.4, abs=1e-5)
    assert attacked.min() >= -2
    assert attacked.max() <= 2
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    noise = (images + 0.4 * torch.randn_like(images).sign()).clamp(-2, 2)
    with torch.no_grad():
        clean, one, other = (network(x).log_softmax(1) for x in (images, attacked, noise))
    # What each method climbs: the label's loss, or the distance from the clean prediction.
    if method == "pgd":
        assert nn.functional.nll_loss(one, labels) > nn.functional.nll_loss(other, labels)
    else:
        moved = [(clean.exp() * (clean - x)).sum() for x in (one, other)]
        assert moved[0] > 3 * moved[1]


def test_an_attack_in_training_knows_how_images_were_normalised():
    def adversary(model, network, images, labels, loss, *, normalise="half"):
        told.append(normalise)
        return model(images), loss(model(images), labels)

    told, net = [], nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    config, labels = TrainConfig(normalise="imagenet"), torch.tensor([0, 1])
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), labels, labels, torch.ones(2))
    stepper = Stepper(net, config, Accelerator(cpu=True), adversary)
    stepper.batch(batch, epoch=0, place=0, share=1.0, last=True)
    assert told == ["imagenet"]


def test_trades_adds_the_divergence_of_the_attacked_from_the_clean_prediction():
    torch.manual_seed(0)
    network, labels = light(10, 1).eval(), torch.arange(6)
    images = normalised(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8))
    adversary = Adversary(steps=2, beta=3.0, predictions="clean")
    torch.manual_seed(5)
    plain = nn.CrossEntropyLoss(reduction="none")
    recorded, losses = adversary(network, network, images, labels, plain)
    torch.manual_seed(5)
    p = network(images).softmax(1).detach().double()
    q = network(adversary.attack(network, images, labels)).softmax(1).detach().double()
    clean = -p[torch.arange(6), labels].log()
    want = clean + 3.0 * (p * (p / q).log()).sum(dim=1)
    torch.testing.assert_close(losses.detach().double(), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(recorded, network(images))


@pytest.mark.parametrize("predictions", ["adversarial", "clean"])
@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_the_passes_of_an_attack_are_those_that_it_makes(method, predictions):
    network, with_gradient = light(10, 1), []
    network.register_forward_hook(
        lambda module, given, made: with_gradient.append(made.requires_grad)
    )
    images = normalised(torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8))
    adversary = Adversary(method=method, steps=3, predictions=predictions)
    adversary(network, network, images, torch.arange(2), nn.CrossEntropyLoss(reduction="none"))
    assert adversary.passes == (len(with_gradient), sum(with_gradient))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_an_adversarial_run_records_the_predictions_asked_for(store, tmp_path, method):
    seeds, tables = draw_seeds(store, 0.15), {}
    for predictions in ("adversarial", "clean"):
        adversary = Adversary(
            method=method, epsilon=0.2, steps=2, step=0.1, predictions=predictions
        )
        how = settings(tmp_path / predictions, adversary=adversary, name=predictions)
        score_seeds(store, seeds, CONFIG, **how)
        tables[predictions] = Recorder.load(store, predictions)
        made = store.provenance(f"{predictions}_dyn_unc")
        assert (made["paradigm"], made["view"]) == ("adversarial", predictions)
        assert made["adversary"]["method"] == method
    # One training, seen from two sides: attacked images are the harder ones.
    losses = {name: table.signal("loss")[-1].mean() for name, table in tables.items()}
    assert losses["adversarial"] > losses["clean"]


def test_wrong_settings_of_an_attack_are_refused():
    for wrong, message in [
        ({"method": "fgsm"}, r"^method must be one of trades, pgd, got 'fgsm'"),
        ({"epsilon": 8}, r"^epsilon must lie in \(0, 1\], got 8; 8/255 is"),
        ({"steps": 0}, r"^steps must be at least 1"),
        ({"predictions": "both"}, r"^predictions must be one of adversarial, clean"),
    ]:
        with pytest.raises(ValueError, match=message):
            Adversary(**wrong)


# Unsupervised ------------------------------------------------------------------------------


def blobs(count=60):
    """Three clusters of points, their numbers, and points half way between two of them."""
    rng = np.random.default_rng(0)
    middles = np.eye(3, 8) * 6
    truth = np.arange(count) % 3
    points = middles[truth] + 0.5 * rng.normal(size=(count, 8))
    points[:6] = (middles[0] + middles[1]) / 2 + 0.5 * rng.normal(size=(6, 8))
    return points.astype(np.float32), truth


def test_turtle_finds_plain_clusters_evenly_and_repeats():
    points, truth = blobs()
    config = TurtleConfig(3, epochs=150)
    weight, bias = list(task_encoders(torch.from_numpy(points), config))[-1]
    found = (torch.from_numpy(points) @ weight.T + bias).argmax(dim=1).numpy()
    for cluster in range(3):
        own = found[6:][truth[6:] == cluster]
        assert (own == own[0]).all()
    assert len(set(found[6:])) == 3
    again = list(task_encoders(torch.from_numpy(points), config))[-1]
    assert torch.equal(weight, again[0])


@pytest.mark.slow
def test_an_unsupervised_run_scores_what_lies_between_clusters_highest(store, monkeypatch):
    def none(check_available=False):
        if not check_available:
            raise RuntimeError("Cannot access accelerator device when none is available.")

    # As torch 2.6 does.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", none)
    points, _ = blobs()
    table = np.full((len(store), 8), np.nan)
    table[:60] = points
    array = store.embedding_array("mine", 8)
    start = 0
    for shard, rows in enumerate(store.samples.tolist()):
        array[shard, :rows] = table[start : start + rows]
        start += rows
    config = TurtleConfig(3, epochs=150)
    how = {"embedding": "mine", "scores": ["dyn_unc", "confidence"]}
    result = score_unsupervised(store, store.ids()[:100], config, **how)
    assert (result["seeds"], result["pseudo_classes"]) == (60, 3)
    hardness = store.score("unsupervised_confidence")
    assert np.flatnonzero(np.isfinite(hardness)).tolist() == list(range(60))
    assert hardness[:6].min() > np.median(hardness[6:60])
    recorder = Recorder.load(store, "unsupervised")
    assert recorder.signal("correct")[-1].all()
    made = store.provenance("unsupervised_dyn_unc")
    assert (made["paradigm"], made["embedding"]) == ("unsupervised", "mine")
    assert made["training"]["gamma"] == 10.0
    labels = store.pseudo_labels("unsupervised")
    store.forget_pseudo_labels("unsupervised")  # an earlier release stored none
    again = score_unsupervised(store, store.ids()[:100], config, embedding="mine", scores=["dual"])
    assert again == result
    assert "unsupervised_dual" in store.scores
    assert store.pseudo_labels("unsupervised").tolist() == labels.tolist()
    with pytest.raises(ss.ShardsieveError, match="belong to another run"):
        score_unsupervised(store, store.ids()[:50], config, embedding="mine")
    with pytest.raises(ss.MissingScoreError, match=r"\(mine\), got 'none'"):
        score_unsupervised(store, store.ids(), config, embedding="none")
    store.put_pseudo_labels("taken", labels)
    how = {**how, "name": "taken", "progress": lambda *_: pytest.fail("it has begun to work")}
    with pytest.raises(ss.StoreMismatchError, match=r"'taken' of .* were made otherwise; choose"):
        score_unsupervised(store, store.ids(), config, **how)
    with pytest.raises(ValueError, match="classes must be at least 2"):
        TurtleConfig(1)


def test_labels_that_are_all_alike_are_refused_before_anything_is_trained(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [20], classes=1), tmp_path / "s.zarr")
    with pytest.raises(ss.ShardsieveError, match="labels must tell at least 2 classes apart, got"):
        score_seeds(store, store.ids(), replace(CONFIG, size=8, channels=1), **settings(tmp_path))
    assert not list(tmp_path.glob("*/run.json"))
    assert not store.scores


# The command -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_scores_from_dynamics_and_from_embeddings(scored, capsys):
    def call(*arguments):
        command = ["score", "--store", str(scored.path), "--json", *arguments]
        program.app(command, standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    listed = ["--scores", "forgetting:last=4", "--scores", "el2n:last=1"]
    made = call("--from-dynamics", "seed", *listed)
    assert made["scores"] == ["seed_forgetting.last-4", "seed_el2n.last-1"]
    rng = np.random.default_rng(0)
    array = scored.embedding_array("mine", 4)
    for shard, rows in enumerate(scored.samples.tolist()):
        array[shard, :rows] = rng.normal(size=(rows, 4))
    assert call("--from-embedding", "--name", "mine")["scored"] == len(scored)
    points, labels = scored.embedding("mine"), scored.labels()
    half = ss.select(scored, rule="top", score="mine_moderate", keep_fraction=0.5)
    want = ss.keep_moderate(points, labels, 0.5)
    assert scored.rows(half.ids()).tolist() == want.tolist()
    spec = "d2:score=mine_semdedup:per_class=true"
    order = scored.score(call("--from-embedding", "--scores", spec)["scores"][0])
    assert sorted(order.tolist()) == list(range(1, len(scored) + 1))
    with pytest.raises(ValueError, match="paradigm must be one of supervised, adversarial, unsup"):
        call("--paradigm", "guesswork")
    with pytest.raises(ss.MissingScoreError, match="score must name a stored score for d2"):
        call("--from-embedding", "--scores", "d2")
    train = ["--epochs", "5", "--window", "3", "--seeds", "0.1", "--scores", "aum"]
    attack = ["--paradigm", "adversarial", "--attack", "pgd", "--attack-steps", "1"]
    assert call(*train, *attack)["scores"] == ["adversarial_aum"]
    assert scored.provenance("adversarial_aum")["adversary"]["steps"] == 1
    turtle = ["--paradigm", "unsupervised", "--embedding", "mine", "--seeds", "0.1"]
    assert call(*turtle, "--epochs", "12", "--scores", "aum")["pseudo_classes"] >= 1
