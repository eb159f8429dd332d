"""Bytes that leave the disk for a masked pass over a cold data set, over the bytes of kept samples.

    python benchmarks/cold_bytes.py [--gigabytes 1] [--folder DIR]

Every reader's files leave the page cache (`POSIX_FADV_DONTNEED`) before it reads one epoch in the
sampler's order: ours, the same in batches of 256 with plain `os.pread` (the kernel's own
readahead), webdataset's `select`, and the peers of `peers.py` sample by sample. Device bytes are
`read_bytes` of `/proc/self/io`; DIR must lie on a disk. Writes `records/cold_bytes.json`.
"""

import argparse
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
from common import (
    BATCH,
    batches,
    imagenet_sized,
    kept_keys,
    pipeline,
    write_record,
    write_shards,
)

import shardsieve as ss

KEEP = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = imagenet_sized(options.gigabytes)
        samples = int(options.gigabytes * 1e9 / 110_000)
        urls = write_shards(Path(folder), images, shards=10, samples=samples)
        store = ss.index(urls, Path(folder) / "s.zarr")
        others, notes = peers.opened(urls, store.samples.tolist(), Path(folder))
        os.sync()
        rows = [measure(store, urls, fraction, others) for fraction in KEEP]
    about = {"samples": len(store), "gigabytes": options.gigabytes, "peers": notes}
    write_record("cold_bytes", about, "device bytes over kept bytes; seconds", rows)


def measure(
    store: ss.Store, urls: list[str], fraction: float, others: dict[str, peers.Peer]
) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    ids = np.array(list(ss.PrunedShardSampler(store, keep_set=keep)))
    wanted, numbers, kept = kept_keys(store, ids), store.rows(ids).tolist(), keep.nbytes(store)
    readers: dict[str, tuple[Callable[[], Any], list[str]]] = {
        "ShardDataset": (lambda: used(batches(ss.ShardDataset(store), ids)), urls),
        "pread": (lambda: bare(store, ids.tolist()), urls),
        "select": (lambda: used(pipeline(urls).select(lambda s: s["__key__"] in wanted)), urls),
    }
    for name, peer in others.items():
        readers[name] = (partial(touched, peer, numbers), peer.files)
    row: dict[str, Any] = {"keep": fraction}
    for name, (read, files) in readers.items():
        gc.collect()  # what a reader still maps does not leave the page cache
        forget(files)
        before, start = device_bytes(), time.perf_counter()
        read()
        seconds = time.perf_counter() - start
        row[name] = round((device_bytes() - before) / kept, 3)
        row[f"{name}, s"] = round(seconds, 2)
    return row


def touched(peer: peers.Peer, numbers: list[int]) -> None:
    """Read samples and use every page of their pictures, as some give views of mapped files."""
    read = peer.open()
    for number in numbers:
        sum(peer.image(read(number))[::4096])


def used(samples: Any) -> None:
    for _ in samples:
        pass


def forget(files: list[str]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def device_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def bare(store: ss.Store, ids: list[int]) -> None:
    """Read the same samples batch by batch in file order, with nothing told to the kernel."""
    files = [os.open(url, os.O_RDONLY) for url in store.urls]
    for begin in range(0, len(ids), BATCH):
        for one in sorted(ids[begin : begin + BATCH]):
            shard, position = divmod(one, store.rows_per_shard)
            offset, length = store.ranges[shard, position].tolist()
            os.pread(files[shard], length, offset)
    for file in files:
        os.close(file)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
