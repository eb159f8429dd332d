"""Scores from where samples lie among the embeddings, as `score --from-embedding` makes them."""

import numpy as np
import pytest
import torch
from tars import content, write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.scoring import score_from_embedding
from shardsieve.keepset import KeepSet
from shardsieve.train.measures import STORED, measure


def write_unlabelled(folder, samples):
    folder.mkdir()
    members = [(f"{row:03d}.jpg", content(f"{row}", 300)) for row in range(samples)]
    return [write_tar(folder / "u.tar", members)]


def test_without_labels_embeddings_give_the_scores_that_need_none(tmp_path):
    store = ss.index(write_unlabelled(tmp_path / "d", 20), tmp_path / "s.zarr")
    store.embedding_array("e", 2)[0, :20] = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(
        ss.MissingScoreError, match="labels must be known for 'moderate', got 20 of"
    ):
        score_from_embedding(store.path, None, ["semdedup", "moderate"], prefix=None)
    with pytest.raises(
        ss.MissingScoreError, match="labels must be known for 'd2:score=semdedup:pe"
    ):
        score_from_embedding(store.path, None, ["d2:score=semdedup:per_class=true"], prefix=None)
    assert not store.scores
    made = score_from_embedding(store.path, None, None, prefix=None)
    assert made["scores"] == ["prototypicality", "semdedup"]


def test_scores_of_embeddings_say_how_they_were_turned_and_where_they_come_from(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [20]), tmp_path / "s.zarr")
    store.embedding_array("e", 2)[0, :20] = np.random.default_rng(0).normal(size=(20, 2))
    score_from_embedding(store.path, None, None, prefix=None)
    said = {name: store.provenance(name) for name in store.scores}
    assert said["prototypicality"]["orientation"] == "higher is kept first"
    assert said["semdedup"]["orientation"].endswith("the paper's quantity times -1")
    assert said["moderate"]["orientation"].endswith("from the middle of the paper's quantity")
    assert "2303.09540" in said["semdedup"]["paper"]


def test_the_typical_samples_are_kept_first_when_asked(tmp_path):
    store = ss.index(write_unlabelled(tmp_path / "d", 20), tmp_path / "s.zarr")
    store.embedding_array("e", 2)[0, :20] = np.random.default_rng(0).normal(size=(20, 2))
    specs = ["prototypicality", "prototypicality:first=far", "prototypicality:first=near"]
    names = score_from_embedding(store.path, None, specs, prefix=None)["scores"]
    usual, far, near = (store.score(name) for name in names)
    np.testing.assert_array_equal(usual, far)
    np.testing.assert_array_equal(near, -far)
    with pytest.raises(ValueError, match="first must be one of far, near, got 'middle'"):
        score_from_embedding(store.path, None, ["prototypicality:first=middle"], prefix=None)


def test_d2_without_neighbours_is_refused(tmp_path):
    store = ss.index(write_unlabelled(tmp_path / "d", 20), tmp_path / "s.zarr")
    store.embedding_array("e", 2)[0, :20] = 1
    store.put_score("up", np.arange(20))
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        score_from_embedding(store.path, None, ["d2:score=up:k=0"], prefix=None)


def test_d2_searches_many_samples_by_codes_and_hardly_differs(tmp_path, monkeypatch):
    store = ss.index(write_shards(tmp_path / "d", [1500]), tmp_path / "s.zarr")
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1500, 4)) @ rng.normal(size=(4, 16))
    store.embedding_array("e", 16)[0, :1500] = points
    store.put_score("up", rng.random(1500))

    def order(search):
        spec = f"d2:score=up:search={search}"
        return store.score(score_from_embedding(store.path, None, [spec], prefix=None)["scores"][0])

    monkeypatch.setattr("shardsieve.extrapolate.approximate._EXACT_PAIRS", 100)
    exact, coded = order("exact"), order("auto")
    assert sorted(coded) == sorted(exact) == list(range(1, 1501))
    halves = [set(np.argsort(one)[750:].tolist()) for one in (exact, coded)]
    assert 700 < len(halves[0] & halves[1]) < 750
    with pytest.raises(ValueError, match="search must be one of auto, exact, scan, ivf, hnsw"):
        order("slow")


@pytest.fixture
def asked(tmp_path):
    """A store of 20 samples with what two networks said of them, and the probabilities behind."""
    store = ss.index(write_shards(tmp_path / "d", [20]), tmp_path / "s.zarr")
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 20, 10)).astype(np.float32))
    labels = torch.from_numpy(store.labels())
    said = [measure(STORED, network, labels)[1].numpy() for network in logits]
    said[1][3] = np.nan  # as where there is no label
    store.signal_array("e", 2, STORED)[0, :20] = np.stack(said, axis=1)
    store.embedding_array("e", 2)[0, :20] = rng.normal(size=(20, 2))
    return store, logits.softmax(dim=2).numpy().astype(np.float64)


def test_what_the_networks_say_is_a_score_of_every_sample(asked):
    store, probs = asked
    specs = ["el2n", "el2n:last=1", "cross_entropy", "confidence", "variability", "entropy"]
    made = score_from_embedding(store.path, None, specs, prefix="now")
    assert made["scored"] == 19
    assert "warning" not in made
    labels, right = store.labels(), np.arange(20)
    p_true = probs[:, right, labels]
    el2n = np.stack([ss.scores.el2n(one, labels) for one in probs])
    wanted = [el2n.mean(axis=0), el2n[1], ss.scores.cross_entropy(probs[1], labels)]
    wanted += [-p_true.mean(axis=0), p_true.std(axis=0), ss.scores.entropy(probs[1])]
    for name, values in zip(made["scores"], wanted, strict=True):
        values[3] = np.nan
        np.testing.assert_allclose(store.score(name), values, rtol=1e-5)
    said = store.provenance("now_el2n.last-1")
    assert said["definition"] == "el2n(embedding=e, networks=2, last=1)"
    assert (said["embedding"], said["measured"]) == ("e", True)
    assert "2107.07075" in said["paper"]
    with pytest.raises(ValueError, match="p_true must have more than window=10 epochs, got 2"):
        score_from_embedding(store.path, None, ["dyn_unc"], prefix=None)


def test_networks_are_asked_beside_scores_of_where_samples_lie(asked):
    store, _ = asked
    made = score_from_embedding(store.path, None, ["el2n", "moderate"], prefix=None)
    assert (made["scored"], made["scores"]) == (20, ["el2n", "moderate"])


def test_only_networks_that_classify_can_be_asked(asked):
    store, _ = asked
    store.embedding_array("plain", 2)[0, :20] = 1
    with pytest.raises(ss.MissingScoreError, match="asks the networks behind embedding 'plain'"):
        score_from_embedding(store.path, "plain", ["el2n"], prefix=None)
    store.signal_array("nothing", 1, STORED)
    store.embedding_array("nothing", 2)[0, :20] = 1
    with pytest.raises(ss.MissingScoreError, match="labels must be known for 'el2n', got none"):
        score_from_embedding(store.path, "nothing", ["el2n"], prefix=None)


def test_networks_that_know_some_samples_better_are_warned_of(asked):
    store, _ = asked
    signals = store.signal_array("e")
    for ids, warned in ((store.ids(), False), (store.ids()[:4], True)):
        signals.attrs["seeds_digest"] = KeepSet.from_ids(store, ids).digest
        made = score_from_embedding(store.path, None, ["el2n"], prefix=None)
        assert ("trained on some samples" in made.get("warning", "")) == warned
    assert "warning" not in score_from_embedding(store.path, None, ["moderate"], prefix=None)
