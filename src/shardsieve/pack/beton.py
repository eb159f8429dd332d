"""FFCV files from sources, tars and other FFCV files: same order, same keys.

Fields are `image` (RGBImageField) and `label` (IntField). JPEG bytes are copied as they are; other
images are stored as raw RGB pixels. Keys lie in a block that FFCV skips (`shards/beton.py`): FFCV
users see no extra field.
"""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shardsieve._errors import CorruptShardError, ShardsieveError, UnreadableSampleError
from shardsieve.io.local import LocalReader, too_short
from shardsieve.io.source import Reader, reader_of
from shardsieve.pack.beton_writer import PAGE_SIZE, Row, descriptors_of, write_beton
from shardsieve.pack.sources import Split, find_splits
from shardsieve.pack.writer import PackedSplit, naming_classes, packing_order, told_about_folder
from shardsieve.scores.inputs import integers
from shardsieve.shards.beton import IMAGE, INT, POINTERS, Beton, read_beton, row_type
from shardsieve.shards.beton_fields import JPEG, RAW, BetonFields
from shardsieve.shards.fields import parse_sample
from shardsieve.shards.pixels import IMAGE_SUFFIXES, in_8_bits, is_image
from shardsieve.store.store import Store

_FIELDS = (("image", IMAGE), ("label", INT))
_ROW = row_type((IMAGE, INT))
_LOG = logging.getLogger("shardsieve")
_UNLABELLED = (
    "%d of %d samples have no label: -1 is written in its place; --label-member says where the "
    "class stands"
)
_NAMED = (
    "of %d classes that have names the numbers alone are written: another split is numbered alike "
    "if it has the same classes"
)
_AT_ONCE = 256  # samples that are read together: as many again are under way
Progress = Callable[[int, int], None]


def pack_beton(
    source: str | Path | Store,
    out: str | Path,
    *,
    ids: Sequence[int] | NDArray[np.int64] | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    page_size: int = PAGE_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[PackedSplit]:
    """Write `OUT/SPLIT.beton` for every split of a source, or one file from a store of tars.

    Order and keys are those of `pack` with the same source and seed, or of the store, so that
    `realign` carries scores between the layouts.

    Args:
        source: See `find_splits`; or a store of tars with one image and a `cls` a sample. Other
            members of its samples are left out.
        out: Folder, which gets a `classes.json` too; for a store the file to make.
        ids: Samples of the store to write, in this order; all in id order if left out.
        test_fraction: Held out where the source has no split of its own.
        seed: Of shuffle and split.
        page_size: FFCV's unit of reading: a power of two, at least 2 MiB.
        overwrite: Replace files of those names.
        progress: Called with (samples written, samples in all).

    Raises:
        ShardsieveError: If there is nothing to pack, an image cannot be read or is larger than a
            page, a file is there already, or the disk is full.
        ValueError: If ids are no integers, or one is no sample's.
    """
    target = Path(out)
    if isinstance(source, Store):
        rows = np.arange(len(source)) if ids is None else source.rows(ids)
        wanted = source.ids()[rows]
        unlabelled = int((source.labels()[rows] < 0).sum())
        if unlabelled:
            _LOG.warning(_UNLABELLED, unlabelled, len(rows))
        if source.classes:
            _LOG.warning(_NAMED, len(source.classes))
        jobs = [_Job("train", target, _rows_of_tars(source, wanted, rows), len(wanted), ())]
    else:
        jobs = [
            _Job(
                s.name,
                target / f"{s.name}.beton",
                _rows_of_split(s, seed),
                len(s.labels),
                s.classes,
            )
            for s in find_splits(source, test_fraction=test_fraction, seed=seed)
        ]
    for job in jobs:
        refuse_existing(job.path, overwrite)
    total, before, packed = sum(job.num_samples for job in jobs), 0, []
    classes = jobs[0].classes
    named = naming_classes(target, classes, overwrite) if classes else nullcontext()
    with told_about_folder(target), named:
        for job in jobs:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            shown = counted(job.rows, before, total, progress)
            write_beton(
                job.path, descriptors_of(_FIELDS), _ROW, shown, job.num_samples, page_size=page_size
            )
            path, size = str(job.path), job.path.stat().st_size
            packed.append(PackedSplit(job.split, (path,), job.num_samples, size, job.classes, path))
            before += job.num_samples
    return packed


class _Job(NamedTuple):
    """One file to write."""

    split: str
    path: Path
    rows: Iterator[Row]
    num_samples: int
    classes: tuple[str, ...]


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise a ShardsieveError if a file to be made is there already and may not be replaced."""
    if path.exists() and not overwrite:
        raise ShardsieveError(f"{path} is there already; name another file or use --overwrite")


def counted(
    rows: Iterator[Row], before: int, total: int, progress: Progress | None
) -> Iterator[Row]:
    """Yield the rows and report each."""
    for done, row in enumerate(rows, start=before + 1):
        yield row
        if progress:
            progress(done, total)


def keep_rows(
    source: str | Path,
    out: str | Path,
    rows: Sequence[int] | NDArray[np.int64],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackedSplit:
    """Write some rows of an FFCV file to a new one, in the given order, bytes untouched.

    Rows in score order make any keep fraction one contiguous prefix. Keys go along, so `realign`
    carries scores over. Every field type of FFCV's own is kept as it is.

    Args:
        source: A `.beton`.
        out: File to make.
        rows: Rows to keep, each at most once.
        overwrite: Replace a file of that name.
        progress: Called with (rows written, rows in all).

    Raises:
        ShardsieveError: If a field is of a custom type, whose pointers only its class knows, or
            the file is there already.
        ValueError: If rows are no integers, or one is out of range or named twice.
    """
    beton = read_beton(source)
    if beton.metadata is None:
        raise ShardsieveError(
            f"{source} has custom fields ({', '.join(beton.custom)}), whose pointers only their "
            "own class knows; write the rows with ffcv's DatasetWriter"
        )
    wanted = checked_rows(rows, len(beton))
    refuse_existing(Path(out), overwrite)
    with told_about_folder(Path(out)):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_beton(
            out,
            beton.descriptors,
            beton.metadata.dtype,
            counted(_copied(beton, wanted), 0, len(wanted), progress),
            len(wanted),
            page_size=beton.page_size,
        )
    size = Path(out).stat().st_size
    return PackedSplit(Path(out).stem, (str(out),), len(wanted), size, (), str(out))


def checked_rows(rows: Sequence[int] | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return rows as int64; refuse none, one out of range and one named twice."""
    wanted = integers("rows", rows, cure="give row numbers, of a mask np.flatnonzero(mask)")
    bad = wanted[(wanted < 0) | (wanted >= count)]
    if len(bad) or len(np.unique(wanted)) < len(wanted):
        what = f"{bad[0]}" if len(bad) else "a row twice"
        raise ValueError(f"rows must be distinct and lie in [0, {count}), got {what}")
    if len(wanted) == 0:
        raise ShardsieveError("no rows to write; keep at least one")
    return wanted


# Rows from images ---------------------------------------------------------------------------


def _rows_of_split(split: Split, seed: int) -> Iterator[Row]:
    for place, row in enumerate(packing_order(split, seed)):
        yield _image_row(f"{place:08d}", split.read(row)[1], int(split.labels[row]))


def _rows_of_tars(store: Store, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> Iterator[Row]:
    labels = store.labels()[rows].tolist()
    keys = {int(shard): store.keys(int(shard)) for shard in np.unique(ids // store.rows_per_shard)}
    for sample_id, label, raw in zip(ids.tolist(), labels, _raws(store, ids), strict=True):
        shard, position = divmod(sample_id, store.rows_per_shard)
        key, url = keys[shard][position], store.places[shard]
        sample = parse_sample(raw, key, url)
        images = [member for name, member in sample.items() if is_image(name)]
        if len(images) != 1 or not isinstance(images[0], bytes):
            raise ShardsieveError(
                f"sample {key} of {url} must have one image, got {len(images)}; "
                f"image members end in {', '.join(IMAGE_SUFFIXES)}"
            )
        yield _image_row(key, images[0], label)


def _raws(store: Store, ids: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield the bytes of these samples in this order, those of the next ones on their way."""
    reader = reader_of(store.places, marks=store.marks())
    blocks = (_runs(store, ids[at : at + _AT_ONCE]) for at in range(0, len(ids), _AT_ONCE))
    for block, following in pairwise(chain([[]], blocks, [[]])):
        reader.prefetch(following)
        for url, ranges in block:
            yield from _read(reader, url, ranges)


def _runs(store: Store, ids: NDArray[np.int64]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Return (url, ranges) of the samples, those together that follow each other in one shard."""
    shards, places = np.divmod(ids, store.rows_per_shard)
    ranges = list(map(tuple, store.ranges[shards, places].tolist()))
    cuts = np.flatnonzero((np.diff(shards) != 0) | (np.diff(ids) < 0)) + 1
    ends = pairwise([0, *cuts.tolist(), len(ids)])
    return [(store.places[shards[begin]], ranges[begin:end]) for begin, end in ends]


def _read(reader: Reader, url: str, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    try:
        for where, raw in zip(ranges, reader.read_many(url, ranges), strict=True):
            if len(raw) < where[1]:
                raise too_short(url, sum(where))
            yield raw
    except OSError as error:  # of a local file
        raise CorruptShardError(f"cannot read shard {url}: {error.strerror}") from error


def _image_row(key: str, data: bytes, label: int) -> Row:
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            mode = JPEG if image.format == "JPEG" and image.mode in ("RGB", "L") else RAW
            stored = data if mode == JPEG else in_8_bits(image).convert("RGB").tobytes()
    except (UnidentifiedImageError, OSError) as error:
        raise UnreadableSampleError(f"cannot decode the image of sample {key}: {error}") from error
    row = np.zeros((), _ROW)
    row["f0"]["mode"], row["f0"]["width"], row["f0"]["height"] = mode, width, height
    row["f1"] = label
    return key, row, stored, [len(stored)], [("f0", "data_ptr")]


# Rows of an FFCV file -----------------------------------------------------------------------


def _copied(beton: Beton, rows: NDArray[np.int64]) -> Iterator[Row]:
    assert beton.metadata is not None
    reader, keys, fields = LocalReader(), beton.keys(), BetonFields(beton)
    pointers = [(f"f{i}", POINTERS[t]) for i, t in enumerate(beton.types) if t in POINTERS]
    for row in rows.tolist():
        regions = fields.regions(row)
        parts = [reader.read(beton.path, at, size) for at, size in regions]
        sizes = [size for _, size in regions]
        yield keys[row], beton.metadata[row], b"".join(parts), sizes, pointers
