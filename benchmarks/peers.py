"""Peers that give single samples by number, each over its own format written from the same shards.

wids and webshart read the tars themselves. MosaicML Streaming and LitData read copies. A peer that
is not installed is left out with a note; `pip install 'shardsieve[peers]'` brings most of them.
wids left the webdataset wheel in 2025: `pip install --no-deps --target DIR webdataset==0.2.100`,
then remove `DIR/webdataset*` and put DIR on PYTHONPATH.
"""

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import pipeline


@dataclass(frozen=True)
class Peer:
    """A peer with its data in place.

    Attributes:
        open: Gives `read(number)`; samples are counted over the shards in order.
        image: The picture's bytes in what `read` returns.
        files: What it reads from.
    """

    open: Callable[[], Callable[[int], Any]]
    image: Callable[[Any], bytes]
    files: list[str]


NAMES = ("wids", "webshart", "MosaicML Streaming", "LitData")


def opened(
    urls: list[str], counts: list[int], folder: Path
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Put the peers' data in place; return those that run here, and versions or why not."""
    found, notes = {}, {}
    for name, (package, make) in _PEERS.items():
        try:
            found[name] = make(urls, counts, folder)
            notes[name] = version_of(package)
        except ImportError as error:
            notes[name] = f"not run: {error}"
    return found, notes


def write_mds(urls: list[str], folder: Path) -> list[str]:
    """Write a MosaicML Streaming data set of the shards and return its files."""
    import streaming

    columns = {"jpg": "bytes", "cls": "bytes"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as out:
        for sample in pipeline(urls):
            out.write({"jpg": sample["jpg"], "cls": sample["cls"]})
    return _files(folder)


def write_litdata(urls: list[str], folder: Path) -> list[str]:
    """Write a LitData data set of the shards, in its usual 64 MB chunks, and return its files."""
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, sample in enumerate(pipeline(urls)):
        writer[number] = {"jpg": sample["jpg"], "cls": sample["cls"]}
    writer.done()
    writer.merge()
    return _files(folder)


def _wids(urls: list[str], counts: list[int], folder: Path) -> Peer:
    import wids

    shards = [{"url": url, "nsamples": n} for url, n in zip(urls, counts, strict=True)]

    def opened() -> Callable[[int], Any]:
        with contextlib.redirect_stderr(io.StringIO()):  # it tells of itself there
            data = wids.ShardListDataset(
                shards, localname=lambda url: url, lru_size=len(urls), transformations=[]
            )
        return data.__getitem__

    return Peer(opened, lambda sample: sample[".jpg"].getvalue(), urls)


def _webshart(urls: list[str], counts: list[int], folder: Path) -> Peer:
    """Open the tars; every member is a sample of its own to it, and only pictures are read."""
    import webshart

    tars = folder / "webshart"
    tars.mkdir()
    for url in urls:
        (tars / Path(url).name).hardlink_to(url)
    webshart.MetadataExtractor().extract_metadata(str(tars), str(tars), max_workers=1)
    data = webshart.discover_dataset(str(tars))
    loader = webshart.TarDataLoader(data, load_file_data=True)
    number = {str(data.get_shard_info(n)["name"]): n for n in range(len(urls))}
    places = []
    for url in urls:
        shard = number[Path(url).stem]
        names = loader.list_samples_in_shard(shard)
        places += [(shard, n) for n, name in enumerate(names) if name.endswith(".jpg")]
    return Peer(
        lambda: lambda row: loader.load_sample(*places[row]), lambda entry: entry.data, urls
    )


def _mosaic(urls: list[str], counts: list[int], folder: Path) -> Peer:
    import streaming

    files = write_mds(urls, folder / "mds")
    data = streaming.StreamingDataset(local=str(folder / "mds"), batch_size=1, shuffle=False)
    return Peer(lambda: data.__getitem__, lambda sample: sample["jpg"], files)


def _litdata(urls: list[str], counts: list[int], folder: Path) -> Peer:
    os.environ.setdefault("DATA_OPTIMIZER_CACHE_FOLDER", str(folder / "litdata-cache"))
    import litdata

    files = write_litdata(urls, folder / "litdata")

    def opened() -> Callable[[int], Any]:
        return litdata.StreamingDataset(str(folder / "litdata"), shuffle=False).__getitem__

    return Peer(opened, lambda sample: sample["jpg"], files)


def _files(folder: Path) -> list[str]:
    return sorted(map(str, folder.iterdir()))


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


_PEERS = {
    "wids": ("wids", _wids),
    "webshart": ("webshart", _webshart),
    "MosaicML Streaming": ("mosaicml-streaming", _mosaic),
    "LitData": ("litdata", _litdata),
}
