"""Several machines: one run on all of them, or one line that says why not."""

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import forks
import pytest
import torch
from launching import LAUNCH, ROOT, free_port
from tars import write_shards

import shardsieve as ss
from shardsieve._errors import MissingDependencyError
from shardsieve.pack import pack
from shardsieve.train import machines as machines_of_train

CPU = ["--config_file", str(ROOT / "configs/two_cpu.yaml"), "--num_machines", "2"]
TOOL = str(ROOT / "tools/train_subset.py")


def refused_by_both(folder):
    store = ss.index(write_shards(folder / "data", [9]), folder / "s.zarr")
    store.put_pseudo_labels("mine", [0] * len(store))
    store.embedding_array("points", 2)[:] = 1
    forks.run("tests/two_ranks_machines.py", store.path, folder, ranks=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    left = [p for p in folder.rglob("*") if p.name.startswith(".shardsieve")]
    assert left == []
    assert not (folder / "machine0/work").exists()
    return first


@pytest.mark.slow
def test_what_machines_do_not_share_both_refuse_before_anything_is_made(tmp_path):
    said = refused_by_both(tmp_path)
    unseen = r"{} must lie on storage that all machines share, but process 1 \(.*\) does not see "
    wanted = {
        "all see it": None,
        "same": None,
        "store to read": None,  # a copy serves
        "shards of a copy": None,
        "shards of none": "ShardsieveError: " + unseen.format("store new.zarr"),
        "own folder": "ShardsieveError: " + unseen.format("run folder runs/half"),
        "store to write": "ShardsieveError: " + unseen.format("store copy.zarr"),
        "store of one": r"StoreFormatError: process 1 \(.*\): no store at alone.zarr; make it",
        "other store": "StoreMismatchError: store must be the same on every process, got '",
        "nobody can write": None,  # nor share it
        "one says more": "StoreMismatchError: b must be the same on every process, got None on ",
        "other rate": r"StoreMismatchError: rate must be the same on every process, got 0.1 on "
        r"process 0 and 1.1 on process 1 \(.*\); give every machine the same command",
        "other run": "StoreMismatchError: epochs must be the same on every process, got 1 on ",
        "bad on one": r"ValueError: process 1 \(.*\): no luck$",
        "bad on all": r"ValueError: no luck$",
        "part of one": r"MissingDependencyError: process 1 \(.*\): scipy is missing$",
        "taken name": r"StoreMismatchError: pseudo-labels 'mine' of .* were made otherwise",
        "own work": "ShardsieveError: " + unseen.format("work work"),
        "own recipe": r"StoreMismatchError: train must be the same on every process, got \{",
    }
    assert said.keys() == wanted.keys()
    for name, line in wanted.items():
        assert (said[name] is None) == (line is None), name
        assert line is None or re.match(line, said[name]), said[name]


def test_an_error_that_is_not_made_of_one_line_is_told_on_all_too():
    with pytest.raises(ValueError, match="Expecting") as told:
        json.loads("{")
    found = machines_of_train._first_refusal([(None, "node0"), (told.value, "node1")])
    assert type(found) is ValueError
    assert str(found).startswith("process 1 (node1): Expecting ")


def test_what_all_refuse_alike_is_told_as_it_is_and_else_with_who_refused():
    first_of, missing = machines_of_train._first_refusal, MissingDependencyError("scipy is missing")
    assert first_of([(None, "a"), (None, "b")]) is None
    assert first_of([(missing, "a"), (missing, "b")]) is missing
    for said in ([(None, "a"), (missing, "b")], [(missing, "a"), (ValueError("no luck"), "b")]):
        found = first_of(said)
        rank = 0 if said[0][0] else 1
        assert type(found) is MissingDependencyError
        assert str(found) == f"process {rank} ({'ab'[rank]}): scipy is missing"


def test_a_file_is_left_in_the_nearest_folder_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, wanted in ((tmp_path, 0), (Path(), 0), (tmp_path / "a/b", 2), (Path("a"), 1)):
        levels, name = machines_of_train._leave(folder)
        assert levels == wanted
        assert (tmp_path / name).is_file()
    assert len(list(tmp_path.glob(".shardsieve-*"))) == 4
    assert machines_of_train._leave(Path("/proc/nothing/here")) is None
    late = threading.Timer(0.2, (tmp_path / "late").touch)
    late.start()
    assert machines_of_train._sees(tmp_path / "late")
    late.join()
    monkeypatch.setattr(machines_of_train, "_SECONDS", 0.01)
    assert not machines_of_train._sees(tmp_path / "never")


def launched_on_two_machines(*arguments):
    """Start a run on two machines of one process each, as the guide says."""
    where = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    launch = [*LAUNCH[:-2], *CPU, "--num_processes", "2", *where, "--machine_rank"]
    return [subprocess.Popen([*launch, str(rank), TOOL, *arguments]) for rank in range(2)]


@pytest.mark.slow
def test_a_machine_that_is_lost_ends_the_other_and_both_go_on_to_the_same_result(tmp_path):
    packed = pack("digits", tmp_path / "d", samples_per_shard=100, test_fraction=0.85)
    store = ss.index(packed[0].pattern, tmp_path / "s.zarr")
    how = ["--store", str(store.path), "--epochs", "5", "--batch-size", "16", "--augment", "crop"]
    how += ["--policy", "infobatch", "--checkpoint-steps", "3", "--track", ""]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    forks.run(TOOL, *how, "--out", whole, ranks=2, machines=2)

    said = tmp_path / "said"
    said.touch()
    first, lost = forks.start(TOOL, *how, "--out", cut, ranks=2, machines=2, err=said)
    forks.wait_for(lambda: any(cut.glob("checkpoint-*.pt")), [first, lost])
    assert forks.kill([lost]) == [-signal.SIGKILL]
    assert forks.ended([first]) == [1]
    lines = [line for line in said.read_text().splitlines() if line.startswith("shardsieve: ")]
    assert len(lines) == 1
    assert "another process of this run has ended" in lines[0]
    assert not (cut / "result.json").exists()

    both = launched_on_two_machines(*how, "--out", str(cut))
    assert [one.wait(300) for one in both] == [0, 0]
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, cut)]
    for name in ("kept", "steps", "samples", "processes", "policy"):
        assert results[0][name] == results[1][name]
    a, b = (torch.load(folder / "model.pt")["weights"] for folder in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [(folder / "history.jsonl").read_text().splitlines() for folder in (whole, cut)]
    assert [json.loads(row)["loss"] for row in rows[0]] == [
        json.loads(row)["loss"] for row in rows[1]
    ]
