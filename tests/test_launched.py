"""The main job as real processes: two ranks, and killed with SIGKILL at many moments."""

import json
import os
import signal
import socket
import subprocess
import sys

import forks
import numpy as np
import pytest
import torch
import two_ranks_train
from launching import ROOT, on_two_ranks
from tars import write_shards
from two_ranks_gnn import clouds

import shardsieve as ss
from shardsieve.pack import pack
from shardsieve.train.launch import make_accelerator

# One process makes what they share.
pytestmark = pytest.mark.xdist_group("launched")

PROGRAM = ["-m", "shardsieve"]
TRAIN = ROOT / "tools/train_subset.py"
BUILD = ["--epochs", "5", "--window", "3", "--batch-size", "32", "--k", "10", "--method", "fused"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack("digits", tmp_path_factory.mktemp("digits"), samples_per_shard=150)


@pytest.fixture(scope="module")
def built(packed, tmp_path_factory):
    """The store of an undisturbed build."""
    path = tmp_path_factory.mktemp("built") / "s.zarr"
    forks.run(*PROGRAM, "build", packed[0].pattern, "--store", path, *BUILD)
    return ss.open_store(path, mode="r")


def test_a_port_that_somebody_else_uses_is_named(packed, tmp_path):
    """Its owner never answers, and was asked without end who has said so before."""
    store = ss.index(packed[0].pattern, tmp_path / "s.zarr")
    command = [sys.executable, *PROGRAM, "train", "--store", store.path, "--rule", "random"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}
        ended = subprocess.run(
            [*command, "--out", tmp_path / "o"],
            env={**os.environ, **place, "LOCAL_RANK": "0"},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"shardsieve: MASTER_PORT {port} is in use on this machine; choose another\n"
    )


@pytest.mark.slow
def test_two_ranks_train_on_the_keep_set_exactly_once_in_equal_steps(packed, tmp_path):
    store = ss.index(packed[0].pattern, tmp_path / "s.zarr")
    forks.run("tests/two_ranks_train.py", tmp_path / "s.zarr", tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for first, second in zip(a["epochs"], b["epochs"], strict=True):
        assert len(first) == len(second)
        assert sorted(i for batch in first + second for i in batch) == a["keep"] == b["keep"]
    assert a["epochs"][0] != a["epochs"][1]
    one = two_ranks_train.accuracies(store, make_accelerator())
    assert a["accuracies"] == b["accuracies"] == one
    assert 0 < one[0] < one[1] < 1
    # The last step has four samples on one rank and three on the other.
    alone = two_ranks_train.of_linear(store, make_accelerator(), 8)
    for rank in range(2):
        weights = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(weights, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_attack_after_a_resume_as_they_would_have_without():
    """Each by the statistics of its last batch, and only the main process' are saved."""
    forks.run("tests/two_ranks_attacked.py", ranks=2)


@pytest.mark.slow
def test_a_rank_ends_though_a_thread_of_its_group_waits_for_python(tmp_path):
    (tmp_path / "gathered").write_bytes(b"\0")
    forks.run("tests/two_ranks_end.py", tmp_path / "gathered", ranks=2)


@pytest.mark.slow
def test_no_thread_of_the_group_is_left_at_the_end_of_a_rank():
    # As users do: a fork has imported before what may hold the group.
    on_two_ranks(ROOT / "tests/two_ranks_ended.py")


@pytest.mark.slow
def test_two_ranks_compare_a_seed_run_with_its_second_one(packed, tmp_path):
    store = ss.index(packed[0].pattern, tmp_path / "s.zarr")
    forks.run("tests/two_ranks_ceiling.py", store.path, tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a == b == {"seed_el2n": store.provenance("seed_el2n")["ceiling"]}
    assert a["seed_el2n"]["of"] == "seed_again_el2n"


@pytest.mark.slow
def test_a_build_on_two_ranks_scores_and_embeds_everything(packed, built, tmp_path):
    store = tmp_path / "s.zarr"
    forks.run("tools/build_store.py", packed[0].pattern, "--store", store, *BUILD, ranks=2)
    two = ss.open_store(store, mode="r")
    assert two.scores == built.scores
    for name in two.scores:
        ours, theirs = two.score(name), built.score(name)
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    assert np.isfinite(two.embedding("seed")).all()
    assert np.isfinite(two.signals("seed")).all()


@pytest.mark.slow
def test_graph_networks_on_two_ranks_predict_what_one_does(tmp_path):
    points, values = clouds()
    for ranks in (1, 2):
        store = ss.index(
            write_shards(tmp_path / str(ranks), [50, 64, 46]), tmp_path / f"{ranks}.zarr"
        )
        (tmp_path / str(ranks) / "classes.json").write_text('["one"]')
        array = store.embedding_array("e", 4)
        for shard, part in enumerate(np.split(points, [50, 114])):
            array[shard, : len(part)] = part
        store.put_score("seed", np.where(np.arange(160) % 3, np.nan, values))
        forks.run("tests/two_ranks_gnn.py", store.path, tmp_path, ranks=ranks)
    made = []
    for name in ("1_0", "2_0", "2_1"):
        with np.load(tmp_path / f"{name}.npz") as file:
            made.append(dict(file))
    alone, first, second = made
    assert len(alone) == 11
    np.testing.assert_allclose(first["seeds, appended"], first["seeds, stored"], rtol=1e-4)
    for name in alone:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert any((first[name] != alone[name]).any() for name in alone)


MOMENTS = {
    "index": ".s.zarr.indexing/*.npz",
    "score": "s.zarr.runs/seed/checkpoint-*.pt",
    "scored": "s.zarr/score/seed_el2n",
    "embed": "s.zarr/embedding/seed/c/*",
    "extrapolate": "s.zarr/score/dyn_unc",
}


@pytest.mark.slow
def test_a_build_killed_at_every_step_ends_in_the_same_store(packed, built, tmp_path):
    store = tmp_path / "s.zarr"
    command = [*PROGRAM, "build", packed[0].pattern, "--store", str(store), *BUILD]
    for moment, pattern in MOMENTS.items():
        assert not any(tmp_path.glob(pattern)), moment
        assert forks.killed_at(tmp_path / pattern, *command) == -signal.SIGKILL, moment
        assert any(tmp_path.glob(pattern)), moment
    forks.run(*command)
    again = ss.open_store(store, mode="r")
    assert again.fingerprint == built.fingerprint
    assert again.scores == built.scores
    for name in built.scores:
        np.testing.assert_array_equal(again.score(name), built.score(name))
    np.testing.assert_array_equal(again.embedding("seed"), built.embedding("seed"))
    np.testing.assert_array_equal(again.signals("seed"), built.signals("seed"))
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert leftovers == []


@pytest.mark.slow
def test_a_run_goes_on_with_two_processes_where_one_was_killed(packed, built, tmp_path):
    how = ["--store", str(built.path), "--score", "dyn_unc", "--out", str(tmp_path / "run")]
    how += ["--epochs", "3", "--batch-size", "16", "--checkpoint-steps", "2", "--json"]
    how += ["--precision", "bf16", "--schedule", "cosine"]
    status = forks.killed_at(tmp_path / "run/checkpoint-*.pt", TRAIN, *how)
    assert status == -signal.SIGKILL
    result = json.loads(forks.run(TRAIN, *how, ranks=2).splitlines()[-1])
    assert result["processes"] == 2
    assert result["samples"] == 3 * ss.num_kept(len(built), 0.5)
