"""Two real processes under `accelerate launch`."""

import json

import numpy as np
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
    on_two_ranks("tests/two_ranks_policy.py", tmp_path / "s.zarr", tmp_path)
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert a["world"] == b["world"] == 2
    for first, second, keep in zip(a["epochs"], b["epochs"], alone(store), strict=True):
        assert first["keep"] == second["keep"] == keep
        assert sorted(first["seen"] + second["seen"]) == keep
    assert len(a["epochs"][2]["keep"]) < len(store) == len(a["epochs"][5]["keep"])
