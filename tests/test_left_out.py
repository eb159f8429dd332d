"""Classes of which nothing is chosen are warned of before hours go by."""

import io

import numpy as np
import pytest
from PIL import Image
from tars import write_tar

import shardsieve as ss
from shardsieve.commands.classes import left_out
from shardsieve.commands.showing import kept_per_class
from shardsieve.commands.training import score_store, train_store
from shardsieve.train.config import TrainConfig

NAMES = ["ant", "bee", "cat", "dog"]
EACH = 6


@pytest.fixture
def store(tmp_path):
    """Four classes; the score is lower for two of them."""
    members = []
    for row in range(EACH * len(NAMES)):
        Image.new("L", (8, 8), 9 * row).save(out := io.BytesIO(), "PNG")
        said = NAMES[row % 4].encode()
        members += [(f"{row:02d}.png", out.getvalue()), (f"{row:02d}.txt", said)]
    tar = write_tar(tmp_path / "s.tar", members)
    store = ss.index(tar, tmp_path / "s.zarr", label_member="txt")
    store.put_score("mine", -(store.labels() % 2))
    return store


def test_the_first_class_that_is_lost_is_named(store):
    labels, ids = store.labels(), store.ids()
    assert left_out(store, labels, ids, "") is None
    said = left_out(store, labels, ids[labels % 2 == 0], "draw")
    assert said == (
        f"2 of 4 classes have no sample among the {2 * EACH} chosen, the first of them bee, so "
        "that nothing learns them; draw"
    )
    without = np.where(labels == 1, -1, labels)  # what has no label is of no class
    assert left_out(store, without, ids[without != -1], "") is None
    assert "1 of 3 classes" in left_out(store, without, ids[without != 3], "")


def test_select_and_train_warn_of_what_they_leave_out(store, tmp_path, caplog):
    rule = {"rule": "top", "score": "mine", "keep_fraction": 0.5}
    said = "2 of 4 classes have no sample among the 12 chosen, the first of them bee"
    assert kept_per_class(store.path, rule, None)["warning"].startswith(said)
    config = TrainConfig(epochs=1, batch_size=4)
    result = train_store(store.path, config, out=tmp_path / "run", rule=rule)
    assert result["warning"].startswith(said)
    assert [message for message in caplog.messages if message.startswith(said)] != []
    floor = {**rule, "rule": "class_balanced", "class_floor": 1}
    assert "warning" not in kept_per_class(store.path, floor, None)
    caplog.clear()
    assert "warning" not in train_store(store.path, config, out=tmp_path / "all", rule=floor)
    policy = {"name": "random-dynamic"}
    train_store(store.path, config, out=tmp_path / "p", rule={"keep_fraction": 0.1}, policy=policy)
    assert caplog.messages == []


def test_pseudo_labels_have_no_names(store, tmp_path):
    store.put_pseudo_labels("found", store.labels())
    config = TrainConfig(epochs=1, batch_size=4, pseudo_labels="found")
    rule = {"rule": "top", "score": "mine", "keep_fraction": 0.5}
    warning = train_store(store.path, config, out=tmp_path / "run", rule=rule)["warning"]
    assert "2 of 4 classes have no sample among the 12 chosen, the first of them 1," in warning


def test_a_seed_run_warns_of_classes_without_a_seed(store, caplog):
    config = TrainConfig(epochs=3, batch_size=2)
    how = {"window": 2, "folder": None, "scores": ["el2n"]}
    few = score_store(store.path, config, seed_fraction=0.08, per_class=False, name="few", **how)
    assert "classes have no sample among the 2 chosen, the first of them" in few["warning"]
    assert "(--per-class)" in few["warning"]
    assert few["warning"] in caplog.messages
    each = score_store(store.path, config, seed_fraction=0.2, per_class=True, name="each", **how)
    assert "warning" not in each
