"""A run's folder belongs to one run, and to one process at a time."""

import subprocess
import sys

import pytest

import shardsieve as ss
from shardsieve.train.runfolder import RunFolder

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
