"""Tiny tars for tests, with contents that depend on their names alone."""

import hashlib
import io
import tarfile
from pathlib import Path

import webdataset as wds


def content(name, size=700):
    """Bytes that only this name has."""
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def write_tar(path: Path, members, fmt=tarfile.PAX_FORMAT):
    """Write (name, bytes) members; a name that ends in a slash is a directory."""
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, sizes, classes=3):
    """Write one tar per entry of `sizes`; samples have jpg and cls members."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, size in enumerate(sizes):
        members = []
        for row in range(size):
            key = f"{shard:02d}-{row:04d}"
            members.append((f"{key}.jpg", content(key, 300 + 97 * row)))
            members.append((f"{key}.cls", str((shard + row) % classes).encode()))
        paths.append(write_tar(folder / f"s-{shard:03d}.tar", members))
    return paths


def by_webdataset(path):
    """The samples as webdataset itself reads them."""
    with path.open("rb") as stream:
        source = [{"url": str(path), "stream": stream}]
        files = wds.tariterators.tar_file_expander(source)
        return list(wds.tariterators.group_by_keys(files))
