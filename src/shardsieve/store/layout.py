"""Names, versions and sizes of the store's arrays: the one place that knows them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError

FORMAT_VERSION = 1
SHARD_ARRAYS = ("url", "samples", "nbytes", "fingerprint", "table")
ROWS_MULTIPLE = 64


def rows_per_shard(largest: int) -> int:
    """Return L: the largest shard's samples, rounded up so that appended shards may vary a little.

    >>> rows_per_shard(1000)
    1024
    """
    return -(-largest // ROWS_MULTIPLE) * ROWS_MULTIPLE


def make_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, fill: Any
) -> zarr.Array[Any]:
    """Create an array whose chunks are the shards: one row of the first axis each."""
    return group.create_array(
        name,
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        overwrite=True,
    )


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends without an error."""
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with told_about_disk(target):
            yield partial
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            if target.exists():
                target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def told_about_disk(target: Path) -> Iterator[None]:
    """Turn an `OSError` of a write (a full disk above all) into one line with the cure."""
    try:
        yield
    except OSError as error:
        raise ShardsieveError(
            f"cannot write the store {target}: {error.strerror or error}; "
            "free some space and start again: finished shards are kept"
        ) from error


def unpad(table: NDArray[Any], samples: NDArray[np.int64]) -> NDArray[Any]:
    """Return the used slots of an (S, L, ...) table as one array of samples, in id order."""
    used = np.arange(table.shape[1]) < samples[:, None]
    return table[used]
