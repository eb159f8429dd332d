"""`extrapolate --append` by every method that can: new samples are scored as old ones were."""

from contextlib import contextmanager

import numpy as np
import pytest
from tars import write_shards

import shardsieve as ss
from shardsieve.commands import appending, extrapolating, predicting
from shardsieve.commands.appending import append_score
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.cost import Cost

SIZES = [60, 64, 40, 50]
OLD = sum(SIZES[:3])
# The samples of the new shard are those of the third once more, and then its first ten.
COPIED = np.concatenate([np.arange(124, 164), np.arange(124, 134)])


def fill(store, first_shard):
    """Embeddings and signals of the shards from this one on."""
    rng = np.random.default_rng(0)
    points, said = rng.normal(size=(OLD, 2)), rng.normal(size=(OLD, 2, 1))
    points, said = (np.concatenate([a, a[COPIED]]) for a in (points, said))
    embedding, signals = store.embedding_array("e", 2), store.signal_array("e", 2, ("loss",))
    for shard in range(first_shard, store.num_shards):
        first, count = sum(SIZES[:shard]), SIZES[shard]
        embedding[shard, :count] = points[first : first + count]
        signals[shard, :count] = said[first : first + count]
    return points[:OLD], said[:OLD]


@pytest.fixture
def store(tmp_path):
    """Of the first three shards; of every four of the first 100 samples one was held out."""
    store = ss.index(write_shards(tmp_path / "d", SIZES)[:3], tmp_path / "s.zarr")
    points, said = fill(store, 0)
    truth, role = points[:, 0] + said[:, -1, 0], np.arange(OLD) % 4
    for name, rows in (("seed_x", role < 2), ("seed_held_out_x", role == 2)):
        store.put_score(name, np.where(rows & (np.arange(OLD) < 100), truth, np.nan))
    return store


def grown(store):
    shards = sorted((store.path.parent / "d").glob("*.tar"))
    store = ss.append_shards(shards, store.path)
    fill(store, 3)
    return store


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        {"method": "knn"},
        {"method": "gnn", "graph": "seeds"},
        {"method": "gnn", "graph": "seeds", "layer": "gat", "labels": True},
        {"method": "direct"},
        {"method": "fused"},
        {"method": "fused", "seed_scores": "neighbours"},
    ],
    ids=str,
)
def test_a_new_sample_gets_the_score_of_an_old_one_like_it(store, how, match):
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2, match=match, **how)
    before = store.score("full")
    assert len(np.unique(before[124:])) > 20
    store = grown(store)
    labels = store.group["sample/label"]
    labels[3, :50] = np.concatenate([labels[2, :40], labels[2, :10]])
    made = append_score(store.path, "full")
    assert (made["predicted"], made["without_embedding"]) == (50, 0)
    after = ss.open_store(store.path).score("full")
    np.testing.assert_array_equal(after[:OLD], before)
    np.testing.assert_allclose(after[OLD:], before[COPIED], rtol=1e-4, atol=1e-5)
    (said,) = store.provenance("full")["appended"]
    assert [said[name] for name in ("samples", "scored", "first_row")] == [50, OLD + 50, OLD]
    searched = how["method"] != "direct"
    assert ("found_by" in made) == ("found_by" in said) == searched
    assert append_score(store.path, "full")["predicted"] == 0


@pytest.mark.parametrize("known", [True, False])
def test_what_appending_took_is_added_to_what_the_score_has_cost(store, known):
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    attrs = store.score_array("full").attrs
    attrs["cost"] = Cost(3, 2, 7.0, 8.0, 9).to_dict()
    if not known:
        del attrs["cost"]
    append_score(grown(store).path, "full")
    made = ss.open_store(store.path).provenance("full")
    assert made["appended"][0]["samples"] == 50
    assert ("cost" in made) == known
    if known:
        cost = Cost.from_dict(made["cost"])
        assert cost.seconds > 7.0
        assert cost.device_seconds - 8.0 == pytest.approx(cost.seconds - 7.0)
        assert (cost.forward, cost.backward, cost.nbytes) == (3, 2, 9)


def test_killed_among_its_rows_the_next_start_says_the_same_of_them(store, monkeypatch):
    ids, blocks = store.ids(), appending.blocks_of
    store.put_score("seed_x", np.where(ids < 64, store.score("seed_x"), np.nan))
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    about = store.provenance("full")

    def begun():
        """A score that has only the rows of the first shard."""
        values = np.where(ids < 64, store.score("full"), np.nan)
        store.put_score("full", values, provenance=about)

    def killed_after_one(*how):
        real, left = blocks(*how), iter([True])
        return lambda shard: real(shard) if next(left) else None

    said = []
    for cut in (False, True):
        begun()
        if cut:
            with monkeypatch.context() as patch:
                patch.setattr(appending, "blocks_of", killed_after_one)
                with pytest.raises(StopIteration):
                    append_score(store.path, "full")
            assert np.isnan(store.score("full")).sum() == 40
        append_score(store.path, "full")
        said.append((store.provenance("full")["appended"], store.score("full").tolist()))
    assert said[0] == said[1]
    assert [entry["samples"] for entry in said[0][0]] == [104]
    assert [entry["samples"] for entry in _appended_after(grown(store))] == [104, 50]


def _appended_after(store):
    append_score(store.path, "full")
    return store.provenance("full")["appended"]


def test_new_samples_are_matched_together_where_all_of_before_was_measured(store):
    points = store.embedding("e")[:, 0].astype(np.float32)
    store.put_score("seed_x", points)
    extrapolate_score(store.path, "seed_x", "full", "e", k=1, folds=2, match=True)
    more = write_shards(store.path.parent / "more", [40, 40])
    store = ss.append_shards(more, store.path)
    embedding = store.embedding_array("e")
    low, high = np.argsort(points)[:40], np.argsort(points)[-40:]
    for shard, rows in ((3, low), (4, high)):
        embedding[shard, :40] = embedding[:3].reshape(-1, 2)[store.ids()[rows]]
    append_score(store.path, "full")
    found = ss.open_store(store.path).score("full")[OLD:]
    assert found[:40].max() < found[40:].min()


@pytest.mark.parametrize("method", ["knn", "direct", "fused"])
def test_predictions_that_matching_has_made_equal_come_out_as_they_did(store, method):
    """Of forgetting events most are 0; predictions matched to them by earlier releases are, too."""
    for name in ("seed_x", "seed_held_out_x"):
        store.put_score(name, np.maximum(np.floor(store.score(name)), 0))
    extrapolate_score(store.path, "seed_x", "full", "e", method=method, k=5, folds=2, match=True)
    before = np.round(store.score("full"))
    assert (before[124:] == 0).mean() > 0.5
    store.put_score("full", before, provenance=store.provenance("full"))
    store = grown(store)
    labels = store.group["sample/label"]
    labels[3, :50] = np.concatenate([labels[2, :40], labels[2, :10]])
    append_score(store.path, "full")
    after = ss.open_store(store.path).score("full")
    np.testing.assert_allclose(after[OLD:], before[COPIED], rtol=1e-4, atol=1e-5)


def test_a_score_that_is_the_same_for_all_is_appended_too(store):
    store.put_score("seed_x", np.where(np.isnan(store.score("seed_x")), np.nan, 3))
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    append_score(grown(store).path, "full")
    assert ss.open_store(store.path).score("full").tolist() == [3] * (OLD + 50)


@pytest.mark.parametrize("method", ["knn", "direct"])
def test_killed_after_a_new_shard_the_next_start_moves_the_others_by_the_same(
    store, monkeypatch, method
):
    extrapolate_score(store.path, "seed_x", "full", "e", method=method, k=5, folds=2, match=True)
    store = grown(store)
    store = ss.append_shards(write_shards(store.path.parent / "more", [30, 20]), store.path)
    points = np.random.default_rng(1).normal(size=(50, 2))
    embedding, signals = store.embedding_array("e"), store.signal_array("e")
    for shard, rows in ((4, slice(0, 30)), (5, slice(30, 50))):
        embedding[shard, : rows.stop - rows.start] = points[rows]
        signals[shard, : rows.stop - rows.start] = points[rows, :, None]
    about, before = store.provenance("full"), store.score("full")
    append_score(store.path, "full")
    wanted = store.score("full")
    store.put_score("full", before, provenance=about)
    blocks = appending.blocks_of

    def killed(*how):
        real, left = blocks(*how), iter([True, True])
        return lambda shard: real(shard) if next(left) else None

    with monkeypatch.context() as patch:
        patch.setattr(appending, "blocks_of", killed)
        with pytest.raises(StopIteration):
            append_score(store.path, "full")
    assert append_score(store.path, "full")["predicted"] == 20
    np.testing.assert_array_equal(store.score("full"), wanted)


def test_new_samples_that_nobody_embedded_are_told_of(store):
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    shards = sorted((store.path.parent / "d").glob("*.tar"))
    ss.append_shards(shards, store.path)
    made = append_score(store.path, "full")
    assert (made["predicted"], made["without_embedding"]) == (0, 50)
    assert made["warning"].startswith("50 samples have no embedding and stay without a score; ")
    assert "embed --name e`" in made["warning"]
    embedding = grown(store).embedding_array("e")
    there = embedding[3, 7]
    embedding[3, 7] = np.nan
    made = append_score(store.path, "full")
    assert (made["predicted"], made["without_embedding"]) == (49, 1)
    before = ss.open_store(store.path).score("full")
    assert np.flatnonzero(np.isnan(before)).tolist() == [OLD + 7]
    embedding[3, 7] = there
    made = append_score(store.path, "full")
    assert (made["predicted"], "no embedding" in made.get("warning", "")) == (1, False)
    after = ss.open_store(store.path).score("full")
    np.testing.assert_array_equal(np.delete(after, OLD + 7), np.delete(before, OLD + 7))
    assert np.isfinite(after).all()


@pytest.fixture
def told(monkeypatch):
    """Every bar by its title: what it was told."""
    heard = {}

    @contextmanager
    def start(title, *, shown=True):
        yield lambda *done, note="": heard.setdefault(title, []).append(done)

    for module in (appending, extrapolating, predicting):
        monkeypatch.setattr(module, "bar", start)
    return heard


@pytest.mark.parametrize("graph", ["all", "seeds"])
def test_the_epochs_of_a_graph_network_are_counted(store, told, graph):
    how = {"method": "gnn", "graph": graph, "k": 5, "folds": 2}
    extrapolate_score(store.path, "seed_x", "full", "e", **how)
    assert told["train the graph network"][:2] == [(0, 25), (1, 25)]
    assert told["train the graph network"][-1] == (25, 25)
    assert told["extrapolate"][-1] == (3, 3)


def test_what_comes_before_new_samples_are_predicted_is_counted(store, told):
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    assert list(told) == ["try on seeds", "fit", "extrapolate"]
    append_score(grown(store).path, "full")
    assert told["fit again"] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert told["extrapolate"][-4:] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_embedding_whose_pass_was_cut_short_is_told_of(store):
    store.forget_embedding("e")
    embedding = store.embedding_array("e", 2)
    embedding[:2, :60] = np.random.default_rng(0).normal(size=(2, 60, 2))
    made = extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    assert made["without_embedding"] == OLD - 120
    assert f"{OLD - 120} samples have no embedding and stay without a score" in made["warning"]


def test_predictions_that_depend_on_more_than_their_row_are_refused(store):
    extrapolate_score(store.path, "seed_x", "full", "e", method="gnn", k=5, folds=2)
    store = grown(store)
    with pytest.raises(
        ss.MissingScoreError, match=r"got 'gnn\(seed_x\)' over a.*with --graph seeds"
    ):
        append_score(store.path, "full")
    with pytest.raises(
        ss.MissingScoreError, match=r"got '\w+'; extrapolate again under a new name$"
    ):
        append_score(store.path, "seed_x")
    assert np.isnan(store.score("full")[OLD:]).all()


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize(("method", "source"), [("direct", "seed_held_out_x"), ("knn", "seed_x")])
def test_an_extrapolator_that_comes_out_otherwise_is_refused(store, method, source, match):
    how = {"method": method, "k": 5, "folds": 2, "match": match}
    extrapolate_score(store.path, "seed_x", "full", "e", **how)
    store.put_score(source, -store.score(source))
    store = grown(store)
    with pytest.raises(ss.StoreMismatchError, match="changed since; extrapolate again under a new"):
        append_score(store.path, "full")
    assert np.isnan(store.score("full")[OLD:]).all()


def test_the_store_of_a_realigned_score_has_to_be_embedded_first(store, tmp_path):
    extrapolate_score(store.path, "seed_x", "full", "e", k=5, folds=2)
    other = ss.index(store.urls, tmp_path / "other.zarr")
    ss.realign(store, other, scores=["full"])
    with pytest.raises(ss.MissingScoreError, match=r"those stored \(none yet; run .*got 'e'"):
        append_score(other.path, "full")
