"""Seconds to stream part of a data set from an object store, and bytes on the wire over bytes kept.

    python benchmarks/object_store.py [--megabytes 300] [--workers 2] [--rounds 3] [--folder DIR]

A server in a process of its own gives ranges with 30 ms to the first byte and 90 MB/s per
connection. Ours reads planned ranges. webdataset streams whole shards, one connection per worker.
MosaicML Streaming and LitData read copies in their own formats through boto3, with an empty cache:
Mosaic the kept samples by number (it fetches their shards), LitData everything in its order, and
the first of the kept samples by number (it fetches their ranges one after another), scaled up.
Same workers, no decoding, alternating, medians. Writes `records/object_store.json`.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peers
import webdataset as wds
from common import KEEP, imagenet_sized, write_record, write_shards
from torch.utils.data import DataLoader, Dataset

import shardsieve as ss

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
BATCH, SCALED = 64, 128
READERS = ("shardsieve", "webdataset", "MosaicML Streaming", "LitData", "LitData by number")
Reader = tuple[Callable[[], int], int, float]
LOGIN = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bucket = Path(folder) / "bucket"
        bucket.mkdir()
        images = imagenet_sized(options.megabytes / 1000)
        samples = int(options.megabytes * 1e6 / 110_000)
        paths = write_shards(bucket, images, shards=10, samples=samples)
        notes = written(paths, bucket)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(folder, theirs))
        server.start()
        try:
            bench = Bench(ours, Path(folder), paths, notes, options)
            rows = [bench.measure(keep) for keep in KEEP]
        finally:
            ours.send("stop")
            server.join(30)
    about = {"samples": samples, "first byte": 0.03, "bytes per second and connection": 90e6}
    about |= {"megabytes": options.megabytes, "workers": options.workers, "rounds": options.rounds}
    about |= {"peers": notes, "LitData by number, scaled up from samples": SCALED}
    write_record("object_store", about, "seconds; bytes on the wire over bytes kept", rows)


def written(paths: list[str], bucket: Path) -> dict[str, str]:
    """Put the peers' formats into the bucket; return versions, or why a peer does not run."""
    notes = {"webshart": "not run: its remote data sets are those of huggingface.co alone"}
    notes["wids"] = "not run: it downloads whole shards before the first sample"
    for name, package, write in (
        ("MosaicML Streaming", "mosaicml-streaming", peers.write_mds),
        ("LitData", "litdata", peers.write_litdata),
    ):
        try:
            write(paths, bucket / package)
            notes[name] = peers.version_of(package)
        except ImportError as error:
            notes[name] = f"not run: {error}"
    return notes


def serve(folder: str, pipe: Connection) -> None:
    from servers import range_server

    with range_server(folder, latency=0.03, bandwidth=90e6) as server:
        pipe.send(server.url)
        while pipe.recv() == "bytes":
            pipe.send(sum(server.seen))


class Numbered(Dataset[Any]):
    """A peer's samples by number; opened where it is read, for those that cannot be forked."""

    def __init__(self, make: Callable[[], Callable[[int], Any]]) -> None:
        self.make, self.read = make, None

    def __getitem__(self, number: int) -> Any:
        self.read = self.read or self.make()
        return self.read(number)

    def __len__(self) -> int:
        return 1 << 40


class Bench:
    """The data in the store, and how each reader takes it."""

    def __init__(
        self,
        pipe: Connection,
        folder: Path,
        paths: list[str],
        notes: dict[str, str],
        options: argparse.Namespace,
    ) -> None:
        self.pipe, self.folder, self.notes, self.options = pipe, folder, notes, options
        self.root = pipe.recv()
        self.urls = [f"{self.root}/bucket/{Path(path).name}" for path in paths]
        self.store = ss.index(self.urls, folder / "s.zarr")
        os.environ |= {name.upper(): value for name, value in LOGIN.items()}
        os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "S3_ENDPOINT_URL": self.root}
        self.how = {"num_workers": options.workers, "collate_fn": len_only, "batch_size": BATCH}

    def measure(self, fraction: float) -> dict[str, Any]:
        """Time every reader at one keep fraction, in turns."""
        keep = ss.select(self.store, rule="random", keep_fraction=fraction)
        ids = list(ss.PrunedShardSampler(self.store, keep_set=keep))
        numbers = self.store.rows(ids).tolist()
        seconds: dict[str, list[float]] = {name: [] for name in READERS}
        row: dict[str, Any] = {"keep": fraction, **dict.fromkeys(READERS)}
        readers = self._readers(keep, numbers)
        for _ in range(self.options.rounds):
            for name, (read, samples, scale) in readers.items():
                before, start = self.wire(), time.perf_counter()
                assert read() == samples, name
                seconds[name].append((time.perf_counter() - start) * scale)
                wire = (self.wire() - before) * scale / keep.nbytes(self.store)
                row[f"{name}, wire"] = round(wire, 2)
        for name in readers:
            taken = [round(one, 2) for one in sorted(seconds[name])]
            median = round(statistics.median(taken), 2)
            row[name] = {"median": median, "least": taken[0], "most": taken[-1]}
        ratio = row["shardsieve"]["median"] / row["webdataset"]["median"]
        return {**row, "shardsieve / webdataset": round(ratio, 2)}

    def _readers(self, keep: ss.KeepSet, numbers: list[int]) -> dict[str, Reader]:
        """Return (read, samples it gives, factor to the whole) of those that run here."""
        kept, total, first = len(keep), len(self.store), min(SCALED, len(keep))
        found: dict[str, Reader] = {
            "shardsieve": (partial(self._ours, keep), kept, 1.0),
            "webdataset": (self._webdataset, total, 1.0),
        }
        if not self.notes["MosaicML Streaming"].startswith("not run"):
            found["MosaicML Streaming"] = (partial(self._mosaic, numbers), kept, 1.0)
        if not self.notes["LitData"].startswith("not run"):
            found["LitData"] = (partial(self._litdata, None), total, 1.0)
            by_number = partial(self._litdata, numbers[:first])
            found["LitData by number"] = (by_number, first, kept / first)
        return found

    def wire(self) -> int:
        """Return the bytes that the server has sent."""
        self.pipe.send("bytes")
        return int(self.pipe.recv())

    def _ours(self, keep: ss.KeepSet) -> int:
        sampler = ss.PrunedShardSampler(self.store, keep_set=keep)
        return count(DataLoader(ss.ShardDataset(self.store), sampler=sampler, **self.how))

    def _webdataset(self) -> int:
        whole = wds.WebDataset([f"pipe:curl -s {url}" for url in self.urls], shardshuffle=False)
        return count(DataLoader(whole, **self.how))

    def _mosaic(self, numbers: list[int]) -> int:
        import streaming

        with tempfile.TemporaryDirectory(dir=self.folder) as local:
            data = streaming.StreamingDataset(
                remote="s3://bucket/mosaicml-streaming", local=local, batch_size=BATCH
            )
            by_number = Numbered(lambda: data.__getitem__)
            return count(DataLoader(by_number, sampler=numbers, **self.how))

    def _litdata(self, numbers: list[int] | None) -> int:
        """Read everything, or these samples, with an empty cache."""
        import litdata
        from litdata.streaming import downloader

        # Its obstore client takes no plain http endpoint; without obstore it uses boto3.
        downloader._OBSTORE_AVAILABLE = False
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            login = {"endpoint_url": self.root, **LOGIN}
            data = litdata.StreamingDataset(
                "s3://bucket/litdata", cache_dir=cache, shuffle=False, storage_options=login
            )
            if numbers is None:
                return count(litdata.StreamingDataLoader(data, **self.how))
            by_number = Numbered(lambda: data.__getitem__)
            return count(DataLoader(by_number, sampler=numbers, **self.how))


def count(batches: Any) -> int:
    return sum(map(len, batches))


def len_only(samples: list[Any]) -> list[int]:
    """Keep pictures out of the pipe between worker and parent."""
    return [len(samples)] * len(samples)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
