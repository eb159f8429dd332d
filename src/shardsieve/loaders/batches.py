"""One batch's reads: which ranges of which shards, in file order."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardsieve.store.store import Store


class BatchPlan(NamedTuple):
    """The reads of one batch, in order of shard and first byte.

    Attributes:
        ids: Sample ids.
        rows: The place of each in the batch as it was asked for.
        places: int64 (b,), position of each within its shard.
        ranges: (offset, length) of each.
        runs: (shard, begin, end): the part of the above that lies in one shard.
    """

    ids: list[int]
    rows: list[int]
    places: NDArray[np.int64]
    ranges: list[tuple[int, int]]
    runs: list[tuple[int, int, int]]


def plan_batch(store: Store, ranges: NDArray[np.int64], wanted: NDArray[np.int64]) -> BatchPlan:
    """Return the reads of these sample ids, int64 (b,) in any order.

    Raises:
        IndexError: If an id belongs to no sample, naming the first.
    """
    shards, places = np.divmod(wanted, store.rows_per_shard)
    outside = (wanted < 0) | (shards >= store.num_shards)
    outside |= places >= store.samples[np.where(outside, 0, shards)]
    if outside.any():
        raise _unknown(store, wanted[outside])
    # What lies wholly in the tables of a `.beton` has no place: nothing is read of it.
    found = np.maximum(ranges[shards, places], 0)
    # Rows of a `.beton` that several processes wrote do not lie one behind the other.
    order = np.lexsort((wanted, found[:, 0], shards))
    ids, shards, places, found = wanted[order], shards[order], places[order], found[order]
    offsets, lengths = found.T.tolist()
    cuts = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(ids)]
    runs = [(int(shards[begin]), begin, end) for begin, end in pairwise(cuts) if begin < end]
    pairs = list(zip(offsets, lengths, strict=True))
    return BatchPlan(ids.tolist(), order.tolist(), places, pairs, runs)


def _unknown(store: Store, ids: NDArray[np.int64]) -> IndexError:
    return IndexError(
        f"sample id must name a sample of {store.path}, got {ids.min()}; give the loader "
        "sampler=PrunedShardSampler(store): ids are those of store.ids(), with gaps between shards"
    )
