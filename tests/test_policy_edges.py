"""What policies do at the edges of their settings and schedules."""

import math

import numpy as np
import pytest
from tars import write_shards

import shardsieve as ss


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edges")
    made = ss.index(write_shards(folder / "d", [30, 20]), folder / "s.zarr")
    made.put_score("up", range(50))
    return made


@pytest.mark.parametrize("make", [ss.EpsilonGreedy, ss.UCB])
def test_the_last_loss_alone_keeps_what_is_not_finite_again_and_again(store, make):
    policy = make(0.2, period=1, alpha=1.0)
    policy.bind(store)
    losses = np.linspace(1, 2, 50)
    for epoch in range(3):
        policy.update(store.ids(), np.where(np.arange(50) == 7, math.nan, losses))
        assert 7 in policy.choose(epoch).rows
    policy.update(store.ids(), losses)
    np.testing.assert_allclose(policy.learned(), losses)


@pytest.mark.parametrize(("first", "last"), [(0.08, 0.01), (0.03, 0.29), (0.05, 0.21)])
def test_the_last_epoch_keeps_what_its_fraction_keeps(store, first, last):
    policy = ss.AnnealedScore("up", first, last, 4)
    policy.bind(store)
    assert policy.choose(3).rows.tolist() == ss.keep_top(np.arange(50), last).tolist()
