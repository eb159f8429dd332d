"""`shardsieve extrapolate` by every method, and how far it says to trust the result."""

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

import shardsieve as ss
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.memorised import by_unseen_neighbours
from shardsieve.commands.reporting import report_score
from shardsieve.commands.showing import kept_per_class
from shardsieve.commands.training import put_ceilings
from shardsieve.extrapolate import pearson
from shardsieve.pack import pack
from shardsieve.train.recorder import Recorder

N, ROLES = 600, 4  # of four samples one was trained on, one held out, two are the rest


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for label in ("a", "b"):
        (folder / "img" / label).mkdir(parents=True)
        for i in range(N // 2):
            Image.new("L", (8, 8), i % 256).save(folder / "img" / label / f"{i:03d}.png")
    return pack(folder / "img", folder / "shards", samples_per_shard=300)[0].pattern


@pytest.fixture
def store(shards, tmp_path):
    """Scores depend on embedding and signals alike; signals of trained seeds are rubbish."""
    store = ss.index(shards, tmp_path / "s.zarr")
    rng = np.random.default_rng(0)
    points, said = rng.normal(size=(N, 2)), rng.normal(size=(N, 2, 1))
    truth = points[:, 0] + said[:, -1, 0]
    trained, held = (np.arange(N) % ROLES == role for role in (0, 1))
    said[trained] = 9
    store.embedding_array("seed", 2)[:, :300] = points.reshape(2, 300, 2)
    store.signal_array("seed", 2, ("loss",))[:, :300] = said.reshape(2, 300, 2, 1)
    for name, rows, unit in (("seed", trained, 10), ("seed_held_out", held, 1)):
        for again, noise in (("", 0), ("_again", 0.3)):
            run = name.replace("seed", f"seed{again}", 1)
            values = np.where(rows, unit * (truth + noise * rng.normal(size=N)), np.nan)
            store.put_score(f"{run}_x", values, provenance={"definition": "x"})
    put_ceilings(store, "seed")
    return store, truth, trained


def rest_quality(store, truth, name):
    rest = np.arange(N) % ROLES > 1
    return pearson(truth[rest], store.score(name)[rest])


@pytest.mark.parametrize("method", ["knn", "gnn", "direct", "fused"])
def test_every_method_keeps_what_was_measured_and_fills_the_rest(store, method):
    store, truth, trained = store
    how = {} if method == "gnn" else {"k": 10}
    made = extrapolate_score(store.path, "seed_x", method, "seed", method=method, **how)
    got = store.score(method)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[trained], store.score("seed_x")[trained])
    assert (made["seeds"], made["predicted"]) == (150, 450)
    assert rest_quality(store, truth, method) > {"fused": 0.85}.get(method, 0.5)
    kept = store.provenance(method)
    assert kept["definition"] == f"{method}(seed_x)"
    assert kept["k"] == (20 if method == "gnn" else 10)  # the GNN's own, where none is said
    assert kept["quality"]["spearman"] == made["spearman"] > 0.4
    assert "not of a full run's scores" in kept["speaks_of"]
    low, high = made["intervals"]["spearman"]
    assert low < made["spearman"] < high
    assert made["num_held_out"] == 150
    assert sorted(row["class"] for row in made["classes"]) == [0, 1]
    assert kept["quality"]["classes"]["class"] == "[0,1]"


@pytest.mark.parametrize("graph", ["all", "seeds"])
def test_labels_tell_the_graph_network_what_embeddings_do_not(store, graph):
    store, _, trained = store
    labels = store.labels()
    assert set(labels) == {0, 1}
    noisy = labels + 0.05 * np.random.default_rng(0).normal(size=N)
    store.put_score("seed_y", np.where(trained, noisy, np.nan))
    how = {"method": "gnn", "k": 3, "graph": graph, "layer": "sage", "folds": 2}
    agreed = {}
    for told in (True, False):
        extrapolate_score(store.path, "seed_y", f"{told}", "seed", **how, labels=told)
        assert store.provenance(f"{told}")["labels"] is told
        agreed[told] = rest_quality(store, labels, f"{told}")
    assert agreed[True] > 0.8
    assert abs(agreed[False]) < 0.4


def test_labels_that_no_seed_has_are_refused_before_work(store):
    store = store[0]
    store.group["sample/label"][:] = -1
    with pytest.raises(ValueError, match=r"got none of 150 seeds; use --no-labels, or index again"):
        extrapolate_score(store.path, "seed_x", "new", "seed", method="gnn", labels=True)
    assert "new" not in store.scores


def test_fused_beats_both_of_its_parts_and_takes_the_unit_of_the_measured_seeds(store):
    store, truth, trained = store
    for method in ("knn", "direct", "fused"):
        extrapolate_score(store.path, "seed_x", method, "seed", method=method, k=10)
    parts = [rest_quality(store, truth, method) for method in ("knn", "direct")]
    assert rest_quality(store, truth, "fused") > max(parts) + 0.1
    assert store.provenance("fused")["found_by"]["search"] == "exact"
    spreads = [store.score(method)[~trained].std() for method in ("direct", "fused")]
    np.testing.assert_allclose(spreads, store.score("seed_x")[trained].std(), rtol=0.1)


@pytest.mark.parametrize("method", ["direct", "fused"])
def test_what_trained_seeds_taught_is_told_and_hidden_signals_teach_nothing(store, method):
    store, truth, trained = store
    how = {"method": method, "k": 10}
    # What the networks say of trained seeds is the same of all of them, and so says nothing.
    made = extrapolate_score(store.path, "seed_x", "flat", "seed", **how)
    told = store.provenance("flat")["from_trained_seeds"]
    assert told == made["from_trained_seeds"]
    assert told["networks"] in (1, 2)
    said = store.signal_array("seed")[:, :300].reshape(N, 2, 1)
    said[trained, 0, 0] = said[trained, 1, 0] = truth[trained]
    store.signal_array("seed")[:, :300] = said.reshape(2, 300, 2, 1)
    extrapolate_score(store.path, "seed_x", "good", "seed", **how)
    assert store.provenance("good")["from_trained_seeds"]["networks"] == 2
    assert store.provenance("good")["from_trained_seeds"]["share"] > 0.3
    said[trained] = np.nan
    store.signal_array("seed")[:, :300] = said.reshape(2, 300, 2, 1)
    extrapolate_score(store.path, "seed_x", "none", "seed", **how)
    assert store.provenance("none")["from_trained_seeds"] is None


def test_memorised_seeds_are_warned_of_and_scored_by_unseen_neighbours_when_asked(store, tmp_path):
    store, truth, trained = store
    turned = np.where(trained, -truth, np.nan)
    store.put_score("run_x", turned)
    store.put_score("run_held_out_x", store.score("seed_held_out_x"))
    made = extrapolate_score(store.path, "run_x", "kept", "seed", method="fused", k=10)
    assert "memorised them; use --seed-scores neighbours" in made["warning"]
    how = {"method": "fused", "k": 10, "seed_scores": "neighbours"}
    made = extrapolate_score(store.path, "run_x", "new", "seed", **how)
    assert "warning" not in made
    assert made["seeds_against_unseen_neighbours"]["interval"][1] < 0
    kept, new = store.score("kept"), store.score("new")
    np.testing.assert_array_equal(kept[trained], np.float32(turned[trained]))
    assert pearson(truth[trained], new[trained]) > 0.5
    assert np.argsort(new[~trained]).tolist() == np.argsort(kept[~trained]).tolist()
    report_score(store.path, tmp_path / "r.html", score="new", keep_fraction=0.5, reference=None)
    page = (tmp_path / "r.html").read_text()
    assert "0 samples measured, 600 predicted" in page
    assert "<details open><summary>2 classes</summary>" in page
    with pytest.raises(ValueError, match="use method 'direct' or 'fused'"):
        extrapolate_score(store.path, "run_x", "no", "seed", seed_scores="neighbours")


def test_some_of_many_seeds_are_compared_with_unseen_samples(store, monkeypatch):
    store, _, trained = store
    monkeypatch.setattr("shardsieve.commands.memorised._COMPARED", 20)
    asked = []

    def counted(rows, scores, mask, unseen, **how):
        asked.append(mask)
        return by_unseen_neighbours(rows, scores, mask, unseen, **how)

    monkeypatch.setattr("shardsieve.commands.predicting.by_unseen_neighbours", counted)
    for seed_scores in ("measured", "neighbours"):
        how = {"method": "direct", "k": 10, "seed_scores": seed_scores}
        made = extrapolate_score(store.path, "seed_x", seed_scores, "seed", **how)
        low, high = made["seeds_against_unseen_neighbours"]["interval"]
        assert -1 <= low <= high <= 1
    assert asked[0].sum() == 20
    assert trained[asked[0]].all()
    np.testing.assert_array_equal(asked[1], trained)


def test_what_was_predicted_is_not_extrapolated_again(store):
    store = store[0]
    extrapolate_score(store.path, "seed_x", "full", "seed")
    with pytest.raises(ValueError, match=r"got 'full', which was predicted from 'seed_x'"):
        extrapolate_score(store.path, "full", "again", "seed")
    assert "again" not in store.scores


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 5}, "was predicted with k 50, got 5; give the new one another name, or delete"),
        ({"weights": "mean"}, "was predicted with weights exp, got mean"),
        ({"match": True}, "was predicted with matched_quantiles False, got True"),
        ({"method": "gnn"}, "was predicted with method knn, got gnn"),
    ],
)
def test_another_prediction_does_not_take_the_name_of_one(store, how, message):
    store = store[0]
    extrapolate_score(store.path, "seed_x", "full", "seed")
    before = store.score("full")
    with pytest.raises(ss.StoreMismatchError, match=message):
        extrapolate_score(store.path, "seed_x", "full", "seed", **how)
    np.testing.assert_array_equal(store.score("full"), before)
    extrapolate_score(store.path, "seed_x", "full", "seed", folds=3)  # the same, measured anew
    store.forget_score("full")
    extrapolate_score(store.path, "seed_x", "full", "seed", k=5)
    assert store.provenance("full")["k"] == 5


def test_a_realigned_prediction_still_tells_measured_from_predicted(store, shards, tmp_path):
    store, other = store[0], ss.index(shards, tmp_path / "other.zarr")
    extrapolate_score(store.path, "seed_x", "full", "seed")
    assert ss.realign(store, other, scores=["full"]) == ["full", "seed_x"]
    report_score(other.path, tmp_path / "r.html", score="full", keep_fraction=0.5, reference=None)
    assert "150 samples measured, 450 predicted" in (tmp_path / "r.html").read_text()
    own = np.arange(N, dtype=np.float32)
    other.put_score("seed_x", own, provenance={"definition": "x"})
    assert ss.realign(store, other, scores=["full"]) == ["full"]
    np.testing.assert_array_equal(other.score("seed_x"), own)


def test_a_prediction_whose_measured_score_is_gone_is_not_reported_as_measured(store, tmp_path):
    store = store[0]
    store.put_score("truth", np.arange(N))
    extrapolate_score(store.path, "seed_x", "full", "seed")
    page, how = tmp_path / "r.html", {"keep_fraction": 0.5, "reference": "truth"}
    report_score(store.path, page, score="full", **how)
    assert "Samples that were not seeds" in page.read_text()
    store.forget_score("seed_x")
    report_score(store.path, page, score="full", **how)
    said = page.read_text()
    assert "Samples that were not seeds" not in said
    assert "150 samples measured, 450 predicted; which is no longer known" in said
    assert "score “seed_x” is gone" in said


@pytest.mark.parametrize("match", [True, False])
def test_the_report_advises_to_match_what_is_not_matched(store, tmp_path, match):
    path = store[0].path
    extrapolate_score(path, "seed_x", "full", "seed", match=match)
    report_score(path, tmp_path / "r.html", score="full", keep_fraction=0.5, reference=None)
    assert ("--match-quantiles" in (tmp_path / "r.html").read_text()) is not match


def test_a_second_run_is_measured_against_and_lower_than_the_first(store):
    store = store[0]
    made = extrapolate_score(store.path, "seed_x", "full", "seed", method="fused", k=10)
    assert 0.5 < made["against_second_run"]["pearson"] < made["pearson"]
    assert made["ceiling"]["of"] == "seed_again_held_out_x"
    assert made["against_second_run"]["pearson"] < made["ceiling"]["pearson"] < 1
    assert "warning" not in made


def test_a_measured_score_that_came_without_the_second_run_is_predicted_from(
    store, shards, tmp_path
):
    store, other = store[0], ss.index(shards, tmp_path / "other.zarr")
    other.embedding_array("seed", 2)[:] = store.embedding_array("seed")[:]
    ss.realign(store, other, scores=["seed_x"])
    made = extrapolate_score(other.path, "seed_x", "full", "seed", k=10)
    assert made["ceiling"]["of"] == "seed_again_x"
    assert "against_second_run" not in made


def test_predictions_no_better_than_chance_are_warned_of_wherever_they_are_used(
    store, tmp_path, caplog
):
    store, _, trained = store
    noise = np.where(trained, np.random.default_rng(1).normal(size=N), np.nan)
    store.put_score("seed_noise", noise)
    made = extrapolate_score(store.path, "seed_noise", "noise", "seed", keep_fraction=0.3)
    assert (
        "at keep fraction 0.3 the predicted keep set is not shown to be better" in made["warning"]
    )
    rule = {"score": "noise", "keep_fraction": 0.5, "rule": "top"}
    assert "at keep fraction 0.5" in kept_per_class(store.path, rule, None)["warning"]
    assert "warning" not in kept_per_class(store.path, {**rule, "rule": "random"}, None)
    assert "keep fraction" not in caplog.text  # who prints a result prints its warning
    pipeline = wds.WebDataset(store.urls, shardshuffle=False)
    for choose in (
        ss.select,
        ss.PrunedShardSampler,
        lambda *a, **how: ss.prune(pipeline, *a, **how),
    ):
        caplog.clear()
        choose(store, **{**rule, "rule": "random"})
        measured = {"score": "seed_noise", "keep_fraction": 0.2, "drop_missing": True}
        choose(store, **measured)
        assert "keep fraction" not in caplog.text
        choose(store, **rule)
        assert caplog.text.count("score 'noise': at keep fraction 0.5 the predicted keep set") == 1
    report_score(store.path, tmp_path / "r.html", score="noise", keep_fraction=0.5, reference=None)
    assert "Warning: at keep fraction 0.5" in (tmp_path / "r.html").read_text()


def test_the_report_shows_intervals_spread_classes_and_what_they_speak_of(store, tmp_path):
    store = store[0]
    made = extrapolate_score(store.path, "seed_x", "full", "seed", method="direct")
    report_score(store.path, tmp_path / "r.html", score="full", keep_fraction=0.5, reference=None)
    page = (tmp_path / "r.html").read_text()
    low, high = made["intervals"]["0.3"]
    for text in (
        f"{low:.3f} to {high:.3f}",
        "seeds they were not trained on; not of a full run",
        "Against a second seed run",
        "How well the score repeats",
        "Distributions of predicted and measured scores",
        "<td>a</td><td>",
    ):
        assert text in page
    assert "Warning" not in page


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"method": "mlp"}, "method must be one of knn, gnn, direct, fused, got 'mlp'"),
        ({"score": "bare"}, r"run `shardsieve score --held-out 0.1 --snapshots 4`"),
        ({"score": "mine_y"}, "run `shardsieve score --from-dynamics mine_held_out --scores ...` "),
        ({"embedding": "other"}, "run `shardsieve embed` with the seed run's network"),
        ({"score": "empty"}, "has no scored sample"),
    ],
)
def test_what_is_missing_is_named_with_the_cure(store, spoil, message):
    store, truth, trained = store
    recorded = np.where(trained, truth, np.nan)
    store.put_score("bare", recorded)
    store.put_score("mine_y", recorded, provenance={"dynamics": "mine"})
    Recorder([0, 1], 2).save(store, "mine_held_out")
    store.put_score("empty", np.full(N, np.nan))
    store.embedding_array("other", 2)[:, :300] = np.zeros((2, 300, 2))
    how = {"score": "seed_x", "embedding": "seed", "method": "direct", **spoil}
    score, embedding = how.pop("score"), how.pop("embedding")
    with pytest.raises((ValueError, ss.ShardsieveError), match=message):
        extrapolate_score(store.path, score, "new", embedding, **how)
    assert "new" not in store.scores
