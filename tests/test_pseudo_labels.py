"""Pseudo-labels: stored by shard, trained on like labels, and judged by the best matching."""

import io
import itertools
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import write_shards, write_tar
from torch import nn

import shardsieve as ss
from shardsieve import cli as program
from shardsieve.commands.methods import make_task
from shardsieve.commands.training import embed_store
from shardsieve.pack import pack
from shardsieve.pack.beton import pack_beton
from shardsieve.store.append import append_shards
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder, save_network
from shardsieve.train.evaluation import evaluate, matched_accuracy
from shardsieve.train.labels import labels_behind
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import light
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.subset import train_subset

CONFIG = TrainConfig(epochs=4, batch_size=64, learning_rate=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits: labelled tars, the same without labels, a .beton, and stores of all."""
    folder = tmp_path_factory.mktemp("digits")
    packed = pack("digits", folder / "labelled", samples_per_shard=400)
    for name, one in zip(("train", "test"), packed, strict=True):
        ss.index(one.pattern, folder / f"{name}.zarr")
    (folder / "bare").mkdir()
    for path in sorted((folder / "labelled").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]
        images = [one for one in members if not one[0].endswith(".cls")]
        write_tar(folder / "bare" / path.name, images)
    ss.index(sorted((folder / "bare").glob("*.tar")), folder / "bare.zarr")
    return folder


def opened(folder, name="train"):
    return ss.open_store(folder / f"{name}.zarr")


def trained(store, out, config=CONFIG, **more):
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    how = {"folder": out, "accelerator": Accelerator(cpu=True), **more}
    return train_subset(store, keep, config, **how)


def put_truth(folder, store, name="truth", order=range(10)):
    """Store the true labels, each under another number if told so, as pseudo-labels."""
    labels = np.array(order)[opened(folder).labels()]
    store.put_pseudo_labels(name, labels, provenance={"order": list(order)})
    return labels


# The store ---------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.lists(st.integers(-1, 2**31 - 1), min_size=15, max_size=15))
def test_what_was_put_is_given_back(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("store")
    store = ss.index(write_shards(folder, [4, 9, 2]), folder / "s.zarr")
    store.put_pseudo_labels("mine", labels)
    again = ss.open_store(folder / "s.zarr", mode="r")
    assert again.pseudo_label_sets == ["mine"]
    assert again.pseudo_labels("mine").tolist() == labels
    assert again.pseudo_labels("mine").dtype == np.int64


def test_appended_samples_have_none_yet(tmp_path):
    paths = write_shards(tmp_path, [4, 9, 2])
    store = ss.index(paths[:2], tmp_path / "s.zarr")
    store.put_pseudo_labels("mine", np.arange(13))
    grown = append_shards(paths[2:], tmp_path / "s.zarr")
    assert grown.pseudo_labels("mine").tolist() == [*range(13), -1, -1]


def test_wrong_pseudo_labels_are_refused(tmp_path):
    store = ss.index(write_shards(tmp_path, [3]), tmp_path / "s.zarr")
    for wrong, message in (
        ([0, 1], r"shape \(3,\), got int64 \(2,\)"),
        ([0.0, 1.0, 2.0], "integers of shape"),
        ([0, -2, 1], r"got -2 to 1"),
        ([0, 2**31, 1], "got 0 to 2147483648"),
    ):
        with pytest.raises(ValueError, match=message):
            store.put_pseudo_labels("mine", wrong)
    assert store.pseudo_label_sets == []
    with pytest.raises(ss.MissingScoreError, match=r"\(none\), got 'mine'; run `shardsieve score"):
        store.pseudo_labels("mine")
    store.put_pseudo_labels("mine", [0, 1, 2], provenance={"seed": 1})
    store.put_pseudo_labels("mine", [0, 1, 1], provenance={"seed": 1})
    with pytest.raises(ss.StoreMismatchError, match=r"'mine' of .* were made otherwise"):
        store.put_pseudo_labels("mine", [0, 1, 1], provenance={"seed": 2})
    assert store.pseudo_labels("mine").tolist() == [0, 1, 1]
    store.forget_pseudo_labels("mine")
    assert store.pseudo_label_sets == []


def test_a_writing_that_was_cut_short_is_not_listed(tmp_path, monkeypatch):
    store = ss.index(write_shards(tmp_path, [3]), tmp_path / "s.zarr")
    with monkeypatch.context() as patch:
        patch.setattr("shardsieve.store.tables.stamp", None)
        with pytest.raises(TypeError):
            store.put_pseudo_labels("mine", [0, 1, 2])
    assert ss.open_store(tmp_path / "s.zarr").pseudo_label_sets == []
    store.put_pseudo_labels("mine", [2, 1, 0])
    assert store.pseudo_labels("mine").tolist() == [2, 1, 0]


# Training ----------------------------------------------------------------------------------


def test_training_on_them_is_training_on_labels_with_these_values(folder, tmp_path):
    """Also where the shards have no labels at all, and to the bit."""
    bare, on = opened(folder, "bare"), replace(CONFIG, pseudo_labels="truth")
    with pytest.raises(
        ss.ShardsieveError, match=r"have no label; .*json:label.* train on pseudo-labels"
    ):
        trained(bare, tmp_path / "none")
    put_truth(folder, bare)
    test = opened(folder, "test")
    want = trained(opened(folder), tmp_path / "labels", test=test)
    got = trained(bare, tmp_path / "pseudo", on, test=test)
    weights = [torch.load(tmp_path / run / "model.pt")["weights"] for run in ("labels", "pseudo")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert got["accuracy"] == want["accuracy"] > 0.8
    assert trained(bare, tmp_path / "pseudo", on, test=test) == got


def test_pseudo_classes_stand_for_the_classes_that_suit_them(folder, tmp_path):
    store, order = opened(folder, "bare"), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    put_truth(folder, store, "turned", order)
    config = replace(CONFIG, pseudo_labels="turned")
    assert trained(store, tmp_path / "run", config, test=opened(folder, "test"))["accuracy"] > 0.8


def test_what_lacks_one_is_refused_before_work_and_other_ones_are_another_run(folder, tmp_path):
    store = opened(folder, "bare")
    labels = put_truth(folder, store, "some")
    store.forget_pseudo_labels("some")
    keep = ss.select(store, rule="random", keep_fraction=0.5)
    labels[store.rows(keep.ids()[:3])] = -1
    store.put_pseudo_labels("some", labels)
    config = replace(CONFIG, epochs=1, pseudo_labels="some")
    with pytest.raises(ss.ShardsieveError, match=f"3 of {len(keep)} samples .* have no pseudo-lab"):
        trained(store, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    store.forget_pseudo_labels("some")
    store.put_pseudo_labels("some", np.maximum(labels, 0))
    trained(store, tmp_path / "run", config)
    store.forget_pseudo_labels("some")
    put_truth(folder, store, "some")
    with pytest.raises(ss.ShardsieveError, match="another run: pseudo_labels_digest is"):
        trained(store, tmp_path / "run", config)


def test_a_seed_run_and_its_signals_know_them(folder, tmp_path):
    """The network of a seed run on pseudo-labels is asked about these when it embeds."""
    pairs = {}
    for name, labels in (("train", None), ("bare", "truth")):
        store = ss.index(
            sorted((folder / {"train": "labelled"}.get(name, name)).glob("train-*.tar")),
            tmp_path / f"{name}.zarr",
        )
        if labels:
            put_truth(folder, store)
        seeds = draw_seeds(store, 0.3)
        how = {"folder": tmp_path / name, "window": 3, "held_out": seeds[::5]}
        config = replace(CONFIG, pseudo_labels=labels)
        kept = np.setdiff1d(seeds, seeds[::5])
        score_seeds(store, kept, config, accelerator=Accelerator(cpu=True), **how)
        encoder = load_encoder(str(tmp_path / name))
        assert encoder.pseudo_labels == labels
        how = {"classifiers": encoder.classifiers(10), "pseudo_labels": encoder.pseudo_labels}
        embed(store, encoder.network, name="seed", accelerator=Accelerator(cpu=True), **how)
        pairs[name] = store
    one, two = pairs.values()
    assert np.array_equal(one.score("seed_el2n"), two.score("seed_el2n"), equal_nan=True)
    assert np.array_equal(one.signals("seed"), two.signals("seed"))
    assert two.provenance("seed_el2n")["paradigm"] == "unsupervised"
    assert labels_behind(two, "seed_el2n").tolist() == one.labels().tolist()
    how = {"embedding": "seed", "k": 5, "weights": "exp", "seed": 0}
    readable = np.ones(len(one), dtype=bool)
    tasks = [
        make_task(store, "fused", score="seed_el2n", readable=readable, **how)
        for store in pairs.values()
    ]
    assert np.array_equal(*(task.fit_beside["labels"] for task in tasks))


def test_a_network_that_learned_those_of_another_store_embeds_without_signals(folder, tmp_path):
    store = ss.index(folder / "labelled/test-*.tar", tmp_path / "s.zarr")
    config = replace(CONFIG, size=8, channels=1, pseudo_labels="elsewhere")
    tmp_path.joinpath("run").mkdir()
    save_network(RunFolder(tmp_path / "run"), light(10, 1), config, 10)
    made = embed_store(store.path, model=str(tmp_path / "run"), name="theirs")
    assert (made["embedded_now"], made["signals_of_networks"]) == (len(store), 0)


def test_a_beton_is_trained_on_them_too(folder, tmp_path):
    pack_beton("digits", tmp_path)
    store = ss.index(tmp_path / "train.beton", tmp_path / "beton.zarr")
    store.put_pseudo_labels("turned", (store.labels() + 1) % 10)
    seen = []

    class Watch:
        def record(self, ids, logits, labels):
            seen.append((ids.tolist(), labels.tolist()))

    config = TrainConfig(epochs=1, batch_size=64, size=8, channels=1, pseudo_labels="turned")
    keep = ss.select(store, rule="random", keep_fraction=0.2)
    trainer = Trainer(light(10, 1), store, keep, config, Accelerator(cpu=True))
    list(trainer.epochs(Watch()))
    ids, labels = (list(itertools.chain(*part)) for part in zip(*seen, strict=True))
    assert sorted(ids) == keep.ids().tolist()
    assert labels == ((store.labels()[store.rows(ids)] + 1) % 10).tolist()


def test_labels_of_any_size_are_compared_without_a_table_of_them(tmp_path):
    """A class that the network does not know is told wrong; it must not take memory."""
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "png")
    labels = [0, 2**31 - 1, 0, 3]
    members = [
        (f"{n}.{kind}", content)
        for n, label in enumerate(labels)
        for kind, content in (("png", image.getvalue()), ("cls", str(label).encode()))
    ]
    write_tar(tmp_path / "t.tar", members)
    store = ss.index(tmp_path / "t.tar", tmp_path / "t.zarr")
    config = TrainConfig(batch_size=3, size=8, channels=1)
    network, keep = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), ss.select(store, keep_fraction=1)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.arange(5, 0, -1))
    assert evaluate(network, store, keep, config, Accelerator(cpu=True)) == 0.5


@given(
    st.integers(1, 4).flatmap(
        lambda c: st.lists(
            st.lists(st.integers(0, 9), min_size=c, max_size=c), min_size=c, max_size=4
        )
    )
)
def test_the_matching_is_the_best_of_all(table):
    rows, columns = len(table), len(table[0])
    best = max(
        sum(table[row][column] for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )
    assert matched_accuracy(torch.tensor(table), 10) == best / 10


# Commands ----------------------------------------------------------------------------------


class Pixels(nn.Module):
    """An embedding that needs no training."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.flatten(1) * self.scale


def test_from_shards_without_labels_to_a_trained_network(folder, tmp_path, capsys):
    def call(*command):
        program.app([*map(str, command), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    store = tmp_path / "s.zarr"
    call("index", folder / "bare" / "train-*.tar", "--store", store)
    call("embed", "--store", store, "--model", "test_pseudo_labels:Pixels", "--name", "pixels")
    turtle = ["--paradigm", "unsupervised", "--classes", "10", "--epochs", "300", "--seeds", "0.5"]
    with pytest.raises(ValueError, match=r"classes must be given, as .* without a label"):
        call("score", "--store", store, "--paradigm", "unsupervised")
    made = call("score", "--store", store, *turtle, "--scores", "dyn_unc,confidence")
    assert made["pseudo_labels"] == "unsupervised"
    assert call("info", "--store", store)["pseudo_labels"] == ["unsupervised"]
    opened = ss.open_store(store)
    found = opened.pseudo_labels("unsupervised")
    assert len(np.unique(found)) == made["pseudo_classes"] == 10
    extrapolate = ["--score", "unsupervised_confidence", "--name", "hard"]
    call("extrapolate", "--store", store, *extrapolate, "--k", "10")
    train = ["--paradigm", "unsupervised", "--score", "hard", "--test", folder / "test.zarr"]
    result = call("train", "--store", store, "--out", tmp_path / "run", *train, "--epochs", "4")
    truth = ss.open_store(folder / "train.zarr").labels()
    table = torch.zeros((10, 10), dtype=torch.int64)
    table.index_put_((torch.tensor(found), torch.tensor(truth)), torch.tensor(1), accumulate=True)
    purity = matched_accuracy(table, len(truth))
    assert purity > 0.4  # ten even clusters of pixels; guessing gives about 0.14
    assert result["accuracy"] > purity - 0.15
    again = call("train", "--store", store, "--out", tmp_path / "run", *train, "--epochs", "4")
    assert again == result


def test_only_samples_with_a_label_are_evaluated(folder, tmp_path):
    with pytest.raises(
        ss.ShardsieveError, match=r"test must have labels, got .*bare\.zarr without"
    ):
        trained(opened(folder), tmp_path / "run", test=opened(folder, "bare"))
    assert not (tmp_path / "run").exists()
    for path in (folder / "labelled").glob("test-*.tar"):
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]
        labels = [one for one in members if one[0].endswith(".cls")]
        write_tar(tmp_path / path.name, [one for one in members if one not in labels[::2]])
    part = ss.index(sorted(tmp_path.glob("test-*.tar")), tmp_path / "part.zarr")
    assert 0.4 < (part.labels() >= 0).mean() < 0.6
    assert trained(opened(folder), tmp_path / "run", test=part)["accuracy"] > 0.8


def test_options_that_do_not_fit_are_refused(folder, tmp_path):
    store, out = ["--store", str(folder / "bare.zarr")], tmp_path / "run"
    train = ["train", "--out", str(out), "--keep-fraction", "1", "--paradigm"]
    for command, message in (
        ([*train, "semi"], "paradigm must be one of"),
        ([*train, "unsupervised", "--rule", "random"], "pseudo-labels must be among"),
        (["score", *train[-1:], "unsupervised", "--pseudo-labels", "x"], "--pseudo-labels must c"),
    ):
        with pytest.raises((ValueError, ss.ShardsieveError), match=message):
            program.app([*command, *store], standalone_mode=False)
    assert not out.exists()
