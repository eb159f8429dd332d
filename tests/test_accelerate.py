"""Two real processes under `accelerate launch`."""

import json

import pytest
from launching import on_two_ranks
from tars import write_shards

import shardsieve as ss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tail", "prepared"), [("uneven", "prepared"), ("pad", "prepared"), ("uneven", "plain")]
)
def test_two_ranks_read_the_keep_set_in_equally_many_steps(tmp_path, tail, prepared):
    ss.index(write_shards(tmp_path / "d", [9, 0 + 1, 14, 6]), tmp_path / "s.zarr")
    on_two_ranks("tests/two_ranks.py", tmp_path / "s.zarr", tmp_path, tail, prepared)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["world"] == b["world"] == 2
    assert a["steps"] == b["steps"] == a["promised"] == b["promised"] == 3
    assert len(a["keep"]) == 21
    if tail == "uneven":
        assert sorted(a["seen"] + b["seen"]) == a["keep"]
    else:
        assert set(a["seen"] + b["seen"]) == set(a["keep"])
        assert sorted(a["gathered"]) == sorted(b["gathered"]) == a["keep"]
