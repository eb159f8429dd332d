"""Two real processes under `accelerate launch`."""

import json
import pathlib
import subprocess
import sys

import pytest
from tars import write_shards

import shardsieve as ss

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tail", "prepared"), [("uneven", "prepared"), ("pad", "prepared"), ("uneven", "plain")]
)
def test_two_ranks_read_the_keep_set_in_equally_many_steps(tmp_path, tail, prepared):
    ss.index(write_shards(tmp_path / "d", [9, 0 + 1, 14, 6]), tmp_path / "s.zarr")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += [
        "--config_file",
        str(ROOT / "configs/two_cpu.yaml"),
        str(ROOT / "tests/two_ranks.py"),
    ]
    subprocess.run(
        [*command, str(tmp_path / "s.zarr"), str(tmp_path), tail, prepared], check=True, timeout=200
    )
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["world"] == b["world"] == 2
    assert a["steps"] == b["steps"] == a["promised"] == b["promised"] == 3
    assert len(a["keep"]) == 21
    if tail == "uneven":
        assert sorted(a["seen"] + b["seen"]) == a["keep"]
    else:
        assert set(a["seen"] + b["seen"]) == set(a["keep"])
        assert sorted(a["gathered"]) == sorted(b["gathered"]) == a["keep"]
