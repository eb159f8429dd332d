import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.epoch import EpochOrder, default_window
from shardsieve.order import permutation, shuffled_places

counts = st.lists(st.integers(0, 9), min_size=1, max_size=12)
shuffles = st.sampled_from(["window", "global", "none"])


@st.composite
def orders(draw):
    kept = draw(counts)
    groups = draw(st.integers(1, len(kept)))
    how = {"shuffle": draw(shuffles), "groups": groups, "block": draw(st.integers(1, 30))}
    window, seed, epoch = draw(st.integers(0, 5)), draw(st.integers(0, 9)), draw(st.integers(0, 3))
    return EpochOrder(np.array(kept, dtype=np.int64), seed, epoch, window, **how)


def places(order, start=0):
    return [
        (int(s), int(o))
        for shards, ordinals in order.windows(start)
        for s, o in zip(shards, ordinals, strict=True)
    ]


@given(orders())
def test_an_epoch_holds_every_kept_sample_once(order):
    want = [(s, o) for s, n in enumerate(order.counts) for o in range(n)]
    got = places(order)
    assert sorted(got) == want
    if (order.window == 0 or order.shuffle == "none") and order.groups == 1:
        assert got == want


@given(orders(), st.data())
def test_an_order_can_be_entered_anywhere(order, data):
    whole = places(order)
    start = data.draw(st.integers(0, len(whole)))
    assert places(order, start) == whole[start:]


@given(orders())
def test_every_step_takes_from_each_group_its_share(order):
    whole, total = places(order), int(order.counts.sum())
    group = np.repeat(
        np.arange(order.groups),
        np.diff(np.arange(order.groups + 1) * len(order.counts) // order.groups),
    )
    sizes = np.bincount(group, weights=order.counts, minlength=order.groups)
    for step in range(0, total, order.block):
        done = min(step + order.block, total)
        mine = [int(group[s]) for s, _ in whole[step:done]]
        assert mine == sorted(mine) or order.groups == 1
        taken = np.bincount([group[s] for s, _ in whole[:done]], minlength=order.groups)
        assert (np.abs(taken - sizes * done / max(total, 1)) < 2).all()


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_a_shuffle_made_place_by_place_is_a_permutation(n, seed, epoch):
    whole = shuffled_places(np.arange(n), n, seed, epoch)
    assert sorted(whole.tolist()) == list(range(n))
    half = np.arange(n)[::2]
    assert (shuffled_places(half, n, seed, epoch) == whole[half]).all()


def test_every_order_of_four_is_as_likely():
    found = [tuple(shuffled_places(np.arange(4), 4, key).tolist()) for key in range(2400)]
    _, times = np.unique(found, axis=0, return_counts=True)
    assert len(times) == 24
    # Chi squared with 23 degrees of freedom lies below 50 but for once in 1,000 tries.
    assert ((times - 100) ** 2 / 100).sum() < 50


def test_a_window_mixes_only_its_own_shards():
    order = EpochOrder(np.full(9, 5), 0, 0, 3)
    shards = [s for s, _ in places(order)]
    groups = [set(shards[i : i + 15]) for i in range(0, 45, 15)]
    assert [len(g) for g in groups] == [3, 3, 3]
    assert len(set.union(*groups)) == 9


def test_shards_without_kept_samples_take_no_place_in_a_window():
    order = EpochOrder(np.array([4, 0, 0, 4, 0, 0, 0, 4]), 0, 0, 3)
    assert next(order.windows())[0].tolist() != [s for s, _ in sorted(places(order))]
    assert len(next(order.windows())[0]) == 12


def test_class_sorted_shards_mix_in_a_global_shuffle():
    counts = np.full(100, 50)
    by_window, everywhere = (
        [len({s for s, _ in places(order)[i : i + 64]}) for i in range(0, 640, 64)]
        for order in (EpochOrder(counts, 0, 0, 4), EpochOrder(counts, 0, 0, shuffle="global"))
    )
    assert max(by_window) <= 8
    # 64 draws from 100 classes meet 47.4 of them on average.
    assert 44 < np.mean(everywhere) < 51


def test_ranks_mostly_read_their_own_groups_shards():
    order = EpochOrder(np.array([30, 34, 28, 31] * 8), 0, 0, groups=4, block=64)
    got = places(order)
    own = [s // 8 == place % 64 // 16 for place, (s, _) in enumerate(got)]
    assert np.mean(own) > 0.95


def test_the_orders_are_pinned():
    """Runs resume across releases, so a new order is a breaking change: announce it."""
    kept = np.array([2, 1, 2])
    assert places(EpochOrder(kept, 1, 2, 2)) == [(2, 1), (1, 0), (2, 0), (0, 1), (0, 0)]
    assert places(EpochOrder(kept, 1, 2, shuffle="global")) == [
        (0, 0),
        (2, 0),
        (0, 1),
        (1, 0),
        (2, 1),
    ]
    grouped = [(0, 0), (2, 1), (0, 1), (1, 0), (2, 0)]
    assert places(EpochOrder(kept, 1, 2, 2, groups=2, block=2)) == grouped
    # Steps of two samples from five groups: what is left over goes to one here, another there.
    uneven = EpochOrder(np.array([1, 1, 5, 2, 5, 0]), 1, 2, 2, groups=5, block=2)
    wanted = [23, 41, 22, 30, 0, 44, 20, 42, 10, 43, 21, 31, 24, 40]
    assert [10 * shard + ordinal for shard, ordinal in places(uneven)] == wanted
    assert permutation(5, -1).tolist() == [3, 1, 2, 0, 4]


def test_planning_needs_no_array_of_all_samples():
    counts = np.full(100_000, 10_000, dtype=np.int64)
    shards, _ = next(EpochOrder(counts, 0, 0, 4).windows(start=999_970_000))
    assert len(shards) == 30_000
    shards, _ = next(EpochOrder(counts, 0, 0, shuffle="global").windows(start=999_990_000))
    assert len(shards) == 10_000
    grouped = EpochOrder(counts, 0, 0, 4, groups=128, block=262_144)
    shards, _ = next(grouped.windows(start=262_144 * 3000 + 7))
    assert len(shards) == 262_137


def test_the_default_window_spans_more_shards_the_fewer_samples_they_keep():
    assert [default_window(1000, kept) for kept in (1000, 500, 30, 0)] == [16, 32, 534, 16000]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"shuffle": "all"}, "shuffle must be one of window, global, none, got 'all'"),
        ({"window": -1}, "window must be at least 0"),
        ({"groups": 0}, "groups must lie between 1 and the 3 shards, got 0"),
        ({"groups": 4}, "groups must lie between 1 and the 3 shards, got 4"),
        ({"groups": 2}, "block must be at least 1"),
    ],
)
def test_bad_settings_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        EpochOrder(np.array([1, 2, 3]), 0, 0, **how)
