"""Bytes that leave the disk for a masked pass over cold tars, over the bytes of kept samples.

    python benchmarks/cold_bytes.py [--gigabytes 1] [--folder DIR]

Every row drops the shards from the page cache (`POSIX_FADV_DONTNEED`) and reads one epoch in
batches of 256: ours, the same with plain `os.pread` (the kernel's own readahead), and
webdataset's `select`. Device bytes are `read_bytes` of `/proc/self/io`; DIR must lie on a disk.
Writes `records/cold_bytes.json`.
"""

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

import shardsieve as ss

RECORD = Path(__file__).parent / "records" / "cold_bytes.json"
KEEP = (0.1, 0.3, 0.5, 0.7, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        urls = write_shards(Path(folder), options.gigabytes)
        store = ss.index(urls, Path(folder) / "s.zarr")
        rows = [measure(store, urls, fraction) for fraction in KEEP]
    for row in rows:
        print(row)
    about = {"cores": os.cpu_count(), "samples": len(store), "gigabytes": options.gigabytes}
    unit = "device bytes over kept bytes; seconds"
    RECORD.write_text(json.dumps({"about": about, "unit": unit, "rows": rows}, indent=1) + "\n")


def write_shards(folder: Path, gigabytes: float, shards: int = 10) -> list[str]:
    """Write tars of ImageNet-like sizes: lognormal, 110 kB on average."""
    draw, urls = np.random.default_rng(0), []
    for shard in range(shards):
        path, number = folder / f"s-{shard:03d}.tar", 0
        with tarfile.open(path, "w") as tar:
            while tar.offset < gigabytes * 1e9 / shards:
                image = draw.bytes(int(110_000 * draw.lognormal(-0.125, 0.5)))
                for name, data in (("jpg", image), ("cls", b"7")):
                    info = tarfile.TarInfo(f"{shard:03d}{number:06d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                number += 1
        urls.append(str(path))
    os.sync()
    return urls


def measure(store: ss.Store, urls: list[str], fraction: float) -> dict[str, Any]:
    keep = ss.select(store, rule="random", keep_fraction=fraction)
    sampler = ss.PrunedShardSampler(store, keep_set=keep)
    ids, kept = list(sampler), keep.nbytes(store)
    keys = [store.keys(shard) for shard in range(store.num_shards)]
    wanted = {keys[i // store.rows_per_shard][i % store.rows_per_shard] for i in ids}
    readers: dict[str, Callable[[], None]] = {
        "shardsieve": lambda: through_dataset(store, ids),
        "pread": lambda: bare(store, ids),
        "select": lambda: through_webdataset(urls, wanted),
    }
    row: dict[str, Any] = {"keep": fraction}
    for name, read in readers.items():
        forget(urls)
        before, start = device_bytes(), time.perf_counter()
        read()
        row[f"{name} seconds"] = round(time.perf_counter() - start, 2)
        row[name] = round((device_bytes() - before) / kept, 3)
    return row


def forget(urls: list[str]) -> None:
    for url in urls:
        file = os.open(url, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def device_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def through_dataset(store: ss.Store, ids: list[int]) -> None:
    data = ss.ShardDataset(store)
    for start in range(0, len(ids), 256):
        data.__getitems__(ids[start : start + 256])


def bare(store: ss.Store, ids: list[int]) -> None:
    """Read the same samples batch by batch in file order, with nothing told to the kernel."""
    files = [os.open(url, os.O_RDONLY) for url in store.urls]
    for begin in range(0, len(ids), 256):
        for one in sorted(ids[begin : begin + 256]):
            shard, position = divmod(one, store.rows_per_shard)
            offset, length = store.ranges[shard, position].tolist()
            os.pread(files[shard], length, offset)
    for file in files:
        os.close(file)


def through_webdataset(urls: list[str], wanted: set[str]) -> None:
    for _ in wds.WebDataset(urls, shardshuffle=False).select(lambda s: s["__key__"] in wanted):
        pass


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
