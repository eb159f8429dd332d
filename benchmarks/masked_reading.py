"""Samples per processor second of masked reading: hot cache, no decode, one process.

    python benchmarks/masked_reading.py [--size small|places|imagenet] [--samples 10000]

Ours against webdataset (`select` on the same samples, and the full pass that hides under it), the
peers of `peers.py`, and bare `os.pread` loops over the same ranges: one that drops every buffer at
once, and one that holds a batch, as a loader must. Alternating in one run. A round is an epoch of
one object; the first epoch also loads the keys. Samples have 4-16 kB, or sizes like those of
Places-365 at 256 pixels (28 kB on average) or of ImageNet (110 kB). Writes
`records/masked_reading[_SIZE].json`.
"""

import argparse
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from common import (
    BATCH,
    KEEP,
    alternating,
    batches,
    kept_keys,
    photograph_sized,
    pipeline,
    rates,
    small_images,
    write_record,
    write_shards,
)
from numpy.typing import NDArray

import shardsieve as ss

SIZES: dict[str, Callable[[int], Iterator[bytes]]] = {
    "small": small_images,
    "places": partial(photograph_sized, 28_000),
    "imagenet": partial(photograph_sized, 110_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = SIZES[options.size](options.samples)
        urls = write_shards(Path(folder), images, shards=20, samples=options.samples)
        store = ss.index(urls, Path(folder) / "s.zarr")
        others, notes = peers.opened(urls, store.samples.tolist(), Path(folder))
        rows = [measure(store, urls, keep, options.rounds, others) for keep in KEEP]
    about = {"samples": len(store), "rounds": options.rounds, "peers": notes}
    name = "masked_reading" if options.size == "small" else f"masked_reading_{options.size}"
    write_record(name, about, "kept samples per processor second", rows)


def measure(
    store: ss.Store, urls: list[str], fraction: float, rounds: int, others: dict[str, peers.Peer]
) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    ids = keep.ids()
    wanted, numbers = kept_keys(store, ids), store.rows(ids).tolist()
    pruned, dataset = ss.prune(pipeline(urls), store, keep_set=keep), ss.ShardDataset(store)
    readers: dict[str, Callable[[], int]] = {
        "prune": lambda: count(pruned),
        "ShardDataset": lambda: sum(map(len, batches(dataset, ids))),
        "select": lambda: count(pipeline(urls).select(lambda s: s["__key__"] in wanted)),
        "full pass": lambda: min(count(pipeline(urls)), len(ids)),
        "pread": lambda: bare(store, ids, hold=1),
        "pread, batch held": lambda: bare(store, ids, hold=BATCH),
    }
    for name, peer in others.items():
        readers[name] = partial(read_all, peer.open(), numbers)
    rate: dict[str, Any] = rates(alternating(readers, rounds, len(ids)), len(ids))
    rate |= dict.fromkeys(sorted(set(peers.NAMES) - set(others)))
    ours = rate["ShardDataset"]["median"]
    ratios = {name: round(ours / rate[name]["median"], 2) for name in ("select", "pread")}
    return {"keep": fraction, **rate, **{f"ours / {name}": r for name, r in ratios.items()}}


def read_all(read: Callable[[int], Any], numbers: list[int]) -> int:
    return count(map(read, numbers))


def count(samples: Any) -> int:
    return sum(1 for _ in samples)


def bare(store: ss.Store, ids: NDArray[np.int64], hold: int) -> int:
    """Read the ranges and keep the last `hold` of them."""
    shards, positions = np.divmod(ids, store.rows_per_shard)
    ranges = store.ranges[shards, positions].tolist()
    files = [os.open(url, os.O_RDONLY) for url in store.urls]
    got, last = 0, deque[bytes](maxlen=hold)
    for shard, (offset, length) in zip(shards.tolist(), ranges, strict=True):
        last.append(os.pread(files[shard], length, offset))
        got += 1
    for file in files:
        os.close(file)
    return got


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
