"""What a person sees while a step is under way."""

import gc
import io
import sys
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from rich.progress import Progress
from tars import write_shards

import shardsieve as ss
from shardsieve.commands import progress as commands_progress
from shardsieve.commands.exporting import export_keep_set
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.progress import Bar, Rate, bar
from shardsieve.commands.reporting import report_score
from shardsieve.commands.scoring import score_from_embedding
from shardsieve.commands.showing import describe, kept_per_class
from shardsieve.commands.training import score_store
from shardsieve.extrapolate import KNN
from shardsieve.extrapolate.quality import out_of_fold
from shardsieve.io.counts import Counts
from shardsieve.pack import pack
from shardsieve.train import progress as train_progress
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import light
from shardsieve.train.progress import Losses
from shardsieve.train.runfolder import RunFolder


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen_of(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    return shown


def test_a_bar_shows_what_was_read(monkeypatch):
    screen = screen_of(monkeypatch)
    with bar("train") as progress:
        progress(3, 8, str(Counts(kept=5_000_000, read=6_000_000, requests=9)))
    assert "3/8" in screen.getvalue()
    assert "6.0 MB read, 1.20 of what was kept" in screen.getvalue()


def test_a_bar_knows_no_total_before_it_is_told_and_shows_the_rate(monkeypatch):
    screen = screen_of(monkeypatch)
    with bar("embed") as progress:
        assert "0/?" in screen.getvalue()
        progress(1, 6)
        progress(6, 6)
    assert "6/6" in screen.getvalue()
    assert "/s" in screen.getvalue()
    assert (
        screen.getvalue().split("embed")[-1].count("0:00:") == 2
    )  # what it took, and what is left


@pytest.mark.parametrize(
    ("seconds", "done", "shown"),
    [(1, 1_234_567, "1,234,567/s"), (1, 1234, "1,234/s"), (1, 33, "33/s"), (8, 1, "0.125/s")],
)
def test_rates_are_written_out(seconds, done, shown):
    clock, said = 0.0, []
    drawn = Progress(get_time=lambda: clock)
    step = drawn.add_task("embed", total=2 * done)
    for number in range(3):
        clock = number * seconds
        drawn.update(step, completed=number * done)
        said.append(Rate().render(drawn.tasks[0]).plain)
    assert said == ["", "", shown]


def test_nothing_is_drawn_where_nobody_looks(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with bar("train") as progress:
        progress(3, 8, "note")
    assert screen.getvalue() == ""


def test_a_log_gets_a_line_a_minute(monkeypatch):
    screen, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(commands_progress, "monotonic", lambda: now[0])
    with bar("train") as progress, bar("hidden", shown=False) as hidden:
        for done in range(100, 224):  # it goes on at 100, a step a second
            progress(done, 3800, "note" * (done > 200))
            hidden(done, 3800)
            now[0] += 1
    assert screen.getvalue().splitlines() == [
        "train: 160/3800, 1/s, 1:00:40 left",
        "train: 220/3800, 1/s, 0:59:40 left, note",
    ]
    with bar("longer than expected") as progress:
        for done in range(62):
            progress(done, 50)
            now[0] += 1
    assert screen.getvalue().endswith("longer than expected: 60/50, 1/s, 0:00:00 left\n")


def test_scores_from_an_embedding_are_counted(monkeypatch, tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [30]), tmp_path / "s.zarr")
    points = np.random.default_rng(0).normal(size=(30, 3)).astype("f2")
    store.embedding_array("e", 3)[0, :30] = points
    screen = screen_of(monkeypatch)
    score_from_embedding(store.path, None, ["semdedup:clusters=2", "moderate"], prefix=None)
    assert "2/2" in screen.getvalue()


def test_the_rounds_of_k_means_are_told_beside_the_bar(monkeypatch, tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [30]), tmp_path / "s.zarr")
    store.embedding_array("e", 3)[0, :30] = np.random.default_rng(0).normal(size=(30, 3))
    notes = []
    monkeypatch.setattr(Bar, "__call__", lambda bar, done, total, note="": notes.append(note))
    specs = ["semdedup:clusters=2", "prototypicality:clusters=2"]
    score_from_embedding(store.path, None, specs, prefix=None)
    for kind in ("semdedup", "prototypicality"):
        assert f"{kind}: k-means, round 1 of 60" in notes
        assert f"{kind}: k-means, round 60 of 60" in notes


def test_a_seed_run_says_what_goes_on_while_its_steps_stand_still(monkeypatch, tmp_path):
    packed = pack("digits", tmp_path / "d", samples_per_shard=900)[0]
    ss.index(packed.pattern, tmp_path / "s.zarr")
    told = []
    monkeypatch.setattr(Bar, "__call__", lambda bar, *done: told.append(done))
    how = {"seed_fraction": 0.1, "per_class": False, "folder": None, "window": 1}
    how |= {"held_out": 0.5, "scores": ["el2n", "aum"]}
    score_store(tmp_path / "s.zarr", TrainConfig(epochs=2, batch_size=45), **how)
    # 90 seeds to train on and 90 held out, in two batches each.
    assert (2, 4, "clean pass: batch 1 of 2") in told
    assert (4, 4, "clean pass: batch 2 of 2") in told
    assert told[-1] == (4, 4, "score 2 of 2")


def test_a_training_keeps_no_tensor_of_its_steps(tmp_path):
    packed = pack("digits", tmp_path / "d", samples_per_shard=900)[0]
    store = ss.index(packed.pattern, tmp_path / "s.zarr")
    config = TrainConfig(epochs=1, batch_size=32, size=8, channels=1)
    keep = ss.select(store, keep_fraction=0.5, rule="random")
    trainer = Trainer(light(10, 1), store, keep, config, make_accelerator())
    alive = {}

    def count(done, total, note):
        if done in (5, total):
            alive[done] = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    assert list(trainer.epochs(progress=count)) == [0]
    assert alive[23] < alive[5] + 9  # of 18 more steps


def test_what_goes_into_a_checkpoint_is_not_held_afterwards(tmp_path):
    packed = pack("digits", tmp_path / "d", samples_per_shard=900)[0]
    store = ss.index(packed.pattern, tmp_path / "s.zarr")
    config = TrainConfig(epochs=3, batch_size=64, size=8, channels=1)
    keep = ss.select(store, keep_fraction=0.1, rule="random")
    (tmp_path / "run").mkdir()
    folder, made, alive = RunFolder(tmp_path / "run"), [], []
    trainer = Trainer(light(10, 1), store, keep, config, make_accelerator(), folder=folder)

    def remember():
        alive.append(sum(one() is not None for one in made))
        table = torch.full((3,), float(len(made)))
        made.append(weakref.ref(table))
        return {"table": table}

    trainer.remember = remember
    assert list(trainer.epochs()) == [0, 1, 2]
    assert alive == [0, 0, 0]
    held = folder.need(folder.newest_checkpoint())
    assert held["extra"]["table"].tolist() == [2, 2, 2]


def test_losses_are_kept_in_the_order_of_their_steps_until_they_are_taken(monkeypatch):
    monkeypatch.setattr(train_progress, "_ROOM", 4)
    losses = Losses()
    for _ in range(2):
        for step in torch.arange(30.0).split([3, 1, 20, 6]):
            losses.add(step, step != 7)
        taken = losses.take()
        assert taken.dtype == torch.float64
        assert taken.tolist() == [*range(7), *range(8, 30)]
        assert losses.take().tolist() == []


def test_the_folds_of_a_cross_validation_are_counted():
    points, told = np.arange(12.0)[:, None], []
    how = {"folds": 3, "progress": lambda *done: told.append(done)}
    out_of_fold(lambda: KNN(2), points, points[:, 0], **how)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_scores_of_a_store_are_counted_as_they_are_read(monkeypatch, tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    store.put_score("a", [1.0, 2.0, 3.0])
    screen = screen_of(monkeypatch)
    assert describe(store.path)["scores"][0]["scored"] == 3
    assert "1/1" in screen.getvalue()


def test_a_store_without_scores_draws_no_bar_of_them(monkeypatch, tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [3]), tmp_path / "s.zarr")
    screen = screen_of(monkeypatch)
    describe(store.path)
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    "command", [kept_per_class, partial(export_keep_set, layout="ids")], ids=["select", "export"]
)
def test_the_classes_of_the_moderate_rule_are_counted(monkeypatch, tmp_path, command):
    store = ss.index(write_shards(tmp_path / "d", [30]), tmp_path / "s.zarr")
    store.embedding_array("e", 3)[0, :30] = np.random.default_rng(0).normal(size=(30, 3))
    screen = screen_of(monkeypatch)
    rule = {"keep_fraction": 0.5, "rule": "moderate"}
    command(store.path, out=tmp_path / "out", rule=rule)
    classes = len(np.unique(store.labels()))
    assert f"{classes}/{classes}" in screen.getvalue()
    assert (tmp_path / "out").read_text().count("\n") == 15


@pytest.mark.parametrize("layout", ["keys", "energon", "csv"])
def test_the_shards_whose_keys_are_exported_are_counted(monkeypatch, tmp_path, layout):
    store = ss.index(write_shards(tmp_path / "d", [3, 2, 4]), tmp_path / "s.zarr")
    screen = screen_of(monkeypatch)
    rule = {"keep_fraction": 0.5, "rule": "random"}
    export_keep_set(store.path, tmp_path / "out", layout, rule)
    assert "3/3" in screen.getvalue()


def test_the_figures_of_a_report_are_counted_and_named(monkeypatch, tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [12]), tmp_path / "s.zarr")
    store.put_score("seed", [*range(6), *[np.nan] * 6])
    store.put_score("full", range(12), provenance={"definition": "knn(seed)", "source": "seed"})
    told = []
    monkeypatch.setattr(Bar, "__call__", lambda bar, *done: told.append(done))
    page = tmp_path / "r.html"
    report_score(store.path, page, score="full", keep_fraction=0.5, reference=None)
    assert told[0] == (0, 5, "histogram")
    assert [done for done, _, _ in told] == [0, 1, 2, 3, 4, 5]
    assert page.read_text().count("data:image/png") == 5


def test_draws_of_intervals_are_told_beside_the_bar(monkeypatch, tmp_path):
    """Of millions of seeds they take minutes."""
    store = ss.index(write_shards(tmp_path / "d", [30]), tmp_path / "s.zarr")
    store.embedding_array("e", 3)[0, :30] = np.random.default_rng(0).normal(size=(30, 3))
    store.put_score("seed", [*range(20), *[np.nan] * 10], provenance={"definition": "x"})
    store.put_score("truth", range(30), provenance={"definition": "x"})
    notes = []
    monkeypatch.setattr(Bar, "__call__", lambda bar, done, total, note="": notes.append(note))
    extrapolate_score(store.path, "seed", "full", None, k=2)
    assert [note for note in notes if "draw" in note][::199] == [
        "intervals, draw 1 of 200",
        "intervals, draw 200 of 200",
    ]
    page = tmp_path / "r.html"
    report_score(store.path, page, score="full", keep_fraction=0.5, reference="truth")
    assert notes[-2:] == ["agreement, draw 200 of 200", ""]
