import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tars import write_shards

import shardsieve as ss
from shardsieve import scores
from shardsieve.commands.training import embed_store
from shardsieve.keepset import KeepSet
from shardsieve.pack import pack
from shardsieve.train import Recorder
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder
from shardsieve.train.images import augment, normalised
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loading import make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import light, load_model, resnet18
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seeding import draw_seeds, score_seeds, with_known_images
from shardsieve.train.subset import train_subset

CONFIG = TrainConfig(epochs=5, batch_size=32, augment="crop")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return pack("digits", folder, samples_per_shard=400, test_fraction=0.2)


@pytest.fixture
def stores(packed, tmp_path):
    return [ss.index(s.pattern, tmp_path / f"{s.split}.zarr") for s in packed]


class Killed(Exception):
    pass


def kill_after(steps):
    def progress(done, total, note=""):
        if done == steps:
            raise Killed

    return progress


# The recorder ------------------------------------------------------------------------------


def test_the_recorder_keeps_what_a_loop_shows_it():
    torch.manual_seed(0)
    recorder, seen = Recorder([10, 20, 30], 4), []
    labels = torch.tensor([1, 3, 0])
    for _ in range(5):
        logits = torch.randn(3, 4)
        for rows in ([2, 0], [1]):
            recorder.record(torch.tensor([10, 20, 30])[rows], logits[rows], labels[rows])
        recorder.end_epoch()
        seen.append(logits.softmax(dim=1).double().numpy())
    probs, y = np.stack(seen), labels.numpy()
    np.testing.assert_allclose(recorder.signal("p_true"), probs[:, [0, 1, 2], y], rtol=1e-5)
    error = [scores.el2n(p, y) for p in probs]
    np.testing.assert_allclose(recorder.signal("el2n"), error, rtol=1e-5)
    entropies = [scores.entropy(p) for p in probs]
    np.testing.assert_allclose(recorder.signal("entropy"), entropies, rtol=1e-4)
    tdds = scores.tdds_from_divergence(recorder.signal("divergence")[1:], 3)
    np.testing.assert_allclose(tdds, scores.tdds(probs, 3), rtol=1e-3, atol=1e-5)
    assert np.isnan(recorder.signal("divergence")[0]).all()
    right = (probs.argmax(axis=2) == y).astype(float)
    np.testing.assert_array_equal(recorder.signal("correct"), right)


def test_a_sample_not_seen_in_an_epoch_is_nan_and_a_stranger_is_left_out():
    recorder = Recorder([1, 2], 2)
    recorder.record(torch.tensor([7, 2]), torch.zeros(2, 2), torch.tensor([0, 0]))
    recorder.end_epoch()
    assert np.isnan(recorder.signal("loss")).tolist() == [[True, False]]


# Scoring and embedding ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("clean_pass", [False, True])
def test_seeds_are_trained_scored_and_embedded(stores, tmp_path, clean_pass):
    store = stores[0]
    seeds = draw_seeds(store, 0.3, per_class=True)
    how = {"folder": tmp_path / "run", "window": 3, "clean_pass": clean_pass}
    result = score_seeds(store, seeds, CONFIG, accelerator=Accelerator(), **how)
    assert result["steps"] == -(-len(seeds) // 32) * 5
    assert result["samples"] == len(seeds) * 5
    for name in ("seed_dyn_unc", "seed_tdds", "seed_el2n"):
        scored = np.isfinite(store.score(name))
        assert store.ids()[scored].tolist() == seeds.tolist()
    made = store.provenance("seed_tdds")
    assert made["definition"] == "tdds(window=3)"
    assert made["view"] == ("clean" if clean_pass else "training")
    loaded = Recorder.load(store, "seed")
    np.testing.assert_array_equal(loaded.ids, seeds)
    encoder = load_encoder(str(tmp_path / "run"))
    assert encoder.seeds == KeepSet.from_ids(store, seeds).digest
    assert encoder.cost == result["cost"]
    assert embed(store, encoder.network, name="seed", accelerator=Accelerator()) == len(store)
    points = store.embedding("seed")
    assert points.shape == (len(store), 64)
    assert np.isfinite(points).all()
    again = score_seeds(store, seeds, CONFIG, accelerator=Accelerator(), **how)
    assert again == result
    with pytest.raises(ss.StoreMismatchError, match=r"other weights .*\.zarr --embedding seed`"):
        embed(store, light(10, 1), name="seed", accelerator=Accelerator())


@pytest.mark.slow
def test_a_killed_scoring_goes_on_to_the_same_scores(stores, packed, tmp_path):
    whole, config = stores[0], TrainConfig(epochs=5, batch_size=32)
    seeds, how = draw_seeds(whole, 0.2), {"window": 3, "accelerator": Accelerator(cpu=True)}
    score_seeds(whole, seeds, config, folder=tmp_path / "whole", **how)
    for step in (1, 13, 40):
        cut, how["folder"] = (
            ss.index(packed[0].pattern, tmp_path / f"{step}.zarr"),
            tmp_path / f"{step}",
        )
        with pytest.raises(Killed):
            score_seeds(cut, seeds, config, progress=kill_after(step), **how)
        assert cut.scores == []
        score_seeds(cut, seeds, config, **how)
        for name in whole.scores:
            np.testing.assert_array_equal(whole.score(name), cut.score(name))


def test_a_killed_embedding_resumes_with_the_shards_that_are_left(stores):
    torch.manual_seed(0)
    store, model = stores[0], light(10, 1)

    def killed(done, total):
        raise Killed

    embed(store, model, name="whole", accelerator=Accelerator())
    with pytest.raises(Killed):
        embed(store, model, name="cut", accelerator=Accelerator(), progress=killed)
    assert np.isnan(store.embedding("cut")[400:]).all()
    left = embed(store, model, name="cut", accelerator=Accelerator())
    assert left == len(store) - 400
    np.testing.assert_array_equal(store.embedding("cut"), store.embedding("whole"))


def test_a_built_in_network_takes_as_many_channels_as_the_images_have(stores):
    store = stores[0]
    made = embed_store(store.path, model="light", name="grey")
    assert (made["embedded_now"], made["dim"]) == (len(store), 64)


def test_workers_embed_the_same_and_all_bytes_are_counted(stores):
    torch.manual_seed(0)
    store, model = stores[0], light(10, 1)
    how = {"batch_size": 150, "accelerator": Accelerator()}
    embed(store, model, name="alone", **how)
    embed(store, model, name="workers", workers=2, **how)
    np.testing.assert_array_equal(store.embedding("alone"), store.embedding("workers"))
    nbytes = int(store.ranges[..., 1][store.ranges[..., 0] >= 0].sum())
    for name in ("alone", "workers"):
        cost = store.embedding_array(name).attrs["cost"]
        assert (cost["forward"], cost["bytes"]) == (len(store), nbytes)


def test_a_batch_that_cannot_be_read_leaves_its_rows_and_no_others_without_embedding(
    packed, tmp_path
):
    torch.manual_seed(0)
    url = shutil.copy(packed[0].shards[0], tmp_path / "cut.tar")
    store, model = ss.index([str(url)], tmp_path / "cut.zarr"), light(10, 1)
    embed(store, model, name="whole", accelerator=Accelerator())
    begin, end = int(store.ranges[0, 200, 0]), int(store.ranges[0, 399].sum())
    with Path(url).open("r+b") as file:  # the last two batches
        file.seek(begin)
        file.write(b"\1" * (end - begin))
    how = {"batch_size": 100, "max_unreadable": 300, "accelerator": Accelerator()}
    embed(store, model, name="cut", workers=1, **how)
    found, whole = store.embedding("cut"), store.embedding("whole")
    np.testing.assert_array_equal(found[:200], whole[:200])
    assert np.isnan(found[200:]).all()


def test_an_embedding_is_made_in_the_precision_asked_for(stores):
    torch.manual_seed(0)
    store, model = stores[1], light(10, 1)
    embed(store, model, name="float", accelerator=make_accelerator())
    embed(store, model, name="short", accelerator=make_accelerator(precision="bf16"))
    exact, short = (store.embedding(name).astype("f4") for name in ("float", "short"))
    make_accelerator()  # the state is the process's
    assert 0 < np.abs(exact - short).max() < 0.1 * np.abs(exact).max()


class Scaled(torch.nn.Module):
    """Embeds an image as one number: up to `most` where `share` of the images are that large."""

    def __init__(self, most, share):
        super().__init__()
        self.most, self.share, self.seen = most, share, 0

    def forward(self, images):
        places = torch.arange(self.seen, self.seen + len(images))
        self.seen += len(images) if len(images) > 1 else 0  # one blank image asks for the size
        large = places % 100 < 100 * self.share
        return torch.where(large, self.most, 1.0)[:, None]


@pytest.mark.parametrize(
    ("most", "share", "message"),
    [
        (65504.0, 1.0, None),
        (7e4, 0.4, None),
        (
            7e4,
            0.6,
            "embeddings must be at most 65504 to be stored as float16, most of those of the",
        ),
        (float("nan"), 0.01, "embeddings must be finite, those of the shard with sample id 0 are"),
        (float("inf"), 0.01, "embeddings must be finite"),
    ],
)
def test_embeddings_too_large_for_the_store_are_cut_off_or_refused(stores, most, share, message):
    store = stores[1]
    how = {"name": "e", "batch_size": 100, "accelerator": Accelerator()}
    if message is not None:
        with pytest.raises(ss.ShardsieveError, match=message):
            embed(store, Scaled(most, share), **how)
        assert np.isnan(store.embedding("e")).all()
        return
    embed(store, Scaled(most, share), **how)
    assert set(np.unique(store.embedding("e"))) <= {1.0, 65504.0}


def test_seeds_are_drawn_by_class_when_asked(stores):
    store = stores[0]
    labels = store.labels()
    seeds = draw_seeds(store, 0.2, per_class=True)
    shares = np.bincount(labels[store.rows(seeds)]) / np.bincount(labels)
    assert len(seeds) == ss.num_kept(len(store), 0.2)
    assert np.ptp(shares) < 0.02


# Training ----------------------------------------------------------------------------------


def digest(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def run_to_the_end(store, keep, folder, kills=(), checkpoint_steps=0, batch_size=32):
    """Train, killed at these steps; return the weights and the ids in the order of training."""
    config = with_known_images(store, TrainConfig(epochs=3, batch_size=batch_size, augment="crop"))
    seen = []
    for kill in (*kills, None):
        torch.manual_seed(0)
        trainer = Trainer(
            load_model("light", 10, 1),
            store,
            keep,
            config,
            Accelerator(cpu=True),
            folder=RunFolder(folder),
            checkpoint_steps=checkpoint_steps,
        )
        del seen[trainer.done.samples + trainer.done.place :]

        class Watch:
            def record(self, ids, logits, labels):
                seen.extend(ids.tolist())

        try:
            for _ in trainer.epochs(Watch(), kill_after(kill) if kill else None):
                pass
        except Killed:
            continue
    return digest(trainer.network), seen


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(1,), (7, 9), (12, 23, 30)])
def test_a_killed_run_makes_the_same_steps_as_an_undisturbed_one(stores, tmp_path, kills):
    store = stores[0]
    keep = ss.select(store, rule="random", keep_fraction=0.25)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    whole, order = run_to_the_end(store, keep, folders[0])
    cut, again = run_to_the_end(store, keep, folders[1], kills, checkpoint_steps=4)
    assert again == order
    assert sorted(order) == sorted(np.tile(keep.ids(), 3).tolist())
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_killed_after_its_last_checkpoint_has_the_history_of_all_epochs(
    stores, tmp_path, monkeypatch
):
    keep, save = ss.select(stores[0], rule="random", keep_fraction=0.05), RunFolder.save_checkpoint

    def killed(run, state, steps):
        save(run, state, steps)
        if state["done"]["epoch"] == 2:
            raise Killed

    how = {"folder": tmp_path / "run", "accelerator": Accelerator()}
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed)
        with pytest.raises(Killed):
            train_subset(stores[0], keep, TrainConfig(epochs=2, batch_size=32), **how)
    train_subset(stores[0], keep, TrainConfig(epochs=2, batch_size=32), **how)
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


@pytest.mark.slow
def test_training_on_half_learns_and_says_what_it_took(stores, tmp_path):
    store, test = stores
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    config = TrainConfig(epochs=6, batch_size=32)
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(), "test": test}
    result = train_subset(store, keep, config, **how)
    assert result["accuracy"] > 0.8
    assert result["samples"] == len(keep) * 6
    assert result["steps"] == -(-len(keep) // 32) * 6
    assert result["phases"]["train"]["bytes"] == keep.nbytes(store) * 6
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(6))
    assert train_subset(store, keep, config, **how) == result
    encoder = load_encoder(str(tmp_path / "run"))  # what it says is of samples it knows and others
    assert (encoder.seeds, encoder.cost) == (keep.digest, None)
    with pytest.raises(ss.ShardsieveError, match=r"another run: epochs is 6 there, 7 now"):
        train_subset(store, keep, TrainConfig(epochs=7, batch_size=32), **how)
    everything = ss.select(store, keep_fraction=1.0)
    with pytest.raises(ss.ShardsieveError, match="another run: keep is"):
        train_subset(store, everything, config, **how)


def test_a_subset_trained_adversarially_stands_its_attack_better(stores, tmp_path):
    store, test = stores
    keep = ss.select(store, rule="random", keep_fraction=0.3)
    attack = Adversary(method="pgd", epsilon=0.1, step=0.05, steps=3)
    how = {"accelerator": Accelerator(), "test": test}
    losses = []
    for name, adversary in (("plain", None), ("attacked", attack)):
        folder, config = tmp_path / name, TrainConfig(epochs=6, batch_size=32)
        result = train_subset(store, keep, config, folder=folder, adversary=adversary, **how)
        # The attack's passes are counted, but no sample is seen more often for it.
        passes = 4 if adversary else 1
        assert result["samples"] == 6 * len(keep)
        spent, full = result["cost"]["phases"]["training"], result["cost"]["full_run"]
        assert spent["forward"] == spent["backward"] == passes * 6 * len(keep)
        assert full["backward"] == pytest.approx(passes * 6 * len(store), abs=passes)
        network = load_encoder(str(folder), weights=None, num_classes=10).network.eval()
        batch = next(iter(make_loader(test, keep_all(test), with_known_images(test, config))[0]))
        loss = torch.nn.CrossEntropyLoss(reduction="none")
        attacked = attack(network, network, normalised(batch.images), batch.labels, loss)[1]
        losses.append(attacked.mean().item())
    assert losses[1] < 0.8 * losses[0]
    with pytest.raises(ss.ShardsieveError, match="another run: adversary is"):
        train_subset(store, keep, config, folder=tmp_path / "attacked", **how)


def keep_all(store):
    return ss.select(store, keep_fraction=1.0)


def test_the_schedule_is_torchs_one_cycle():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 0.2)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=1001)
    ours = TrainConfig(learning_rate=0.2)
    for step in range(1001):
        # Torch's peak lies one step early: its warm-up counts 0.3 * 1001 - 1 steps.
        assert ours.rate(step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=2e-3)
        optimizer.step()
        if step < 1000:
            theirs.step()


def test_crops_keep_the_shape_and_move_at_most_an_eighth():
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16) + 1
    seen = set()
    for draw in range(50):
        out = augment(images, torch.Generator().manual_seed(draw), flip=False)
        assert out.shape == images.shape
        value = int(out[0, 0, 8, 8]) - 1
        row, column = divmod(value, 16)
        seen.add((row - 8, column - 8))
    assert {row for row, _ in seen} == {column for _, column in seen} == {-2, -1, 0, 1, 2}


# Bad input ---------------------------------------------------------------------------------


def test_bad_settings_are_refused_before_training(stores, tmp_path):
    store = stores[0]
    how = {"folder": tmp_path / "run", "accelerator": Accelerator()}
    with pytest.raises(ValueError, match=r"must have more than window=10 epochs, got 5.*dyn_unc"):
        score_seeds(store, store.ids()[:50], CONFIG, **how)
    with pytest.raises(
        ValueError, match=r"window must be .* at least 3, got 2; .*score tdds, which `shardsieve sc"
    ):
        score_seeds(store, store.ids()[:50], CONFIG, window=2, **how)
    store.put_score("seed_el2n", np.zeros(len(store)))
    with pytest.raises(ss.StoreMismatchError, match="'seed_el2n' holds the definition 'user'"):
        score_seeds(store, store.ids()[:50], CONFIG, window=3, **how)
    with pytest.raises(ss.ShardsieveError, match="model must be light, resnet18, resnet50 or"):
        load_model("nothing", 10)
    with pytest.raises(ss.ShardsieveError, match=r"cannot load model 'no.such:thing'"):
        load_model("no.such:thing", 10)
    with pytest.raises(ss.ShardsieveError, match="no network at"):
        load_encoder(str(tmp_path / "nothing.pt"))
    other = ss.index(write_shards(tmp_path, [11], classes=11), tmp_path / "other.zarr")
    with pytest.raises(ss.ShardsieveError, match=r"labels below 10, .*, got 10 in .*other\.zarr"):
        train_subset(store, ss.select(store, keep_fraction=1.0), CONFIG, test=other, **how)
    assert not (tmp_path / "run").exists()


def test_only_the_scores_that_are_asked_for_need_a_window(stores, tmp_path):
    how = {"folder": tmp_path / "run", "accelerator": Accelerator(), "scores": ["el2n"]}
    score_seeds(stores[0], stores[0].ids()[:50], replace(CONFIG, epochs=1), **how)
    assert stores[0].scores == ["seed_el2n"]


def test_a_factory_may_lie_in_the_folder_of_the_start(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch.nn import Linear\ndef net(): return Linear(2, 3)"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != ""])
    assert load_model("nets_of_mine:net", 3).out_features == 3
    assert sys.path.count(str(tmp_path)) == 1


FACTORIES = """
from torch.nn import Linear
def by_name(width=2, num_classes=5): return Linear(width, num_classes)
def by_place_only(num_classes=4, /): return Linear(2, num_classes)
def by_place(classes): return Linear(2, classes)
def by_any_name(*, weights=None, **more): return Linear(2, more.get("num_classes", 6))
def by_place_first(classes=7, **more): return Linear(2, classes)
def untold(): return Linear(2, 8)
"""


@pytest.mark.parametrize(
    ("factory", "told", "own"),
    [
        ("by_name", 3, 5),
        ("by_place_only", 3, 4),
        ("by_place", 3, 1000),
        ("by_any_name", 3, 6),
        ("by_place_first", 3, 7),
        ("untold", 8, 8),
    ],
)
def test_a_factory_is_told_the_classes_where_it_can_be(tmp_path, monkeypatch, factory, told, own):
    (tmp_path / "told_classes.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    spec = f"told_classes:{factory}"
    assert load_model(spec, 3).weight.shape == (told, 2)
    assert load_model(spec, None).weight.shape == (own, 2)


def test_a_checkpoint_fits_a_factory_that_knows_its_classes(tmp_path, monkeypatch):
    (tmp_path / "five_classes.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    weights = torch.nn.Linear(2, 5).state_dict()
    torch.save(weights, tmp_path / "five.pt")
    made = load_encoder("five_classes:by_name", weights=tmp_path / "five.pt")
    assert torch.equal(made.network.weight, weights["weight"])


def test_built_in_nets_embed_what_they_classify():
    images = torch.randn(2, 3, 32, 32)
    for make, dim in ((light, 64), (resnet18, 512)):
        net = make(10).eval()
        assert net.features(images).shape == (2, dim)
        assert torch.allclose(net(images), net.classifier(net.features(images)))
