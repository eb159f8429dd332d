"""Loops of Accelerate on two real processes, or three."""

import json
import signal

import forks
import numpy as np
import pytest
import torch
from tars import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss

VARIANTS = [
    ("uneven", "prepared"),
    ("pad", "prepared"),
    ("uneven", "plain"),
    ("pad", "pipeline"),
    ("uneven", "pipeline"),
]


@pytest.fixture(scope="module")
def read_on_two_ranks(tmp_path_factory):
    """What two ranks saw, of every variant, in the folder's files."""
    folder = tmp_path_factory.mktemp("two")
    store = ss.index(write_shards(folder / "d", [9, 0 + 1, 14, 6]), folder / "s.zarr")
    forks.run("tests/two_ranks.py", store.path, folder, *map(" ".join, VARIANTS), ranks=2)
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("two ranks read")
@pytest.mark.parametrize(("tail", "prepared"), VARIANTS)
def test_two_ranks_read_the_keep_set_in_equally_many_steps(read_on_two_ranks, tail, prepared):
    files = [read_on_two_ranks / f"{tail} {prepared} {rank}.json" for rank in range(2)]
    a, b = (json.loads(file.read_text()) for file in files)
    assert a["world"] == b["world"] == 2
    assert a["steps"] == b["steps"] == a["promised"] == b["promised"] == 3
    assert len(a["keep"]) == 21
    if prepared != "plain":
        # The last group of accumulated gradients is stepped at a pass' end, on every rank alike.
        assert a["ends"] == b["ends"] == [False, False, True]
    if tail == "uneven":
        assert sorted(a["seen"] + b["seen"]) == a["keep"]
    else:
        assert set(a["seen"] + b["seen"]) == set(a["keep"])
        assert sorted(a["gathered"]) == sorted(b["gathered"]) == a["keep"]


def logged(folder, steps=None):
    """The ids that every rank wrote down, of its first steps."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()[:steps]]
        for path in sorted(folder.glob("rank*.jsonl"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "after"), [("prepared", 3), ("prepared", 1), ("plain", 3)])
def test_killed_on_two_ranks_a_run_goes_on_on_any_number(tmp_path, kind, after):
    store = ss.index(write_shards(tmp_path / "d", [30, 1, 44, 26, 35, 40]), tmp_path / "s.zarr")
    keep = ss.select(store, rule="random", keep_fraction=0.7, seed=4).ids().tolist()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    state = first / "state.json"
    how = ["tests/ranks_resume.py", store.path]
    cut = forks.start(*how, first, state, kind, "waits", ranks=2)
    forks.wait_for(lambda: state.exists() and done_of(state) >= 40, cut)
    assert forks.kill(cut) == [-signal.SIGKILL] * 2
    assert not list(first.glob("done*"))
    place = done_of(state)
    assert 40 <= place < len(keep)
    forks.run(*how, second, state, kind, "ends", ranks=after)
    assert len(list(second.glob(f"done*of{after}"))) == after
    before, rest = logged(first, steps=place // 8), logged(second)
    assert len({len(steps) for steps in rest}) == 1
    trained = [i for ranks in (before, rest) for steps in ranks for ids in steps for i in ids]
    assert sorted(trained) == keep
    assert done_of(second / "state.json") == len(keep)


def done_of(state):
    return json.loads(state.read_text())["samples_done"]


def alone(store):
    """The keep sets of one process, by the same losses."""
    policy, losses = ss.InfoBatch(num_epochs=6, seed=2), np.random.default_rng(0)
    losses = losses.gamma(2, 1, (6, len(store)))
    policy.bind(store)
    for epoch in range(6):
        rows = policy.choose(epoch).rows
        policy.update(store.ids()[rows], losses[epoch][rows])
        yield store.ids()[rows].tolist()


@pytest.mark.slow
def test_two_ranks_prune_by_the_losses_of_both(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [25, 40, 14, 6]), tmp_path / "s.zarr")
    forks.run("tests/two_ranks_policy.py", tmp_path / "s.zarr", tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["world"] == b["world"] == 2
    for first, second, keep in zip(a["epochs"], b["epochs"], alone(store), strict=True):
        assert first["keep"] == second["keep"] == keep
        assert sorted(first["seen"] + second["seen"]) == keep
    assert len(a["epochs"][2]["keep"]) < len(store) == len(a["epochs"][5]["keep"])
    for epoch in range(1, 6):  # the main process saves late what it was asked for before the losses
        policy = ss.InfoBatch(num_epochs=6, seed=2)
        policy.bind(store)
        policy.load_state_dict(torch.load(tmp_path / f"before{epoch}.pt", weights_only=True))
        assert store.ids()[policy.choose(epoch).rows].tolist() == a["epochs"][epoch]["keep"]


@pytest.mark.slow
def test_the_steps_that_schedules_are_told_are_the_steps_made(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [25, 40, 14, 6, 17]), tmp_path / "s.zarr")
    forks.run("tests/two_ranks_steps.py", store.path, tmp_path, ranks=2)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a == b
    assert len(a) == 30
    for tail, kind, _, steps, (low, expected, high) in a:
        assert low <= steps <= high
        if kind in ("static", "random", "ucb"):
            kept = ss.num_kept(len(store), 0.4)  # 41 in batches of 8
            assert steps == low == expected == high
            exact = {"uneven": 6, "pad": 6, "drop": 5}[tail]
            assert kept == 41
            assert steps == 4 * exact or kind == "ucb"
        else:
            assert low < expected < high


def test_steps_are_not_guessed_without_a_batch_size(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [25, 40]), tmp_path / "s.zarr")
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random")
    with pytest.raises(ValueError, match="batch_size must be known to count steps, got None"):
        sampler.steps(3)
    loader = DataLoader(ss.ShardDataset(store), 4, sampler=sampler, collate_fn=list)
    assert len(loader) == 9
    assert sampler.steps(3) == 27
