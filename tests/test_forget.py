"""`shardsieve forget`."""

import json
from pathlib import Path

import numpy as np
import pytest
from tars import write_shards
from typer.testing import CliRunner

import shardsieve as ss
from shardsieve.cli import app
from shardsieve.commands.clearing import forget
from shardsieve.train.recorder import Recorder


@pytest.fixture
def store(tmp_path):
    made = ss.index(write_shards(tmp_path / "d", [9, 7]), tmp_path / "s.zarr")
    recorder = Recorder(made.ids()[:6], num_classes=4, signals=("loss",))
    recorder.record(made.ids()[:6], np.eye(6, 4), np.zeros(6, int))
    recorder.end_epoch()
    recorder.save(made, "seed")
    measured = {"definition": "el2n", "dynamics": "seed"}
    made.put_score("measured", np.arange(16.0), provenance=measured)
    predicted = {"source": "measured", "embedding": "seed", "definition": "knn(measured)"}
    made.put_score("predicted", np.arange(16.0), provenance=predicted)
    made.put_score("mine", np.arange(16.0))
    made.embedding_array("seed", 3)[:] = 1
    made.signal_array("seed", 1, ("entropy",))[:] = 1
    made.put_pseudo_labels("seed", np.zeros(16, int), provenance={"dynamics": "seed"})
    ss.select(made, keep_fraction=0.5, score="mine").save(made, "half")
    return made


def held(store):
    """Return the names of everything in a store."""
    again = ss.open_store(store.path)
    return {
        "score": again.scores,
        "embedding": again.embeddings,
        "signal": again.signal_tables,
        "keep": again.keep_sets,
        "pseudo": again.pseudo_label_sets,
        "dynamics": again.dynamics,
    }


@pytest.mark.parametrize(
    ("names", "gone", "warned"),
    [
        ({"scores": ["mine"]}, {"score": ["mine"]}, False),
        ({"scores": ["measured", "mine"]}, {"score": ["measured", "mine"]}, True),
        ({"scores": ["measured", "predicted"]}, {"score": ["measured", "predicted"]}, False),
        ({"embeddings": ["seed"]}, {"embedding": ["seed"], "signal": ["seed"]}, True),
        ({"keep_sets": ["half"]}, {"keep": ["half"]}, False),
        ({"pseudo_labels": ["seed"]}, {"pseudo": ["seed"]}, False),
        (
            {"runs": ["seed"]},
            {"score": ["measured"], "pseudo": ["seed"], "dynamics": ["seed"]},
            True,
        ),
    ],
)
def test_what_is_named_goes_and_nothing_else(store, names, gone, warned):
    before = held(store)
    found = forget(store.path, names)
    after = {
        kind: [n for n in all_ if n not in gone.get(kind, ())] for kind, all_ in before.items()
    }
    assert held(store) == after
    assert ("predicted were predicted from what is gone" in found.get("warning", "")) is warned


def test_what_is_named_goes_also_where_the_shards_are_others_now(store):
    """Room is made in a store of before too; scores of gone shards are the first to go."""
    for url in store.urls:
        Path(url).write_bytes(b"another")
    assert forget(store.path, {"scores": ["mine"]})["scores"] == ["mine"]


def test_a_name_that_is_not_there_deletes_nothing(store):
    before = held(store)
    asked = {"scores": ["mine"], "keep_sets": ["hlaf"]}
    with pytest.raises(ss.MissingScoreError, match=r"\(half\), got 'hlaf'; nothing was deleted"):
        forget(store.path, asked)
    assert held(store) == before
    with pytest.raises(ValueError, match="forget needs the name of"):
        forget(store.path, {"scores": [], "runs": []})


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("scores", "score/mine"),
        ("embeddings", "embedding/seed"),
        ("keep_sets", "keep/half"),
        ("pseudo_labels", "pseudo_label/seed"),
        ("runs", "dynamics/seed"),
    ],
)
def test_what_a_kill_left_of_it_goes_when_it_is_named_again(store, kind, place):
    """It was not there any more, and its files stayed."""
    (store.path / place / "zarr.json").unlink()
    assert list((store.path / place).rglob("c"))
    forget(store.path, {kind: [place.partition("/")[2]]})
    assert not (store.path / place).exists()


def test_the_command_says_what_is_gone(store):
    asked = ["--score", "mine", "--score", "predicted", "--keep-set", "half", "--json"]
    said = CliRunner().invoke(app, ["forget", "--store", str(store.path), *asked])
    gone = json.loads(said.stdout)
    assert (gone["scores"], gone["keep_sets"]) == (["mine", "predicted"], ["half"])
