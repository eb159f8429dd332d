"""Tar shards from an FFCV file: same order, same keys, same JPEG bytes."""

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.io.local import LocalReader
from shardsieve.io.replacing import remove_left, temporary
from shardsieve.pack.beton import checked_rows
from shardsieve.pack.writer import (
    PackedSplit,
    packed_tars,
    put_shard,
    remove_others,
    tar_member,
    told_about_folder,
)
from shardsieve.shards.beton import read_beton
from shardsieve.shards.beton_fields import BetonFields
from shardsieve.shards.tar import BLOCK
from shardsieve.store.create_beton import known_field


def beton_to_tars(
    source: str | Path,
    out: str | Path,
    *,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    samples_per_shard: int = 1000,
    name: str = "train",
    label_field: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PackedSplit:
    """Write an FFCV file as tar shards `OUT/NAME-NNNNNN.tar`, keeping order and keys.

    JPEGs keep their bytes as `.jpg`, raw images become `.png`, the label field `.cls`, other
    integers, bytes and JSON a member named after their field.

    Args:
        source: A `.beton`.
        out: Folder for the shards.
        rows: Rows to write, in this order; all of them if left out.
        samples_per_shard: At least 1.
        name: Of the shards.
        label_field: The integer field to write as `.cls`; as in `index` if left out.
        overwrite: Replace shards of that name.
        progress: Called with (samples written, samples in all).

    Raises:
        ShardsieveError: If a field is of a type that has no such member, or OUT holds a shard of
            that name that is not of this packing, which stays as it is.
        ValueError: If a row is out of range or named twice.
    """
    beton = read_beton(source)
    label = known_field(beton, label_field)
    beton.labels(label)  # refuses a field that can give none
    fields = BetonFields(beton, label=label)
    if fields.without_members:
        raise ShardsieveError(
            f"fields {', '.join(fields.without_members)} of {source} have no tar member; images, "
            "integers, bytes and JSON do"
        )
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    wanted = np.arange(len(beton)) if rows is None else checked_rows(rows, len(beton))
    folder, keys, reader = Path(out), beton.keys(), LocalReader()
    pattern, paths = f"{glob.escape(name)}-*.tar", list[Path]()
    old = sorted(folder.glob(pattern))
    with told_about_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_left(folder, pattern)
        for first in range(0, len(wanted), samples_per_shard):
            path = folder / f"{name}-{len(paths):06d}.tar"
            with temporary(path) as (file, made):
                for row in wanted[first : first + samples_per_shard].tolist():
                    offset, length = beton.ranges[row].tolist()
                    data = reader.read(beton.path, offset, length) if length else b""
                    for suffix, part in fields(row, data, offset).items():
                        file.write(tar_member(f"{keys[row]}.{suffix}", part))
                file.write(bytes(2 * BLOCK))
                file.flush()
                put_shard(made, path, overwrite)
            paths.append(path)
            if progress:
                progress(min(first + samples_per_shard, len(wanted)), len(wanted))
        remove_others(old, paths, overwrite)
    return packed_tars(name, paths, len(wanted))
