"""A run's folder belongs to one run, and to one process at a time."""

import errno
import fcntl
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from tars import write_tar

import shardsieve as ss
from shardsieve.io.replacing import remove_left, replaced, write_whole
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import load_encoder
from shardsieve.train.launch import make_accelerator
from shardsieve.train.machines import enter_run
from shardsieve.train.nets import light
from shardsieve.train.runfolder import RunFolder
from shardsieve.train.subset import train_subset

HOLDING = """
import sys
from shardsieve.train.runfolder import RunFolder
folder = RunFolder(sys.argv[1])
folder.claim({"kind": "train"})
print("claimed", flush=True)
sys.stdin.read()
"""


def test_two_launches_do_not_train_in_one_folder(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / "run")], **pipes)
    try:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(ss.ShardsieveError, match="another process trains in run folder"):
            RunFolder(tmp_path / "run").claim({"kind": "train"})
    finally:
        other.kill()
        other.communicate()
    RunFolder(tmp_path / "run").claim({"kind": "train"})


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ss.ShardsieveError, match="is in use"):
        RunFolder(tmp_path).claim({"kind": "train"})
    with pytest.raises(ss.ShardsieveError, match=r"cannot make run folder .*; choose another one"):
        RunFolder(tmp_path / "thesis.tex" / "run").claim({"kind": "train"})


def test_a_folder_that_cannot_be_written_or_is_gone_is_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "nowhere/.lock")
    message = r"run folder .*run: No such file or directory; see that it is there and writable"
    with pytest.raises(ss.ShardsieveError, match=message):
        RunFolder(tmp_path / "run").claim({"kind": "train"})
    run = RunFolder(tmp_path / "other/run")
    run.claim({"kind": "train"})
    run.path.rename(tmp_path / "moved")
    with pytest.raises(ss.ShardsieveError, match=message):
        run.save_checkpoint({"steps": 10}, 10)


@pytest.fixture
def full_disk():
    """Lets no file grow beyond 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_takes_no_checkpoint(tmp_path, full_disk):
    run, large = RunFolder(tmp_path), {"weights": torch.zeros(100_000)}
    run.claim({"kind": "train"})
    run.save_checkpoint({"steps": 10}, 10)
    message = r"cannot write to run folder .*: File too large; free some space"
    with pytest.raises(ss.ShardsieveError, match=message):
        run.save_checkpoint(large, 20)
    with pytest.raises(ss.ShardsieveError, match=message):
        run.save("model.pt", large)
    with pytest.raises(ss.ShardsieveError, match=message):
        run.write_json("result.json", {"note": "x" * 100_000})
    assert run.need(run.newest_checkpoint()) == {"steps": 10}
    assert not list(tmp_path.glob(".*.tmp-*"))


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "table"])
def test_a_damaged_network_is_named(tmp_path, damage):
    """It was a traceback, and a byte that changed another network."""
    run = RunFolder(tmp_path)
    run.save("model.pt", {"weights": torch.zeros(1000)})
    path, whole = tmp_path / "model.pt", (tmp_path / "model.pt").read_bytes()
    at = whole.index(bytes(2000)) + 999
    changed = whole[:at] + b"\1" + whole[at + 1 :]
    table = whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:]  # of the parts, behind them
    path.write_bytes({"empty": b"", "cut": whole[:at], "changed": changed, "table": table}[damage])
    with pytest.raises(ss.ShardsieveError, match=r"model\.pt is damaged; delete .* to train anew"):
        run.load("model.pt")


def test_a_network_of_others_calls_nothing_with_a_text(tmp_path):
    """A file of tensors and plain values ran any command of its maker's choice."""
    run, called = RunFolder(tmp_path), tmp_path / "called"
    made = {"spec": "light", "num_classes": 3, "size": 8, "channels": 3}
    run.save("model.pt", {**made, "weights": light(3, 3).state_dict()})
    assert load_encoder(str(tmp_path)).num_classes == 3
    evil = {"spec": "os:system", "num_classes": f"touch {called}", "weights": {}}
    run.save("model-0001.pt", {**made, **evil})
    with pytest.raises(ss.ShardsieveError, match=r"model-0001\.pt holds no network of a run"):
        load_encoder(str(tmp_path))
    assert not called.exists()


def test_a_file_that_is_no_network_of_a_run_is_one_line(tmp_path):
    run, weights = RunFolder(tmp_path), light(3, 3).state_dict()
    run.save("mine.pt", weights)
    with pytest.raises(ss.ShardsieveError, match=r"mine\.pt holds no .*; give .* as --weights"):
        load_encoder(str(tmp_path / "mine.pt"))
    made = {"spec": "light", "num_classes": 4, "size": 8, "channels": 3}
    run.save("model.pt", {**made, "weights": weights})
    with pytest.raises(ss.ShardsieveError, match=r"checkpoint .*model\.pt does not fit the model"):
        load_encoder(str(tmp_path))


def test_a_checkpoint_that_cannot_be_deleted_is_one_line(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / f"checkpoint-000000001-{'0' * 16}.pt").mkdir()
    for steps, call in ((2, lambda: run.save_checkpoint({}, 3)), (3, run.forget_checkpoints)):
        (tmp_path / f"checkpoint-00000000{steps}-{'0' * 16}.pt").touch()
        with pytest.raises(ss.ShardsieveError, match=r"cannot write to run folder .*directory"):
            call()


def test_what_a_killed_process_left_in_a_run_folder_is_removed(tmp_path):
    RunFolder(tmp_path).claim({"kind": "train"})
    for name in ("checkpoint", "model.pt", "result.json"):
        (tmp_path / f".{name}.tmp-123").write_bytes(b"cut short")
    RunFolder(tmp_path).claim({"kind": "train"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_a_process_killed_as_it_claimed_a_folder_has_not_taken_it(tmp_path):
    for name in (".lock", ".run.json.tmp-123"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim({"kind": "train"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_checkpoints_of_a_finished_run_go_though_it_was_killed_before(tmp_path):
    run, identity = RunFolder(tmp_path), {"kind": "train"}
    run.claim(identity)
    run.save_checkpoint({"steps": 10}, 10)
    assert enter_run(make_accelerator(), run, identity) is None
    assert run.newest_checkpoint() is not None
    run.write_json("result.json", {"steps": 10})
    assert enter_run(make_accelerator(), run, identity) == {"steps": 10}
    assert run.newest_checkpoint() is None


def test_files_are_on_disk_before_they_have_their_names(tmp_path, monkeypatch):
    """A power cut leaves the file of before or the whole new one."""
    done, fsync, replace = [], os.fsync, Path.replace

    def noted(file):
        done.append(os.fstat(file).st_size)
        fsync(file)

    def renamed(path, target):
        done.append(target)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", renamed)
    RunFolder(tmp_path).write_json("result.json", {"steps": 1})
    RunFolder(tmp_path).save_checkpoint({"weights": torch.zeros(1000)}, 1)
    write_whole(tmp_path / "report.html", b"x" * 10_000)
    assert [path.name[:10] for path in done[1::2]] == ["result.jso", "checkpoint", "report.htm"]
    assert done[::2] == [path.stat().st_size for path in done[1::2]]


def test_a_file_that_is_written_twice_at_once_is_one_of_both(tmp_path):
    """By threads, or by containers: the processes of all of them may have one number."""
    path = tmp_path / "report[1].html"
    (tmp_path / f".{path.name}.tmp-1").write_bytes(b"left by a killed one")
    other = threading.Thread(target=write_whole, args=(path, b"second"))
    with replaced(path) as file:
        file.write(b"first")
        other.start()
        other.join(5)
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_at_the_last_byte_leaves_the_file_of_before(tmp_path, full_disk):
    path = tmp_path / "s.tar"
    path.write_bytes(b"before")

    def fills_the_disk():
        with replaced(path) as file:
            file.write(bytes(50_000))
            file.write(b"last")

    with pytest.raises(OSError, match="File too large"):
        fills_the_disk()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_written_into_new_folders_and_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    path = tmp_path / "some" / "where" / "report.html"
    write_whole(path, b"first")
    (path.parent / ".report.html.tmp-1").write_bytes(b"of a process that may still write")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert sorted(one.name for one in path.parent.iterdir()) == [".report.html.tmp-1", path.name]
    remove_left(path.parent, "*", alone=True)
    assert list(path.parent.iterdir()) == [path]


def images(folder):
    """A tar of 8 images, with labels in `a` and others in `b`."""
    pixels = io.BytesIO()
    Image.new("L", (8, 8)).save(pixels, "PNG")
    members = [(f"{i}.png", pixels.getvalue()) for i in range(8)]
    members += [(f"{i}.a", b"%d" % (i % 2)) for i in range(8)]
    members += [(f"{i}.b", b"%d" % (i // 4)) for i in range(8)]
    return write_tar(folder / "s.tar", sorted(members))


class OnAFullDisk(GeneralTracker):
    """Ends as TensorBoard's does: no event fits there any more."""

    name, requires_logging_directory, tracker = "full", False, None

    def __init__(self, full_at):
        super().__init__()
        self.full_at = full_at

    def _write(self, at):
        if at == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def store_init_configuration(self, values):
        self._write("start")

    def log(self, values, step=None, **more):
        self._write("log")

    def finish(self):
        self._write("end")


@pytest.mark.parametrize("full_at", ["start", "log", "end"])
def test_a_tracker_on_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, full_at):
    store = ss.index(images(tmp_path), tmp_path / "s.zarr", label_member="a")
    keep, config = ss.select(store, keep_fraction=1.0), TrainConfig(epochs=1, batch_size=8)
    how = {"folder": tmp_path / "run", "accelerator": make_accelerator()}
    how["accelerator"].log_with = [OnAFullDisk(full_at)]
    with pytest.raises(ss.ShardsieveError, match=r"run folder .*No space left .*; free some space"):
        train_subset(store, keep, config, **how)
    how["accelerator"] = make_accelerator()
    assert train_subset(store, keep, config, **how)["epochs"] == 1


def test_a_run_on_other_labels_of_the_same_shards_is_another_one(tmp_path):
    tar = images(tmp_path)
    one, other = (ss.index(tar, tmp_path / f"{end}.zarr", label_member=end) for end in "ab")
    assert one.fingerprint == other.fingerprint
    how = {"folder": tmp_path / "run", "accelerator": make_accelerator()}
    keep, config = ss.select(one, keep_fraction=1.0), TrainConfig(epochs=1, batch_size=4)
    done = train_subset(one, keep, config, **how, test=one)
    with pytest.raises(ss.ShardsieveError, match="another run: labels_digest is"):
        train_subset(other, keep, config, **how, test=other)
    with pytest.raises(ss.ShardsieveError, match="another run: test_labels_digest is"):
        train_subset(one, keep, config, **how, test=other)
    # What an earlier release wrote does not name them.
    told = json.loads((tmp_path / "run/run.json").read_text())
    told = {name: value for name, value in told.items() if "labels_digest" not in name}
    (tmp_path / "run/run.json").write_text(json.dumps(told))
    assert train_subset(other, keep, config, **how, test=one) == done
