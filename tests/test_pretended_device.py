"""Everything that uses a GPU, on a pretended one with the CPU's numbers: see its module."""

import json

import forks
import numpy as np
import pytest
from on_pretended_device import PARTS

IN_A_GROUP = {"ffcv": pytest.mark.xdist_group("ffcv")}


@pytest.mark.slow
@pytest.mark.parametrize("part", [pytest.param(p, marks=IN_A_GROUP.get(p, ())) for p in PARTS])
def test_a_device_makes_what_a_cpu_does_and_no_step_waits_for_it(tmp_path, part):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    forks.run("tests/on_pretended_device.py", part, there)
    wanted, _ = PARTS[part](here)
    with np.load(there / "made.npz") as made:
        assert made.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(made[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert json.loads((there / "waits.json").read_text()) == []
