"""Scores by what the networks behind an embedding say, as `shardsieve ask` makes them."""

import fcntl
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve import cli as program
from shardsieve.commands import asking
from shardsieve.commands.asking import ask_networks, check_asked
from shardsieve.commands.reporting import report_score
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet
from shardsieve.store.store import Store
from shardsieve.train.ledger import overhead_of
from shardsieve.train.measures import STORED, measure


@pytest.fixture
def said(tmp_path):
    """A store of 20 samples with what two networks said of them, and the probabilities behind."""
    store = ss.index(write_shards(tmp_path / "d", [12, 8]), tmp_path / "s.zarr")
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 20, 10)).astype(np.float32))
    labels = torch.from_numpy(store.labels())
    signals = np.stack([measure(STORED, one, labels)[1].numpy() for one in logits], axis=1)
    signals[3, :, np.array(STORED) != "entropy"] = np.nan  # as where there is no label
    array, points = store.signal_array("e", 2, STORED), store.embedding_array("e", 2)
    for shard, rows in enumerate((slice(0, 12), slice(12, 20))):
        array[shard, : rows.stop - rows.start] = signals[rows]
        points[shard, : rows.stop - rows.start] = 1
    return store, logits.softmax(dim=2).numpy().astype(np.float64)


def test_what_the_networks_say_is_a_score_of_every_sample(said):
    store, probs = said
    specs = ["el2n", "el2n:last=1", "cross_entropy", "confidence", "variability", "entropy"]
    made = ask_networks(store.path, None, specs, prefix="now")
    assert made == {
        "embedding": "e",
        "scored": 19,
        "scores": [f"now_{spec.replace(':', '.').replace('=', '-')}" for spec in specs],
    }
    labels = store.labels()
    p_true = probs[:, np.arange(20), labels]
    el2n = np.stack([ss.scores.el2n(one, labels) for one in probs])
    wanted = [el2n.mean(axis=0), el2n[1], ss.scores.cross_entropy(probs[1], labels)]
    wanted += [-p_true.mean(axis=0), p_true.std(axis=0), ss.scores.entropy(probs[1])]
    for name, values in zip(made["scores"], wanted, strict=True):
        values[3] = values[3] if name == "now_entropy" else np.nan
        np.testing.assert_allclose(store.score(name), values, rtol=1e-5)


def test_a_score_says_whom_it_asked_and_what_that_took(said, monkeypatch):
    store, _ = said
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(asking, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    store.embedding_array("e").attrs["cost"] = Cost.timed(7.0).to_dict()
    store.signal_array("e").attrs.update({"weights": "1f at 8 pixels", "seeds_digest": "5d"})
    dyn_unc = "dyn_unc:window=2:include_last=true"
    ask_networks(store.path, "e", ["el2n:last=1", "confidence", dyn_unc])
    about = store.provenance("asked_el2n.last-1")
    assert about["definition"] == "el2n(embedding=e, networks=2, last=1)"
    assert store.provenance("asked_confidence")["definition"] == (
        "confidence(embedding=e, networks=2)"
    )
    assert store.provenance("asked_dyn_unc.window-2.include_last-true")["definition"] == (
        "dyn_unc(embedding=e, networks=2, window=2, include_last=True)"
    )
    assert about["orientation"] == "higher is kept first"
    assert "2107.07075" in about["paper"]
    assert about["measured"]
    assert (about["network"], about["seeds_digest"]) == ("1f at 8 pixels", "5d")
    counted = overhead_of(store, "asked_el2n.last-1").phases
    assert counted["embedding"].seconds == 7.0
    assert counted["scoring"].seconds == 2.0  # of 6 for three


def test_signals_are_known_by_the_names_that_they_were_stored_under(said):
    store, _ = said
    array = store.signal_array("other", 1, ("entropy", "p_true"))
    array[0, :12] = np.broadcast_to([0.5, 0.25], (12, 1, 2))
    store.embedding_array("other", 2)[0, :12] = 1
    ask_networks(store.path, "other", ["confidence"])
    assert set(store.score("asked_confidence")[:12]) == {-0.25}
    with pytest.raises(ValueError, match="must have the signal 'el2n', got entropy, p_true"):
        ask_networks(store.path, "other", ["el2n"])


def test_the_report_is_of_the_samples_that_the_networks_know(said, tmp_path):
    store, _ = said
    ask_networks(store.path, None, ["el2n"])
    out = tmp_path / "report.html"
    report_score(store.path, out, score="asked_el2n", keep_fraction=0.5, reference=None)
    assert "19 samples measured" in out.read_text()


def test_another_score_of_that_name_stays(said):
    store, _ = said
    store.put_score("asked_el2n", np.arange(20))
    with pytest.raises(ss.StoreMismatchError, match="asked_el2n"):
        ask_networks(store.path, None, ["confidence", "el2n"])
    assert store.score("asked_el2n")[5] == 5
    assert store.scores == ["asked_el2n"]


def test_no_other_score_appears_between_the_look_and_the_writing(said, monkeypatch):
    store, _ = said
    look, looks = Store.check_score, []

    def looked(self, *how):
        handle = os.open(store.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        looks.append(how[0])
        look(self, *how)

    monkeypatch.setattr(Store, "check_score", looked)
    ask_networks(store.path, None, ["el2n", "aum"])
    assert looks[:2] == ["asked_el2n", "asked_aum"]


def test_shards_that_came_later_are_asked_about_once_they_are_embedded(said, tmp_path):
    store, _ = said
    ask_networks(store.path, None, ["el2n"])
    ss.append_shards(write_shards(tmp_path / "more", [5]), store.path)
    made = ask_networks(store.path, None, ["el2n"])
    assert made["scored"] == 19
    assert made["warning"].startswith("5 samples have no embedding and stay without a score")
    store = ss.open_store(store.path)
    store.signal_array("e")[2, :5] = 1
    made = ask_networks(store.path, None, ["el2n"])
    assert (made["scored"], "warning" in made) == (24, False)
    assert np.isfinite(store.score("asked_el2n")).sum() == 24


def test_only_networks_that_classify_can_be_asked(said):
    store, _ = said
    store.embedding_array("plain", 2)[0, :12] = 1
    with pytest.raises(ss.MissingScoreError, match="embedding 'plain' must come with signals"):
        ask_networks(store.path, "plain", ["el2n"])
    store.signal_array("nothing", 1, STORED)
    store.embedding_array("nothing", 2)[0, :12] = 1
    with pytest.raises(ss.MissingScoreError, match="embedding 'nothing' must hold samples, got n"):
        ask_networks(store.path, "nothing", ["el2n", "aum"])


def test_without_any_label_the_entropy_alone_can_be_asked_for(said):
    store, _ = said
    array = store.signal_array("e")
    array[:, :, :, [name != "entropy" for name in STORED]] = np.nan
    with pytest.raises(ss.MissingScoreError, match="be known to ask for el2n, aum, got none; in"):
        ask_networks(store.path, None, ["el2n", "entropy", "aum"])
    assert not store.scores
    assert ask_networks(store.path, None, ["entropy"])["scored"] == 20
    assert np.isfinite(store.score("asked_entropy")).all()


def test_what_networks_cannot_be_asked_for_is_refused_before_anything_is_stored(said):
    store, _ = said
    for spec, message in [
        ("tdds", "score must be one of aum, confidence, .*, got 'tdds'"),
        ("dyn_unc", r"p_true must have more than window=10 .* \(asking for 'dyn_unc', where netw"),
        ("el2n:last=3", "last must be at most the 2 recorded epochs, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask_networks(store.path, None, ["el2n", spec])
        with pytest.raises(ValueError, match=message):
            check_asked(["el2n", spec], 2)
    assert not store.scores
    assert check_asked(["el2n:last=2", "dyn_unc:window=3"], 4) == [
        "el2n.last-2",
        "dyn_unc.window-3",
    ]


@pytest.mark.parametrize("without_label", [[], [3]])
def test_networks_that_know_some_samples_better_are_warned_of(said, without_label):
    store, _ = said
    for place in without_label:
        store.group["sample/label"][0, place] = -1
    ids, signals = store.ids(), store.signal_array("e")
    for trained, warned in ((ids, False), (np.delete(ids, without_label), False), (ids[:4], True)):
        signals.attrs["seeds_digest"] = KeepSet.from_ids(store, trained).digest
        warning = ask_networks(store.path, None, ["el2n"]).get("warning", "")
        assert warning.startswith("the networks behind embedding 'e' were trained on so" * warned)
        assert bool(warning) == warned


def test_the_command_asks(said, capsys):
    store, _ = said
    command = ["ask", "--store", str(store.path), "--json"]
    program.app([*command, "--name", "mine"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["scores"] == ["mine_el2n"]
    listed = ["--scores", "aum,entropy", "--scores", "el2n"]
    program.app([*command, *listed], standalone_mode=False)
    made = json.loads(capsys.readouterr().out)["scores"]
    assert made == ["asked_aum", "asked_entropy", "asked_el2n"]
    with pytest.raises(ValueError, match="--scores must name a score, got ','"):
        program.app([*command, "--scores", ","], standalone_mode=False)
