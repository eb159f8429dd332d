"""What the seed run leaves besides scores: held-out seeds, networks of several epochs, signals."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards

import shardsieve as ss
from shardsieve._errors import StoreMismatchError
from shardsieve.commands import training
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.training import embed_store, score_store
from shardsieve.cost import Cost
from shardsieve.pack import pack
from shardsieve.store.layout import make_array
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder, save_network
from shardsieve.train.images import ImageDecoder, collate, normalised
from shardsieve.train.ledger import embedding_overhead, overhead_of
from shardsieve.train.measures import STORED
from shardsieve.train.nets import embed_and_classify, embed_batch, light, load_model
from shardsieve.train.recorder import Recorder
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.seedscores import scores_from_dynamics
from shardsieve.train.splits import (
    check_layout,
    hold_out,
    matched_epochs,
    matched_window,
    snapshot_epochs,
)

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("signals")

CONFIG = TrainConfig(epochs=4, batch_size=32)
HOW = {"seed_fraction": 0.2, "per_class": False, "folder": None, "window": 3}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack("digits", tmp_path_factory.mktemp("digits"), samples_per_shard=400)[0]


@pytest.fixture(scope="module")
def scored(packed, tmp_path_factory):
    """A store with a seed run of its own, three networks kept, and everything embedded."""
    path = tmp_path_factory.mktemp("scored") / "s.zarr"
    store = ss.index(packed.pattern, path)
    how = {"held_out": 0.25, "snapshots": 3, "match_steps_of": 1, "ceiling": True}
    score_store(path, CONFIG, **HOW, **how)
    embed_store(path, model=None, name="seed")
    return store


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_held_out_seeds_and_the_others_make_up_all_seeds(count, fraction, seed):
    seeds = np.arange(count) * 7
    if not 0 < ss.num_kept(count, fraction) < count:
        with pytest.raises(ValueError, match="score more seeds"):
            hold_out(seeds, fraction, seed=seed)
        return
    trained, held = hold_out(seeds, fraction, seed=seed)
    assert sorted([*trained, *held]) == seeds.tolist()
    assert len(held) == ss.num_kept(count, fraction)
    assert hold_out(seeds, 0.0)[1] is None


@given(st.integers(1, 30), st.integers(1, 5000), st.integers(1, 64), st.data())
def test_matched_epochs_make_the_steps_of_the_full_run_to_half_an_epoch(full_epochs, n, b, data):
    m = data.draw(st.integers(1, n))
    epochs = matched_epochs(full_epochs, full=n, seeds=m, batch=b)
    per_epoch = -(-m // b)
    assert abs(epochs * per_epoch - full_epochs * -(-n // b)) <= per_epoch / 2


@given(st.integers(1, 90), st.integers(1, 12))
def test_snapshots_are_spread_over_the_run_and_end_with_it(epochs, count):
    kept = snapshot_epochs(epochs, count)
    assert kept[-1] == epochs
    assert len(kept) == min(count, epochs)
    gaps = np.diff([0, *kept])
    assert (gaps >= 1).all()
    assert np.ptp(gaps) <= 1


def test_layouts_of_a_seed_run_end_at_their_limits():
    check_layout(seeds=1, held_out=0, snapshots=1, match_steps_of=1)
    for name, wrong in [
        *(("seeds", 0), ("seeds", 1.01), ("held_out", -0.01), ("held_out", 1)),
        *(("snapshots", 0), ("match_steps_of", 0)),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            check_layout(**{name: wrong})
    for call, name in [
        (lambda: hold_out(np.arange(9), 1.0), "held_out"),
        (lambda: matched_epochs(0, full=9, seeds=3, batch=2), "match_steps_of"),
        (lambda: snapshot_epochs(9, 0), "snapshots"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} must"):
            call()


@pytest.mark.slow
def test_held_out_seeds_are_watched_and_never_trained_on(scored):
    trained, held = Recorder.load(scored, "seed"), Recorder.load(scored, "seed_held_out")
    assert not np.intersect1d(trained.ids, held.ids).size
    assert len(trained.ids) + len(held.ids) == ss.num_kept(len(scored), 0.2)
    result = json.loads((scored.path.with_name("s.zarr.runs") / "seed/result.json").read_text())
    # As many steps as one full epoch, and a window of three full epochs, cut to fit.
    window = matched_window(3, epochs=trained.epochs, full_epochs=1)
    assert window == trained.epochs - 1
    assert abs(result["steps"] - -(-len(scored) // 32)) <= -(-len(trained.ids) // 32) / 2
    assert result["samples"] == len(trained.ids) * trained.epochs
    assert scored.provenance("seed_dyn_unc")["definition"] == f"dyn_unc(window={window})"
    for name, recorder in (("seed_el2n", trained), ("seed_held_out_el2n", held)):
        rows = scored.rows(recorder.ids)
        wanted = recorder.signal("el2n").mean(axis=0)
        np.testing.assert_allclose(scored.score(name)[rows], wanted, rtol=1e-5)
        assert np.isfinite(scored.score(name)).sum() == len(rows)


def test_matched_steps_scale_the_usual_window_where_none_is_given(tmp_path, monkeypatch):
    store = ss.index(write_shards(tmp_path, [40]), tmp_path / "s.zarr")
    told = {}
    monkeypatch.setattr(training, "score_seeds", lambda *_, **how: told.update(how) or {})
    how = {name: value for name, value in HOW.items() if name != "window"}
    score_store(store.path, CONFIG, match_steps_of=20, **how)
    assert told["window"] == matched_window(10, epochs=told["config"].epochs, full_epochs=20) != 10


def test_matched_steps_are_the_optimisers_where_batches_are_accumulated(tmp_path, monkeypatch):
    store = ss.index(write_shards(tmp_path, [40]), tmp_path / "s.zarr")
    told = {}
    monkeypatch.setattr(training, "score_seeds", lambda *_, **how: told.update(how) or {})
    config = replace(CONFIG, batch_size=4, accumulate=5)
    score_store(store.path, config, match_steps_of=9, **{**HOW, "seed_fraction": 0.4})
    # 40 samples are two steps of five batches, and 16 are one of four.
    assert told["config"].epochs == 18


@pytest.mark.slow
def test_signals_are_what_each_network_says_about_every_sample(scored):
    encoder = load_encoder(str(scored.path.with_name("s.zarr.runs") / "seed"))
    networks = encoder.classifiers(10)
    assert len(networks) == 3
    array = scored.signal_array("seed")
    assert array.attrs["signals"] == list(STORED)
    got = scored.signals("seed")
    assert got.shape == (len(scored), 3, len(STORED))
    rows = np.array([0, 399, 400, 1400])
    data = ss.ShardDataset(scored, ImageDecoder(8, 1))
    batch = collate(data.__getitems__(scored.ids()[rows].tolist()))
    for place, network in enumerate(networks):
        with torch.no_grad():
            logits = network(normalised(batch.images))
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        for name, wanted in (("loss", loss), ("entropy", entropy)):
            said = got[rows, place, STORED.index(name)]
            np.testing.assert_allclose(said, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_held_out_signals_of_the_last_network_are_those_the_watcher_recorded(scored):
    held = Recorder.load(scored, "seed_held_out")
    rows = scored.rows(held.ids)
    for name in ("p_true", "loss", "entropy"):
        said = scored.signals("seed")[rows, -1, STORED.index(name)]
        np.testing.assert_allclose(said, held.signal(name)[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_second_run_over_the_same_seeds_says_how_well_scores_repeat(scored):
    again = Recorder.load(scored, "seed_again")
    np.testing.assert_array_equal(again.ids, Recorder.load(scored, "seed").ids)
    ceiling = scored.provenance("seed_el2n")["ceiling"]
    assert 0.2 < ceiling["spearman"] < 1
    assert ceiling["num_held_out"] == len(again.ids)
    assert "ceiling" not in scored.provenance("seed_again_el2n")
    scores_from_dynamics(scored, "seed", ["el2n"])  # the same values: that is still known of them
    assert scored.provenance("seed_el2n")["ceiling"] == ceiling
    values, made = scored.score("seed_el2n"), scored.provenance("seed_el2n")
    scored.put_score("seed_el2n", values + 1, provenance=made)
    scores_from_dynamics(scored, "seed", ["el2n"])
    assert "ceiling" not in scored.provenance("seed_el2n")
    scored.put_score("seed_el2n", values, provenance=made)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_seed_run_that_only_embeds_is_counted_and_one_that_scores_too_once(scored):
    run = Cost.from_dict(scored.provenance("seed_el2n")["cost"])
    assert run.backward > 0
    assert embedding_overhead(scored, "seed").phases["scoring"] == run
    own = Cost(1, 0, 1.0, 1.0, 1)
    made = {"embedding": "seed", "cost": own.to_dict()}
    for provenance, scoring in (
        ({"definition": "far", **made}, own + run),
        ({"definition": "knn", **made, "of": scored.provenance("seed_el2n")}, run),
    ):
        name = provenance["definition"]
        scored.put_score(name, np.zeros(len(scored)), provenance=provenance)
        assert overhead_of(scored, name).phases["scoring"] == scoring
        # A score that says how hard is counted too, and the run of both once.
        rule = {"rule": "ccs", "score": "seed_el2n", "difficulty": name}
        behind = training.overhead_behind(
            scored, ss.select(scored, rule="random", keep_fraction=0.5), rule
        )
        assert behind.phases["scoring"] == scoring
        scored.forget_score(name)


@pytest.mark.slow
def test_signals_of_a_run_over_other_seeds_are_refused(packed, tmp_path):
    path = tmp_path / "s.zarr"
    store = ss.index(packed.pattern, path)
    how = {**HOW, "scores": ["el2n"]}
    short = TrainConfig(epochs=2, batch_size=32)
    for run, held_out in (("seed", 0.0), ("with", 0.25)):  # of the same seeds, as many draw
        score_store(path, short, **how, name=run, held_out=held_out)
        made = embed_store(path, model=None, name=run)  # the run of that name
        assert made["model"] == str(path.with_name("s.zarr.runs") / run)
    extrapolate_score(path, "with_el2n", "fine", "with", method="direct")
    assert store.provenance("with_el2n")["seeds_digest"] == seeds_of_signals(store, "with")
    with pytest.raises(StoreMismatchError, match=r"trained on other seeds; .*--name NEW` with"):
        extrapolate_score(path, "with_el2n", "wrong", "seed", method="direct")
    assert "wrong" not in store.scores
    with pytest.raises(ValueError, match=r"channels must be 1 for the network of .*, got 3"):
        embed_store(path, model=str(path.with_name("s.zarr.runs") / "seed"), name="x", channels=3)


def seeds_of_signals(store, name):
    return store.signal_array(name).attrs["seeds_digest"]


@pytest.mark.slow
def test_a_pass_cut_short_goes_on_and_embeddings_without_signals_get_them(packed, tmp_path):
    store = ss.index(packed.pattern, tmp_path / "s.zarr")
    torch.manual_seed(0)
    first, last = light(10, 1), light(10, 1)
    how = {"classifiers": [first, last], "accelerator": Accelerator()}
    embed(store, last, name="whole", **how)

    def killed(done, total):
        raise Killed

    with pytest.raises(Killed):
        embed(store, last, name="cut", progress=killed, **how)
    assert np.isnan(store.signals("cut")[400:]).all()
    assert embed(store, last, name="cut", **how) == len(store) - 400
    np.testing.assert_array_equal(store.signals("cut"), store.signals("whole"))
    embed(store, last, name="bare", accelerator=Accelerator())
    assert "bare" not in store.signal_tables
    assert embed(store, last, name="bare", **how) == len(store)
    np.testing.assert_array_equal(store.signals("bare"), store.signals("whole"))
    with pytest.raises(ss.StoreMismatchError, match="other weights"):
        embed(store, last, name="cut", classifiers=[last, first], accelerator=Accelerator())


def test_a_pass_of_an_untrained_network_says_so_and_goes_on_with_the_same_one(
    packed, tmp_path, caplog
):
    store = ss.index(packed.shards[:2], tmp_path / "s.zarr")
    how = {"model": "light", "name": "e"}
    embed_store(store.path, **how)
    assert "model light embeds untrained" in caplog.text
    wanted = store.embedding("e")
    store.embedding_array("e")[1] = np.nan
    torch.manual_seed(1)
    assert embed_store(store.path, **how)["embedded_now"] == 400
    np.testing.assert_array_equal(store.embedding("e"), wanted)


NET = """
from torch import nn
def net(num_classes):
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU())
    return nn.Sequential(trunk, nn.Sequential(nn.Dropout(), nn.Linear(5, num_classes)))
"""


def test_a_seed_network_of_any_factory_embeds_by_its_trunk(packed, tmp_path, monkeypatch):
    (tmp_path / "net_with_trunk.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    network = load_model("net_with_trunk:net", 10).eval()
    config = TrainConfig(model="net_with_trunk:net", size=8, channels=1)
    save_network(RunFolder(tmp_path), network, config, 10)
    encoder = load_encoder(str(tmp_path))
    images = torch.rand(3, 1, 8, 8)
    points, logits = embed_and_classify(encoder.network, images)
    assert torch.equal(points, network[0](images))
    assert torch.equal(points, embed_batch(encoder.network, images))
    assert torch.equal(logits, network(images))
    store = ss.index(packed.shards[0], tmp_path / "s.zarr")
    made = embed_store(store.path, model=str(tmp_path), name="e")
    assert (made["dim"], made["signals_of_networks"]) == (5, 1)


@pytest.mark.slow
def test_classes_that_came_with_appended_shards_leave_the_other_samples_their_signals(
    packed, tmp_path
):
    run = RunFolder(tmp_path)
    torch.manual_seed(0)
    save_network(run, light(10, 1), TrainConfig(size=8, channels=1), 10)
    how = {"model": str(run.path), "name": "e"}
    whole = ss.index(packed.shards, tmp_path / "whole.zarr")
    embed_store(whole.path, **how)
    path = ss.index(packed.shards[:-1], tmp_path / "grown.zarr").path
    embed_store(path, **how)
    store = ss.append_shards(packed.shards, path)
    store.group["sample/label"][store.num_shards - 1, 0] = 10
    assert embed_store(path, **how)["embedded_now"] == store.samples[-1]
    got, wanted = ss.open_store(path).signals("e"), whole.signals("e")
    first = len(store) - store.samples[-1]
    wanted[first, :, [name != "entropy" for name in STORED]] = np.nan
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_a_killed_run_with_held_out_seeds_ends_as_an_undisturbed_one(
    scored, packed, tmp_path, monkeypatch
):
    store = ss.index(packed.pattern, tmp_path / "s.zarr")
    how = {"held_out": 0.25, "snapshots": 3, "match_steps_of": 1}
    with monkeypatch.context() as patch:
        patch.setattr(training, "bar", lambda name, shown=True: nullcontext(killed_half_way))
        with pytest.raises(Killed):
            score_store(store.path, CONFIG, **HOW, **how)
    assert store.scores == []
    result = score_store(store.path, CONFIG, **HOW, **how)
    made = store.provenance("seed_dyn_unc")
    assert result["window"] == made["parameters"]["window"] != HOW["window"]
    for name in ("seed_dyn_unc", "seed_held_out_dyn_unc", "seed_held_out_tdds"):
        np.testing.assert_array_equal(store.score(name), scored.score(name))


def killed_half_way(done, total, note=""):
    if done > total // 2:
        raise Killed


def test_signals_that_were_not_named_before_a_kill_are_named_by_the_next_start(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    make_array(store.group, "signal/cut", (1, store.rows_per_shard, 2, 1), "float32", np.nan)
    assert store.signal_array("cut", 2, ("loss",)).attrs["signals"] == ["loss"]
