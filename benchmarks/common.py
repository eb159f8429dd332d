"""What the reading benchmarks share: shards to read, alternating measurements, records."""

import io
import itertools
import json
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray

import shardsieve as ss

RECORDS = Path(__file__).parent / "records"
KEEP = (0.1, 0.3, 0.5, 0.7, 1.0)
BATCH = 256


def small_images(samples: int) -> Iterator[bytes]:
    """Yield random bytes of 4-16 kB."""
    draw = np.random.default_rng(0)
    return (draw.bytes(int(draw.integers(4_000, 16_000))) for _ in range(samples))


def photograph_sized(mean: int, samples: int) -> Iterator[bytes]:
    """Yield random bytes of sizes like a data set of photographs: lognormal around a mean."""
    draw = np.random.default_rng(0)
    return (draw.bytes(int(mean * draw.lognormal(-0.125, 0.5))) for _ in range(samples))


def imagenet_sized(gigabytes: float) -> Iterator[bytes]:
    """Yield random bytes of ImageNet-like sizes, 110 kB on average."""
    left = gigabytes * 1e9
    for image in photograph_sized(110_000, int(gigabytes * 1e9)):
        if left <= 0:
            return
        left -= len(image)
        yield image


def photographs(folder: Path, samples: int) -> Iterator[bytes]:
    """Yield the folder's JPEG files over and over."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"--images must be a folder with JPEG files, got {folder}")
    data = [path.read_bytes() for path in files[:1000]]
    return itertools.islice(itertools.cycle(data), samples)


def write_shards(folder: Path, images: Iterable[bytes], *, shards: int, samples: int) -> list[str]:
    """Write tars of `jpg` and `cls`, each of samples / shards images, the last of what is left."""
    urls, left = [], iter(images)
    for shard in range(shards):
        path = folder / f"s-{shard:03d}.tar"
        share = None if shard == shards - 1 else samples // shards
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, image in enumerate(itertools.islice(left, share)):
                for name, data in (("jpg", image), ("cls", b"7")):
                    info = tarfile.TarInfo(f"{shard:03d}{number:06d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        urls.append(str(path))
    os.sync()
    return urls


def pipeline(urls: list[str]) -> wds.WebDataset:
    return wds.WebDataset(urls, shardshuffle=False)


def kept_keys(store: ss.Store, ids: NDArray[np.int64]) -> set[str]:
    shards, positions = np.divmod(ids, store.rows_per_shard)
    names = [np.array(store.keys(shard)) for shard in range(store.num_shards)]
    return {str(names[s][p]) for s, p in zip(shards, positions, strict=True)}


def batches(
    dataset: ss.ShardDataset, ids: NDArray[np.int64], size: int = BATCH
) -> Iterator[list[Any]]:
    for start in range(0, len(ids), size):
        yield dataset.__getitems__(ids[start : start + size].tolist())


def alternating(
    readers: Mapping[str, Callable[[], int]], rounds: int, expected: int
) -> dict[str, list[float]]:
    """Return the processor seconds of every reader, in turns; each must read `expected` samples.

    Processor seconds of all threads: with a hot cache nothing waits for the disk, and what else
    runs on a shared machine does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.process_time()
            got = read()
            seconds[name].append(time.process_time() - start)
            assert got == expected, (name, got, expected)
    return seconds


def rates(seconds: Mapping[str, list[float]], samples: int) -> dict[str, dict[str, int]]:
    """Return samples per processor second of every reader: median, least and most."""
    return {
        name: {
            "median": round(samples / statistics.median(taken)),
            "least": round(samples / max(taken)),
            "most": round(samples / min(taken)),
        }
        for name, taken in seconds.items()
    }


def write_record(name: str, about: Mapping[str, Any], unit: str, rows: list[Any]) -> None:
    """Write `records/NAME.json` with machine, versions and date, and print the rows."""
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    machine |= {"python": platform.python_version(), "system": platform.release().split("-")[0]}
    machine["date"] = datetime.now(UTC).date().isoformat()
    machine |= {one: version(one) for one in ("numpy", "torch", "webdataset", "zarr")}
    record = {"about": {**machine, **about}, "unit": unit, "rows": rows}
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown, medians only, a dash for what did not run."""
    names = list(rows[0])
    print("|", " | ".join(names), "|")
    print("|", " | ".join("---" for _ in names), "|")
    for row in rows:
        cells = (
            row[name]["median"] if isinstance(row[name], dict) else row[name] for name in names
        )
        print("|", " | ".join("-" if c is None else f"{c:,}" for c in cells), "|")
