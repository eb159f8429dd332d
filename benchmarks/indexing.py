"""How fast are tars indexed, and how large is the index?

    python benchmarks/indexing.py [--samples 50000]

Tars of small samples (a picture of 4-16 kB and a label: two members each) in the page cache.
Members per processor second, one thread, in turns: `index`, which makes the whole store; the walk
over headers that is in it; the standard library's `tarfile`, which is what webdataset reads by.
The size is that of the byte ranges, per sample. Writes `records/indexing.json`.
"""

import argparse
import os
import tarfile
import tempfile
from itertools import count
from pathlib import Path

from common import alternating, rates, small_images, write_record, write_shards

import shardsieve as ss
from shardsieve.shards.tar import walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        images = small_images(options.samples)
        urls = write_shards(Path(folder), images, shards=options.shards, samples=options.samples)
        numbers = count()
        readers = {
            "index": lambda: 2 * len(ss.index(urls, Path(folder) / f"{next(numbers)}.zarr")),
            "walk": lambda: sum(walked(url) for url in urls),
            "tarfile": lambda: sum(listed(url) for url in urls),
        }
        members = 2 * options.samples
        alternating(readers, 1, members)  # into the page cache
        row = rates(alternating(readers, options.rounds, members), members)
        ranges = ss.open_store(Path(folder) / "0.zarr", mode="r").ranges
    about = {name: getattr(options, name) for name in ("samples", "shards", "rounds")}
    size = {"bytes of ranges per sample": ranges.nbytes / (ranges.shape[0] * ranges.shape[1])}
    faster = {"index / tarfile": round(row["index"]["median"] / row["tarfile"]["median"], 2)}
    write_record("indexing", about, "members per processor second", [{**row, **faster, **size}])


def walked(url: str) -> int:
    with Path(url).open("rb") as file:
        number = file.fileno()
        size = os.fstat(number).st_size
        return sum(1 for _ in walk(lambda at, length: os.pread(number, length, at), size, url))


def listed(url: str) -> int:
    with tarfile.open(url) as tar:
        return len(tar.getmembers())


if __name__ == "__main__":
    main()
