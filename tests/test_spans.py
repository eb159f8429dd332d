"""The range planner against a slow reference, and the laws it must keep."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tars import write_shards
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.io.joined import JoinedReader
from shardsieve.io.spans import Storage, plan_spans
from shardsieve.loaders.batches import plan_batch


def reference(ranges, storage):
    """Join the two neighbours with the smallest gap, again and again, as long as it is allowed.

    Then begin a read anew wherever one more range would make it too long.
    """
    reads = [[offset, offset + length] for offset, length in sorted(ranges)]
    wanted = sum(length for _, length in ranges)
    added = 0
    while len(reads) > 1:
        gaps = [right[0] - left[1] for left, right in pairwise(reads)]
        place = int(np.argmin(gaps))
        if gaps[place] > storage.gap or added + gaps[place] > int(
            (storage.amplification - 1) * wanted
        ):
            break
        added += gaps[place]
        reads[place : place + 2] = [[reads[place][0], reads[place + 1][1]]]
    cut = []
    for start, stop in reads:
        inside = [(at, at + length) for at, length in sorted(ranges) if start <= at < stop]
        cut.append([*inside[0]])
        for begin, end in inside[1:]:
            if end - cut[-1][0] > storage.largest:
                cut.append([begin, end])
            cut[-1][1] = end
    return cut


@st.composite
def wanted(draw):
    gaps = st.one_of(st.just(0), st.integers(0, 60))
    sizes = draw(st.lists(st.tuples(gaps, st.integers(1, 40)), max_size=25))
    ranges, at = [], 0
    for gap, length in sizes:
        ranges.append((at + gap, length))
        at += gap + length
    return draw(st.permutations(ranges))


storages = st.builds(
    Storage,
    latency=st.floats(0, 1),
    bandwidth=st.floats(1, 100),
    in_flight=st.integers(1, 4),
    amplification=st.floats(1, 4),
    largest=st.one_of(st.just(8 << 20), st.integers(1, 200)),
)


def planned(ranges, storage):
    table = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    return plan_spans(table[:, 0], table[:, 1], storage)


@given(wanted(), storages)
def test_reads_are_those_of_the_slow_reference(ranges, storage):
    spans = planned(ranges, storage)
    assert np.stack([spans.start, spans.stop], 1).tolist() == reference(ranges, storage)


@given(wanted(), storages)
def test_every_sample_is_in_its_read_and_the_cap_holds(ranges, storage):
    spans = planned(ranges, storage)
    for (offset, length), number in zip(ranges, spans.of.tolist(), strict=True):
        assert spans.start[number] <= offset
        assert offset + length <= spans.stop[number]
    kept = sum(length for _, length in ranges)
    assert spans.nbytes <= storage.amplification * kept
    assert (spans.start[1:] >= spans.stop[:-1]).all()
    for start, stop in zip(spans.start.tolist(), spans.stop.tolist(), strict=True):
        inside = sum(start <= offset < stop for offset, _ in ranges)
        assert stop - start <= storage.largest or inside == 1


def test_nearly_everything_becomes_one_read():
    ranges = [(place * 100, 100) for place in range(1000) if place % 10]
    spans = planned(ranges, Storage(latency=0.03, bandwidth=90e6, in_flight=32))
    assert (len(spans.start), spans.nbytes) == (1, 99_900)
    assert len(planned(ranges, Storage(0, 1, 1)).start) == 100
    cut = planned(ranges[:4], Storage(0, 1, 1, largest=200))
    assert np.stack([cut.start, cut.stop], 1).tolist() == [[100, 300], [300, 500]]


def test_samples_that_overlap_are_read_together():
    spans = planned([(0, 100), (20, 10), (50, 100)], Storage(0, 1, 1, largest=60))
    assert np.stack([spans.start, spans.stop], 1).tolist() == [[0, 150]]


@pytest.mark.parametrize("wrong", [{"amplification": 0.9}, {"in_flight": 0}])
def test_bad_storages_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
        Storage(**{"latency": 0, "bandwidth": 1, "in_flight": 1, **wrong})


def test_a_read_that_serves_ranges_in_any_order_counts_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    reader = JoinedReader(Storage(0, 1, 1))
    # 0-10 and 10-20 are one read, 50-60 is another.
    ranges = [(10, 10), (50, 10), (0, 10)]
    found = list(reader.read_many(str(tmp_path / "a"), ranges))
    assert found == [bytes(range(at, at + size)) for at, size in ranges]
    assert (reader.counts.kept, reader.counts.read, reader.counts.requests) == (30, 30, 2)


def test_a_batch_is_read_in_file_order_where_rows_lie_otherwise(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [6, 5]), tmp_path / "s.zarr")
    ranges = store.ranges.copy()
    ranges[0, :6] = ranges[0, [3, 1, 5, 0, 2, 4]]
    second = store.rows_per_shard
    ids = np.array([second + 1, 2, 0, 5, 4, second])
    plan = plan_batch(store, ranges, ids)
    assert plan.runs == [(0, 0, 4), (1, 4, 6)]
    for _, begin, end in plan.runs:
        assert plan.ranges[begin:end] == sorted(plan.ranges[begin:end])
    assert plan.ids == ids[plan.rows].tolist()
    shards, places = np.divmod(plan.ids, store.rows_per_shard)
    assert plan.places.tolist() == places.tolist()
    assert plan.ranges == [tuple(one) for one in ranges[shards, places].tolist()]


class Hints:
    def __getitems__(self, ids):
        return [list(map(int, ids)), getattr(ids[0], "ahead", None)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_worker_is_told_of_the_batch_that_it_is_asked_for_next(tmp_path, workers):
    store = ss.index(write_shards(tmp_path / "d", [9, 1, 14, 6]), tmp_path / "s.zarr")
    how = {"sampler": ss.PrunedShardSampler(store), "num_workers": workers, "collate_fn": list}
    ids, ahead = zip(*DataLoader(Hints(), 4, **how), strict=True)
    after = max(workers, 1)
    assert [hint[hint >= 0].tolist() for hint in ahead[:-after]] == list(ids[after:])
    assert ahead[-after:] == (None,) * after
