"""What does pruning an FFCV loader cost and save, against FFCV's own `indices=`?

    python benchmarks/ffcv_pruned.py [--parts start pages speed] [--images FOLDER]

Three questions, each at keep fractions 0.1, 0.3, 0.5 and 1.0 (random keep sets):

* *start*: a hollow `.beton` of ImageNet's shape (a sparse file: tables, no pixels). Seconds and
  memory from imported libraries to the first batch of labels; compiling is part of it. A fresh
  process each time, alternating.
* *pages*: the same file. Pages touched, the most pages that FFCV's own planner holds at a time with
  `os_cache=False`, and distinct classes in a batch of 256 when the file is sorted by class.
* *speed*: images/s of epochs over a hot file, alternating: raw pixels of 64 x 64 (random ones
  without --images), so that the loader is what is measured, not the decoder; and from a cold file
  with `os_cache=False`, bytes that left the disk included.

Writes `records/ffcv_pruned.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import shardsieve as ss
from shardsieve.pack.beton_writer import PAGE_SIZE, descriptors_of
from shardsieve.shards.beton import ALLOCATION, HEADER, IMAGE, INT, VERSION, row_type

RECORD = Path(__file__).parent / "records" / "ffcv_pruned.json"
KEEP = (0.1, 0.3, 0.5, 1.0)
BATCH = 256
CLASSES = 1000
PER_PAGE = 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--images", type=Path, default=None, help="image folder for *speed*")
    parser.add_argument("--folder", type=Path, default=None, help="scratch, on a disk")
    parser.add_argument("--parts", nargs="+", default=["start", "pages", "speed"])
    parser.add_argument("--start", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start_once(*options.start)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = hollow(folder / "hollow.beton", options.rows)
        begin = time.perf_counter()
        store = ss.index(path, folder / "hollow.zarr")
        indexed = round(time.perf_counter() - begin, 2)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record["about"] = about(options.rows, indexed)
        parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "start": lambda: (starts(folder, fraction, options.starts) for fraction in KEEP),
            "pages": lambda: (pages(store, path, fraction) for fraction in KEEP),
            "speed": lambda: speed(folder, options.images, options.epochs),
        }
        for part in options.parts:
            record[part] = []
            for row in parts[part]():
                print(part, row, flush=True)
                record[part].append(row)
                RECORD.write_text(json.dumps(record, indent=1) + "\n")


def about(rows: int, indexed: float) -> dict[str, Any]:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    cpu = names[0].split(":")[1].strip() if names else platform.processor()
    return {"rows": rows, "index_seconds": indexed, "cores": os.cpu_count(), "cpu": cpu}


def hollow(path: Path, rows: int) -> Path:
    """Write a file of that many raw images, 75 to a page, sorted by class, as a hole."""
    metadata = np.zeros(rows, row_type((IMAGE, INT)))
    descriptors = descriptors_of((("image", IMAGE), ("label", INT)))
    size = PAGE_SIZE // PER_PAGE
    first = -(-(HEADER.itemsize + descriptors.nbytes + metadata.nbytes) // PAGE_SIZE)
    page, place = np.divmod(np.arange(rows), PER_PAGE)
    table = np.zeros(rows, ALLOCATION)
    table["sample_id"], table["size"] = np.arange(rows), size
    table["ptr"] = (first + page) * PAGE_SIZE + place * size
    metadata["f0"]["data_ptr"], metadata["f0"]["mode"] = table["ptr"], 1
    metadata["f0"]["width"], metadata["f0"]["height"] = 191, 195
    metadata["f1"] = np.arange(rows) * CLASSES // rows
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"], header["page_size"] = VERSION, 2, PAGE_SIZE
    header["num_samples"] = rows
    header["alloc_table_ptr"] = (first + page[-1] + 1) * PAGE_SIZE
    with path.open("wb") as file:
        file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())
        file.seek(int(header["alloc_table_ptr"][0]))
        file.write(table.tobytes())
    return path


# Start ---------------------------------------------------------------------------------------


def starts(folder: Path, fraction: float, times: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"ffcv": [], "shardsieve": []}
    for _ in range(times):
        for who, runs in found.items():
            command = [sys.executable, __file__, "--start", who, str(folder), str(fraction)]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(shown.splitlines()[-1]))
    row: dict[str, Any] = {"keep": fraction}
    for who, runs in found.items():
        row[who] = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
        row[who]["every"] = [run["seconds"] for run in runs]
    return row


def start_once(who: str, folder: str, fraction: str) -> dict[str, float]:
    """Measure one start in this process, from imported libraries to the first batch."""
    from ffcv.loader import Loader, OrderOption

    from shardsieve.loaders.ffcv_lean import LeanLoader

    store = ss.open_store(f"{folder}/hollow.zarr", mode="r")
    keep = ss.select(store, keep_fraction=float(fraction), rule="random")
    how: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "pipelines": {"image": None}}
    how |= {"order": OrderOption.RANDOM, "seed": 0}
    before, begin = memory()["VmRSS"], time.perf_counter()
    if who == "ffcv":
        loader = Loader(f"{folder}/hollow.beton", indices=keep.ids(), **how)
    else:
        lean = LeanLoader(f"{folder}/hollow.beton", **how)
        loader = ss.prune(lean, store, keep_set=keep, order="pages")
    made = time.perf_counter() - begin
    next(iter(loader))
    seconds, after = time.perf_counter() - begin, memory()
    return {
        "seconds": round(seconds, 2),
        "making_seconds": round(made, 2),
        "peak_mb": round((after["VmHWM"] - before) / 1e3),
        "held_mb": round((after["VmRSS"] - before) / 1e3),
    }


def memory() -> dict[str, int]:
    """Return this process' memory in kB."""
    lines = map(str.split, Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0][:2] == "Vm"}


# Pages ---------------------------------------------------------------------------------------


def pages(store: ss.Store, path: Path, fraction: float) -> dict[str, Any]:
    from ffcv.loader import OrderOption

    from shardsieve.loaders.ffcv_lean import LeanLoader

    keep = ss.select(store, keep_fraction=fraction, rule="random")
    where, labels = store.ranges[..., 0].reshape(-1)[: len(store)] // PAGE_SIZE, store.labels()
    row: dict[str, Any] = {"keep": fraction, "pages_of_file": len(np.unique(where))}
    row["pages_touched"] = len(np.unique(where[keep.ids()]))
    how: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "pipelines": {"image": None}}

    def of(theirs: str, **more: Any) -> Any:
        loader = LeanLoader(str(path), order=OrderOption[theirs], seed=0, drop_last=False, **how)
        return ss.prune(loader, store, keep_set=keep, **more).rows(0).astype(np.int64)

    orders: dict[str, Callable[[], Any]] = {
        "RANDOM": lambda: of("RANDOM"),
        "QUASI_RANDOM": lambda: of("QUASI_RANDOM"),
        "pages": lambda: of("RANDOM", order="pages"),
        "pages, window 512": lambda: of("RANDOM", order="pages", window=512),
    }
    for name, rows_of in orders.items():
        row[name] = quality(rows_of(), where, labels)
    return row


def quality(rows: Any, where: Any, labels: Any) -> dict[str, float]:
    from ffcv.memory_managers.process_cache.schedule import compute_schedule

    cuts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    per_batch = [set(np.unique(where[cut]).tolist()) for cut in cuts]
    slots = compute_schedule(per_batch).num_slots
    classes = [len(np.unique(labels[cut])) for cut in cuts[:-1]]
    return {
        "pages_per_batch": round(statistics.mean(map(len, per_batch)), 1),
        "pages_held": slots,
        "held_gib": round(slots * PAGE_SIZE / 2**30, 2),
        "classes_per_batch": round(statistics.mean(classes), 1),
    }


# Speed ---------------------------------------------------------------------------------------


def speed(folder: Path, images: Path | None, epochs: int) -> Iterator[dict[str, Any]]:
    from shardsieve.pack.beton import pack_beton

    source = images or noise(folder / "noise")
    path = Path(pack_beton(source, folder / "speed")[0].shards[0])
    os.sync()
    store = ss.index(path, folder / "speed.zarr")
    for os_cache in (True, False):
        for fraction in KEEP:
            yield speed_of(store, path, fraction, epochs, os_cache)


def noise(folder: Path, count: int = 40_000) -> Path:
    """Write images of random pixels in ten classes."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / "train" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.bmp")
    return folder


def speed_of(
    store: ss.Store, path: Path, fraction: float, epochs: int, os_cache: bool
) -> dict[str, Any]:
    from ffcv.loader import Loader, OrderOption

    keep = ss.select(store, keep_fraction=fraction, rule="random")
    how: dict[str, Any] = {"batch_size": BATCH, "num_workers": 1, "drop_last": False, "seed": 0}
    how |= {"os_cache": os_cache, "order": OrderOption["RANDOM" if os_cache else "QUASI_RANDOM"]}
    loader = Loader(str(path), **how)
    loaders: dict[str, Any] = {
        "ffcv": Loader(str(path), indices=keep.ids(), **how),
        "loader": ss.prune(loader, store, keep_set=keep),
        "pages": ss.prune(loader, store, keep_set=keep, order="pages"),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    read: dict[str, list[float]] = {name: [] for name in loaders}
    for one in loaders.values():
        sum(len(batch[0]) for batch in one)
    for _ in range(epochs):
        for name, one in loaders.items():
            if not os_cache:
                forget(path)
            before, begin = device_bytes(), time.perf_counter()
            seen = sum(len(batch[0]) for batch in one)
            rates[name].append(seen / (time.perf_counter() - begin))
            read[name].append((device_bytes() - before) / 1e6)
            assert seen == len(keep)
    row: dict[str, Any] = {"os_cache": os_cache, "keep": fraction, "images": len(keep)}
    for name in loaders:
        row[name] = {
            "images_per_s": round(statistics.median(rates[name])),
            "every": [round(x) for x in rates[name]],
            "mb_off_disk": round(statistics.median(read[name]), 1),
        }
    return row


def forget(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def device_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
