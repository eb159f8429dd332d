"""Write a split as tar shards: shuffled once, same bytes every time, no half-written file."""

import filecmp
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardsieve._errors import ShardsieveError
from shardsieve.io.replacing import remove_left, temporary, write_whole
from shardsieve.order import permutation
from shardsieve.pack.sources import Split, find_splits
from shardsieve.shards.tar import BLOCK


@dataclass(frozen=True)
class PackedSplit:
    """What packing one split made.

    Attributes:
        split: Its name.
        shards: Paths in order.
        samples: Number of samples.
        nbytes: Bytes of all shards.
        classes: Class names by label.
        pattern: Brace pattern that names the shards.
    """

    split: str
    shards: tuple[str, ...]
    samples: int
    nbytes: int
    classes: tuple[str, ...]
    pattern: str


def pack(
    source: str | Path,
    out: str | Path,
    *,
    samples_per_shard: int | None = 1000,
    bytes_per_shard: int | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[PackedSplit]:
    """Write every split of a source as `OUT/SPLIT-NNNNNN.tar` and `OUT/classes.json`.

    Images keep their bytes. Samples are shuffled once with the seed, so no shard holds one class
    alone. The same source and arguments give the same bytes.

    Args:
        source: See `find_splits`.
        out: Folder for the shards.
        samples_per_shard: At most that many samples in a shard, at least 1.
        bytes_per_shard: At most that many bytes, beyond a first sample; both limits may hold.
        test_fraction: Held out where the source has no split of its own.
        seed: Of shuffle and split.
        overwrite: Replace shards of another packing.
        progress: Called with (samples written, samples in all).

    Raises:
        ShardsieveError: If there is nothing to pack, an image is empty, the disk is full, or OUT
            holds a shard of a split, or names of classes, that are not of this packing and stay as
            they are.
    """
    for name, limit in (("samples", samples_per_shard), ("bytes", bytes_per_shard)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name}_per_shard must be at least 1, got {limit}")
    splits = find_splits(source, test_fraction=test_fraction, seed=seed)
    folder = Path(out)
    total = sum(len(split.labels) for split in splits)
    before, packed = 0, []
    with told_about_folder(folder), naming_classes(folder, splits[0].classes, overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits:
            shown = _after(before, total, progress)
            limits = (samples_per_shard or len(split.labels), bytes_per_shard or 1 << 62)
            packed.append(_pack_split(split, folder, limits, seed, shown, overwrite))
            before += len(split.labels)
    return packed


def _after(
    before: int, total: int, progress: Callable[[int, int], None] | None
) -> Callable[[int], None]:
    return lambda done: progress(before + done, total) if progress else None


def _pack_split(
    split: Split,
    folder: Path,
    limits: tuple[int, int],
    seed: int,
    shown: Callable[[int], None],
    overwrite: bool,
) -> PackedSplit:
    order = packing_order(split, seed)
    old = sorted(folder.glob(f"{split.name}-*.tar"))
    remove_left(folder, f"{split.name}-*.tar")
    paths: list[Path] = []
    done = 0
    while done < len(order):
        path = folder / f"{split.name}-{len(paths):06d}.tar"
        with temporary(path) as (file, beside):
            done = _write_shard(file, split, order, done, limits)
            file.flush()
            put_shard(beside, path, overwrite)
        paths.append(path)
        shown(done)
    remove_others(old, paths, overwrite)
    return packed_tars(split.name, paths, len(order), split.classes)


def put_shard(made: Path, path: Path, overwrite: bool) -> None:
    """Give a shard its name; one of the same bytes that is there stays: stores know it by its time.

    Raises:
        ShardsieveError: If another one is there, and not to be replaced.
    """
    there = path.exists()
    if there and filecmp.cmp(made, path, shallow=False):
        return
    if there and not overwrite:
        raise _of_another(path)
    made.replace(path)


@contextmanager
def naming_classes(folder: Path, classes: tuple[str, ...], overwrite: bool) -> Iterator[None]:
    """Write the classes' names once the shards beside them are written.

    Raises:
        ShardsieveError: First, if others are there, whose shards may be there, and may not be
            replaced.
    """
    path, names = folder / "classes.json", json.dumps(list(classes)).encode()
    if path.exists() and path.read_bytes() != names and not overwrite:
        raise _of_another(path)
    yield
    write_whole(path, names)


def remove_others(old: list[Path], paths: list[Path], overwrite: bool) -> None:
    """Remove shards of another packing that have the names of further ones.

    Raises:
        ShardsieveError: If there is one, and it is not to be replaced.
    """
    left = [path for path in old if path not in paths]
    if left and not overwrite:
        raise _of_another(left[0])
    for path in left:
        path.unlink()


def _of_another(path: Path) -> ShardsieveError:
    return ShardsieveError(
        f"{path.parent} holds {path.name} of another packing; use a new folder or --overwrite"
    )


def packing_order(split: Split, seed: int) -> list[int]:
    """Return the rows of a split in the order in which they are packed, whatever the layout."""
    order: list[int] = permutation(len(split.labels), seed, 0x9AC4).tolist()
    return order


def packed_tars(
    name: str, paths: list[Path], samples: int, classes: tuple[str, ...] = ()
) -> PackedSplit:
    """Return what packing made: the shards `NAME-NNNNNN.tar` of one folder, at least one."""
    return PackedSplit(
        split=name,
        shards=tuple(map(str, paths)),
        samples=samples,
        nbytes=sum(p.stat().st_size for p in paths),
        classes=classes,
        pattern=f"{paths[0].parent}/{name}-{{000000..{len(paths) - 1:06d}}}.tar",
    )


def _write_shard(
    file: io.BufferedWriter, split: Split, order: list[int], first: int, limits: tuple[int, int]
) -> int:
    """Write samples from place `first` on until a limit is met; return the next place."""
    place, written = first, 0
    while place < len(order) and place - first < limits[0]:
        suffix, image = split.read(order[place])
        label = str(int(split.labels[order[place]])).encode()
        sample = tar_member(f"{place:08d}.{suffix}", image) + tar_member(f"{place:08d}.cls", label)
        if written and written + len(sample) > limits[1]:
            break
        file.write(sample)
        written, place = written + len(sample), place + 1
    file.write(bytes(2 * BLOCK))
    return place


def tar_member(name: str, data: bytes) -> bytes:
    """Return one regular file of a tar: header, content, padding."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


@contextmanager
def told_about_folder(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of a write into one line with the cure."""
    try:
        yield
    except OSError as error:
        raise ShardsieveError(
            f"cannot write shards to {folder}: {error.strerror or error}; "
            "free some space or choose another folder"
        ) from error
