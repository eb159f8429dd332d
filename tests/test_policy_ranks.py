"""Policies as real processes: stopped in mid-epoch, and gone on with on another number of ranks."""

import json
from pathlib import Path

import forks
import pytest
from ranks_policies import EPOCHS, POLICIES, STOP, trained
from tars import write_shards

import shardsieve as ss


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return ss.index(write_shards(folder / "d", [25, 40, 14, 26, 31]), folder / "s.zarr")


@pytest.fixture(scope="module")
def undisturbed(store):
    """What one process is given that is never stopped."""
    given = {}
    for name, make in POLICIES.items():
        given[name] = trained(store, make(), Path("none"), stop=False)
    return given


def of_all_ranks(folder, part, world):
    ranks = [json.loads((folder / f"{part}-{rank}.json").read_text()) for rank in range(world)]
    assert [rank["world"] for rank in ranks] == [world] * world
    return [rank["given"] for rank in ranks]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "own"), [(2, 1, []), (1, 2, []), (2, 2, ["own"])], ids=str
)
def test_a_policy_goes_on_elsewhere_as_if_nothing_had_happened(
    store, undisturbed, tmp_path, before, after, own
):
    """With one state that was joined, or with every rank's own one."""
    forks.run("tests/ranks_policies.py", store.path, tmp_path, "stop", *own, ranks=before)
    forks.run("tests/ranks_policies.py", store.path, tmp_path, "rest", *own, ranks=after)
    first = of_all_ranks(tmp_path, "stop", before)
    rest = of_all_ranks(tmp_path, "rest", after)
    for name, epochs in undisturbed.items():
        for epoch, want in epochs.items():
            parts = [rank[name][epoch] for rank in first if epoch in rank[name]]
            parts += [rank[name][epoch] for rank in rest if epoch in rank[name]]
            for part in parts:
                assert part["keep"] == want["keep"]
                assert part.get("weights") == want.get("weights")
                assert part.get("not_finite") == want.get("not_finite")
            assert sorted(i for part in parts for i in part["seen"]) == want["keep"]
            ranks = before * (int(epoch) <= STOP[0]) + after * (int(epoch) >= STOP[0])
            assert len(parts) == ranks
    assert list(rest[0]["ucb"]) == [str(e) for e in range(STOP[0], EPOCHS)]


def test_the_policies_of_this_test_move(undisturbed):
    for name, epochs in undisturbed.items():
        kept = [tuple(epoch["keep"]) for epoch in epochs.values()]
        assert len(set(kept)) > 2, name
    weights = {w for e in undisturbed["infobatch"].values() for w in e.get("weights", [])}
    assert weights == {1.0, 2.0}
