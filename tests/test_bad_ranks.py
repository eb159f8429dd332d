"""Bad input of one rank among several real processes: all stop together, and one line says why."""

import json
import subprocess

import forks
import pytest
from launching import TWO_CPUS
from tars import write_shards

import shardsieve as ss

BAD = {
    "length": "rank 1: losses must have one value per id, got (3,) for (4,); use reduction='none'",
    "outside": "rank 1: ids must name samples of",
    "twice": "rank 1: ids must come once per batch",
    "both": "rank 1: losses must have one value per id, got (3,) for (4,)",  # the first of them
    "state": "rank 1: the state belongs to another store",
    "nothing": "rank 1: state must be what state_dict of a sampler returned, got None",
    "score": "rank 0: name must be made of letters",
    "schedule": "epoch must be below num_epochs=4, got 4; plan longer",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return ss.index(write_shards(folder / "d", [25, 40, 14, 6]), folder / "s.zarr")


def launched(store, out, kind):
    """Exit statuses of two ranks, and what they said."""
    said = out.with_suffix(".said")
    said.touch()
    ranks = forks.start("tests/two_ranks_bad.py", store.path, out, kind, ranks=2, err=said)
    return forks.ended(ranks), said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_all_ranks_stop_with_one_message(store, tmp_path, kind):
    statuses, printed = launched(store, tmp_path, kind)
    said = [line for line in printed.splitlines() if line.startswith("shardsieve: ")]
    assert statuses == [2, 2], printed
    assert len(said) == 1
    assert BAD[kind] in said[0]
    assert 'two_ranks_bad.py", line' not in printed
    kinds = {path.name: path.read_text() for path in tmp_path.iterdir()}
    raised = "StoreMismatchError" if kind == "state" else "ValueError"
    assert kinds == {"0.stopped": raised, "1.stopped": raised}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "not_finite"),
    [("nan", 1), ("mended", 0)],
    ids=["a NaN of one is named, counted and kept", "refused, they load a state of before"],
)
def test_all_ranks_go_on_alike(store, tmp_path, kind, not_finite):
    statuses, printed = launched(store, tmp_path, kind)
    assert statuses == [0, 0], printed
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a == b
    assert a["not_finite"] == not_finite
    assert printed.count("the loss of sample id") == not_finite


@pytest.mark.slow
def test_what_one_process_refuses_for_all_is_said_once(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"work: {tmp_path}/w\ndata: {{store: {tmp_path}/s.zarr, urls: none-*.tar}}\n")
    command = [*TWO_CPUS, "-m", "shardsieve", "run", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stderr.splitlines() if line.startswith("shardsieve: ")]
    assert done.returncode != 0
    assert said == ["shardsieve: no shards match none-*.tar; check the pattern and the folder"]
