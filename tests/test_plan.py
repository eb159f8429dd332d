import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.epoch import EpochOrder
from shardsieve.plan import Steps, World

counts = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def order_of(counts, seed=0, epoch=0, window=3, start=0):
    order = EpochOrder(np.array(counts, dtype=np.int64), seed, epoch, window)
    return [
        (int(s), int(o))
        for shards, ordinals in order.windows(start)
        for s, o in zip(shards, ordinals, strict=True)
    ]


@given(counts, st.integers(0, 9), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_holds_every_kept_sample_once(counts, seed, epoch, window):
    want = [(s, o) for s, n in enumerate(counts) for o in range(n)]
    got = order_of(counts, seed, epoch, window)
    assert sorted(got) == want
    if window == 0:
        assert got == want


@given(counts, st.integers(0, 9), st.integers(0, 5), st.data())
def test_an_order_can_be_entered_anywhere(counts, seed, window, data):
    whole = order_of(counts, seed, 1, window)
    start = data.draw(st.integers(0, len(whole)))
    assert order_of(counts, seed, 1, window, start) == whole[start:]


def test_a_window_mixes_only_its_own_shards():
    shards = [s for s, _ in order_of([5] * 9, window=3)]
    groups = [set(shards[i : i + 15]) for i in range(0, 45, 15)]
    assert [len(g) for g in groups] == [3, 3, 3]
    assert len(set.union(*groups)) == 9


def test_the_order_is_pinned():
    """Runs resume across releases, so a new order is a breaking change: announce it."""
    assert order_of([2, 1, 2], seed=1, epoch=2, window=2) == [
        (2, 1),
        (1, 0),
        (2, 0),
        (0, 1),
        (0, 0),
    ]


def test_planning_needs_no_array_of_all_samples():
    order = EpochOrder(np.full(100_000, 10_000, dtype=np.int64), 0, 0, 4)
    shards, _ = next(order.windows(start=999_970_000))
    assert len(shards) == 30_000


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 7), st.sampled_from(["pad", "drop"]))
def test_pad_covers_all_and_drop_loses_less_than_a_step(total, batch, world, tail):
    steps = Steps(total, batch, world, tail)
    spans = [steps.share(t, r) for t in range(len(steps)) for r in range(world)]
    places = [p for a, b in spans for p in range(a, b)]
    assert places == list(range(len(places)))
    assert len(places) == (total if tail == "pad" else total - total % (batch * world))
    assert {steps.rank_length(r) for r in range(world)} == {len(steps) * batch}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 7))
def test_uneven_gives_each_sample_once_and_no_rank_an_empty_step(total, batch, world):
    steps = Steps(total, batch, world)
    seen, repeats = [], 0
    for step in range(len(steps)):
        shares = [steps.share(step, rank) for rank in range(world)]
        sizes = [steps.size(step, rank) for rank in range(world)]
        for start, stop in shares:
            seen += range(start, stop)
        repeats += sum(sizes) - sum(stop - start for start, stop in shares)
        assert 1 <= min(sizes) <= max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
    assert seen == list(range(total))
    lends = batch > 1 and total >= world
    assert repeats == (0 if lends else -total % world)
    for rank in range(world):
        handed = sum(steps.size(step, rank) for step in range(len(steps) - 1))
        assert steps.rank_length(rank) >= handed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Steps(5, 0, 1), "batch_size must be at least 1"),
        (lambda: Steps(5, 1, 1, "even"), "tail must be one of"),
        (lambda: World(2, 2), r"rank must lie in \[0, 2\), got 2"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
