"""Scores from where samples lie among the embeddings, as `score --from-embedding` makes them."""

import numpy as np
import pytest
from tars import content, write_shards, write_tar

import shardsieve as ss
from shardsieve.commands.scoring import score_from_embedding


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
