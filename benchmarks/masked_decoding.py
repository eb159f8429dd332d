"""Samples per processor second of masked reading with JPEG decoding: hot cache, one process.

    python benchmarks/masked_decoding.py --images FOLDER [--samples 1000] [--rounds 3]

FOLDER's photographs, repeated under fresh keys until there are enough, decoded by simplejpeg for
every reader. Each holds a batch of 64 decoded pictures, as training does. Alternating in one run.
Writes `records/masked_decoding.json`.
"""

import argparse
import os
import statistics
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from common import (
    KEEP,
    alternating,
    batches,
    kept_keys,
    photographs,
    pipeline,
    rates,
    write_record,
    write_shards,
)
from simplejpeg import decode_jpeg

import shardsieve as ss

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = photographs(options.images, options.samples)
        urls = write_shards(Path(folder), images, shards=5, samples=options.samples)
        store = ss.index(urls, Path(folder) / "s.zarr")
        others, notes = peers.opened(urls, store.samples.tolist(), Path(folder))
        rows = [measure(store, urls, keep, options.rounds, others) for keep in KEEP]
        size = statistics.mean(store.ranges[store.ranges[..., 1] > 0][:, 1].tolist())
    about = {"samples": options.samples, "mean bytes": round(size), "rounds": options.rounds}
    unit = "kept samples per processor second, decoded"
    write_record("masked_decoding", {**about, "peers": notes}, unit, rows)


def measure(
    store: ss.Store, urls: list[str], fraction: float, rounds: int, others: dict[str, peers.Peer]
) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    ids = keep.ids()
    wanted, numbers = kept_keys(store, ids), store.rows(ids).tolist()
    pruned = ss.prune(pipeline(urls), store, keep_set=keep)
    dataset = ss.ShardDataset(store, decode=lambda sample: decode_jpeg(sample["jpg"]))
    readers: dict[str, Callable[[], int]] = {
        "prune": lambda: decoded(sample["jpg"] for sample in pruned),
        "ShardDataset": lambda: sum(map(len, batches(dataset, ids, BATCH))),
        "select": lambda: decoded(
            s["jpg"] for s in pipeline(urls).select(lambda s: s["__key__"] in wanted)
        ),
        "pread": lambda: decoded(bare(store, ids)),
    }
    for name, peer in others.items():
        readers[name] = partial(through_peer, peer, peer.open(), numbers)
    rate: dict[str, Any] = rates(alternating(readers, rounds, len(ids)), len(ids))
    rate |= dict.fromkeys(name for name in peers.NAMES if name not in others)
    ours = rate["ShardDataset"]["median"]
    ratios = {
        f"ours / {name}": round(ours / rate[name]["median"], 2) for name in ("select", "pread")
    }
    return {"keep": fraction, **rate, **ratios}


def through_peer(peer: peers.Peer, read: Callable[[int], Any], numbers: list[int]) -> int:
    return decoded(peer.image(read(number)) for number in numbers)


def decoded(images: Iterable[bytes]) -> int:
    """Decode the pictures and hold the last batch of them, as training does."""
    number, last = 0, deque[Any](maxlen=BATCH)
    for image in images:
        last.append(decode_jpeg(image))
        number += 1
    return number


def bare(store: ss.Store, ids: np.ndarray[Any, Any]) -> Iterable[bytes]:
    """Give the pictures by `os.pread` and where they lie, as if that were known."""
    shards, positions = np.divmod(ids, store.rows_per_shard)
    ranges = store.ranges[shards, positions].tolist()
    files = [os.open(url, os.O_RDONLY) for url in store.urls]
    for shard, (offset, length) in zip(shards.tolist(), ranges, strict=True):
        yield os.pread(files[shard], length - 1536, offset + 512)
    for file in files:
        os.close(file)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
