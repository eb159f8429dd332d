"""FFCV files from sources, tars and other FFCV files, and back to tars: same order, same keys.

Fields are `image` (RGBImageField) and `label` (IntField). JPEG bytes are copied as they are; other
images are stored as raw RGB pixels. Keys lie in a block that FFCV skips (`shards/beton.py`): FFCV
users see no extra field.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shardsieve._errors import ShardsieveError, UnreadableSampleError
from shardsieve.io.local import LocalReader
from shardsieve.order import permutation
from shardsieve.pack.beton_writer import PAGE_SIZE, Row, descriptors_of, write_beton
from shardsieve.pack.sources import SUFFIXES, Split, find_splits
from shardsieve.pack.writer import PackedSplit, replaced, tar_member, told_about_folder
from shardsieve.shards.beton import (
    BYTES,
    IMAGE,
    INT,
    JSON,
    POINTERS,
    Beton,
    read_beton,
    row_type,
)
from shardsieve.shards.tar import BLOCK, parse_sample
from shardsieve.store.store import Store

_FIELDS = (("image", IMAGE), ("label", INT))
_ROW = row_type((IMAGE, INT))
_JPEG, _RAW = 0, 1


def pack_beton(
    source: str | Path | Store,
    out: str | Path,
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    page_size: int = PAGE_SIZE,
) -> list[PackedSplit]:
    """Write `OUT/SPLIT.beton` for every split of a source, or one file from a store of tars.

    Order and keys are those of `pack` with the same source and seed, or of the store, so that
    `realign` carries scores between the layouts.

    Args:
        source: See `find_splits`; or a store of tars with one image and a `cls` a sample. Other
            members of its samples are left out.
        out: Folder; for a store the file to make.
        test_fraction: Held out where the source has no split of its own.
        seed: Of shuffle and split.
        page_size: FFCV's unit of reading: a power of two, at least 2 MiB.

    Raises:
        ShardsieveError: If there is nothing to pack, an image cannot be read or is larger than a
            page, or the disk is full.
    """
    target = Path(out)
    jobs: list[tuple[str, Path, Iterator[Row], int, tuple[str, ...]]] = []
    with told_about_folder(target):
        if isinstance(source, Store):
            target.parent.mkdir(parents=True, exist_ok=True)
            jobs.append(("train", target, _rows_of_tars(source), len(source), ()))
        else:
            target.mkdir(parents=True, exist_ok=True)
            splits = find_splits(source, test_fraction=test_fraction, seed=seed)
            jobs = [
                (
                    s.name,
                    target / f"{s.name}.beton",
                    _rows_of_split(s, seed),
                    len(s.labels),
                    s.classes,
                )
                for s in splits
            ]
        packed = []
        for name, path, rows, count, classes in jobs:
            write_beton(path, descriptors_of(_FIELDS), _ROW, rows, count, page_size=page_size)
            size = path.stat().st_size
            packed.append(PackedSplit(name, (str(path),), count, size, classes, str(path)))
    return packed


def keep_rows(source: str | Path, out: str | Path, rows: Sequence[int] | NDArray[np.int64]) -> None:
    """Write some rows of an FFCV file to a new one, in the given order, bytes untouched.

    Rows in score order make any keep fraction one contiguous prefix. Keys go along, so `realign`
    carries scores over. Every field type of FFCV's own is kept as it is.

    Args:
        source: A `.beton`.
        out: File to make.
        rows: Rows to keep, each at most once.

    Raises:
        ShardsieveError: If a field is of a custom type, whose pointers only its class knows.
        ValueError: If a row is out of range or named twice.
    """
    beton, wanted = read_beton(source), np.asarray(rows, dtype=np.int64)
    if beton.metadata is None:
        raise ShardsieveError(
            f"{source} has custom fields ({', '.join(beton.custom)}), whose pointers only their "
            "own class knows; write the rows with ffcv's DatasetWriter"
        )
    bad = wanted[(wanted < 0) | (wanted >= len(beton))]
    if len(bad) or len(np.unique(wanted)) < len(wanted):
        what = f"{bad[0]}" if len(bad) else "a row twice"
        raise ValueError(f"rows must be distinct and lie in [0, {len(beton)}), got {what}")
    with told_about_folder(Path(out)):
        write_beton(
            out,
            beton.descriptors,
            beton.metadata.dtype,
            _copied(beton, wanted),
            len(wanted),
            page_size=beton.page_size,
        )


def beton_to_tars(
    source: str | Path, out: str | Path, *, samples_per_shard: int = 1000, name: str = "train"
) -> PackedSplit:
    """Write an FFCV file as tar shards `OUT/NAME-NNNNNN.tar`, keeping order and keys.

    JPEGs keep their bytes as `.jpg`, raw images become `.png`, the label field `.cls`, other
    integers, bytes and JSON a member named after their field.

    Raises:
        ShardsieveError: If a field is of a type that has no such member.
    """
    beton = read_beton(source)
    other = [
        n
        for n, t in zip(beton.names, beton.types, strict=True)
        if t not in (IMAGE, INT, BYTES, JSON)
    ]
    if other:
        raise ShardsieveError(
            f"fields {', '.join(other)} of {source} have no tar member; images, integers, bytes "
            "and JSON do"
        )
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    folder, keys, reader = Path(out), beton.keys(), LocalReader()
    size_at, paths = _size_at(beton), list[Path]()
    with told_about_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(beton), samples_per_shard):
            path = folder / f"{name}-{len(paths):06d}.tar"
            with replaced(path) as file:
                for row in range(first, min(first + samples_per_shard, len(beton))):
                    for suffix, data in _members(beton, reader, size_at, row):
                        file.write(tar_member(f"{keys[row]}.{suffix}", data))
                file.write(bytes(2 * BLOCK))
            paths.append(path)
    return PackedSplit(
        split=name,
        shards=tuple(map(str, paths)),
        samples=len(beton),
        nbytes=sum(p.stat().st_size for p in paths),
        classes=(),
        pattern=f"{folder}/{name}-{{000000..{len(paths) - 1:06d}}}.tar",
    )


# Rows from images ---------------------------------------------------------------------------


def _rows_of_split(split: Split, seed: int) -> Iterator[Row]:
    # The salt of `pack`: the same source gives the same order and keys in both layouts.
    order = permutation(len(split.labels), seed, 0x9AC4).tolist()
    for place, row in enumerate(order):
        yield _image_row(f"{place:08d}", split.read(row)[1], int(split.labels[row]))


def _rows_of_tars(store: Store) -> Iterator[Row]:
    reader, labels, at = LocalReader(), store.labels(), 0
    for shard, url in enumerate(store.urls):
        for position, key in enumerate(store.keys(shard)):
            offset, length = store.ranges[shard, position].tolist()
            sample = parse_sample(reader.read(url, offset, length), key, url)
            images = [v for k, v in sample.items() if f".{k.rpartition('.')[2]}" in SUFFIXES]
            if len(images) != 1 or not isinstance(images[0], bytes):
                raise ShardsieveError(
                    f"sample {key} of {url} must have one image, got {len(images)}; "
                    f"image members end in {', '.join(sorted(SUFFIXES))}"
                )
            yield _image_row(key, images[0], int(labels[at]))
            at += 1


def _image_row(key: str, data: bytes, label: int) -> Row:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            mode = _JPEG if image.format == "JPEG" and image.mode in ("RGB", "L") else _RAW
            stored = data if mode == _JPEG else image.convert("RGB").tobytes()
    except (UnidentifiedImageError, OSError) as error:
        raise UnreadableSampleError(f"cannot decode the image of sample {key}: {error}") from error
    row = np.zeros((), _ROW)
    row["f0"]["mode"], row["f0"]["width"], row["f0"]["height"] = mode, width, height
    row["f1"] = label
    return key, row, stored, [len(stored)], [("f0", "data_ptr")]


# Rows and members of an FFCV file -----------------------------------------------------------


def _pointers(beton: Beton) -> list[tuple[str, str]]:
    return [(f"f{i}", POINTERS[t]) for i, t in enumerate(beton.types) if t in POINTERS]


def _size_at(beton: Beton) -> Callable[[int], int]:
    """Return a function from a pointer to the size of its region."""
    order = np.argsort(beton.allocations["ptr"], kind="stable")
    starts, sizes = beton.allocations["ptr"][order], beton.allocations["size"][order]
    return lambda at: int(sizes[np.searchsorted(starts, np.uint64(at))])


def _copied(beton: Beton, rows: NDArray[np.int64]) -> Iterator[Row]:
    assert beton.metadata is not None
    reader, keys, pointers, size_at = LocalReader(), beton.keys(), _pointers(beton), _size_at(beton)
    for row in rows.tolist():
        meta = beton.metadata[row]
        starts = [int(meta[f][p] if p else meta[f]) for f, p in pointers]
        sizes = [size_at(at) for at in starts]
        parts = [reader.read(beton.path, at, n) for at, n in zip(starts, sizes, strict=True)]
        yield keys[row], meta, b"".join(parts), sizes, pointers


def _members(
    beton: Beton, reader: LocalReader, size_at: Callable[[int], int], row: int
) -> Iterator[tuple[str, bytes]]:
    assert beton.metadata is not None
    labels = "label" if "label" in beton.names else None
    for number, (name, kind) in enumerate(zip(beton.names, beton.types, strict=True)):
        value = beton.metadata[row][f"f{number}"]
        if kind == INT:
            only = labels is None and beton.types.count(INT) == 1
            yield "cls" if name == labels or only else name, str(int(value)).encode()
            continue
        at = int(value[POINTERS[kind]])
        data = reader.read(beton.path, at, size_at(at))
        if kind == JSON:
            yield f"{name}.json", data.rstrip(b"\0")
        elif kind == BYTES:
            yield name, data
        else:
            prefix = "" if beton.types.count(IMAGE) == 1 else f"{name}."
            suffix, stored = _image_member(int(value["mode"]), value, data)
            yield prefix + suffix, stored


def _image_member(mode: int, value: NDArray[np.void], data: bytes) -> tuple[str, bytes]:
    if mode == _JPEG:
        return "jpg", data
    pixels = np.frombuffer(data, np.uint8).reshape(int(value["height"]), int(value["width"]), 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=6)
    return "png", out.getvalue()
