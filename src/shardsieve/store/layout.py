"""Names, versions and sizes of the store's arrays: the one place that knows them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.io.clients import SCHEMES, is_remote, over_http
from shardsieve.io.objects import object_exists, put
from shardsieve.io.replacing import is_full
from shardsieve.io.source import at_once
from shardsieve.shards.names import local_name
from shardsieve.store import ending  # noqa: F401
from shardsieve.store.damage import CHECKED, read_part
from shardsieve.store.folder import Folder
from shardsieve.store.objects import Objects

FORMAT_VERSION = 1
PER_SHARD = ("shard", "sample", "embedding", "signal", "pseudo_label", "score")
"""Groups whose arrays have one row per shard."""
ROWS_MULTIPLE = 64
LOST_LABEL = -2
"""What a lost chunk of labels reads as; -1 says that a sample has none."""
_SHARDS_AT_ONCE = 32
_LONGEST_NAME = 200  # a file system takes 255, and runs put words before and behind
_SCHEMES = {f"{scheme}:" for scheme in SCHEMES}


def rows_per_shard(largest: int) -> int:
    """Return L: the largest shard's samples, rounded up so that appended shards may vary a little.

    >>> rows_per_shard(1000)
    1024
    """
    return -(-largest // ROWS_MULTIPLE) * ROWS_MULTIPLE


def stamp() -> str:
    """Return date and time as they are stored: in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def checked_name(name: str) -> str:
    """Return the name of a score, an embedding or a run: one level, of few characters.

    Raises:
        ValueError: If it has other characters than letters, digits, `_`, `-` and `.`, begins
            with `_` or `.`, or is too long for a file.
    """
    if not is_name(name):
        raise ValueError(
            f"name must be made of letters, digits, '_', '-', '.', at most {_LONGEST_NAME} bytes, "
            f"got {name!r}"
        )
    return name


def is_name(name: object) -> bool:
    """Return whether something could be the name of a score, an embedding or a run."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME
        and all(c.isalnum() or c in "_-." for c in name)
        and name[0] not in "_."
    )


def make_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: Any, fill: Any
) -> zarr.Array[Any]:
    """Create an array whose chunks are the shards: one row of the first axis each."""
    return group.create_array(
        name,
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype=dtype,
        compressors=CHECKED,
        fill_value=fill,
        overwrite=True,
    )


def place_of(path: str | Path) -> Path | str:
    """Return where a store lies: a `Path`, or a URL without a slash at its end.

    Raises:
        ShardsieveError: If it is a URL made a `Path`.
        TypeError: If it is no path at all, such as an open store.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"the place of a store must be a path or a URL, got {path!r}")
    if isinstance(path, Path) and path.parts[:1] and path.parts[0] in _SCHEMES:
        raise ShardsieveError(
            f"the URL of a store must be given as a string, got {path!r}, which has lost a slash"
        )
    return str(path).rstrip("/") if is_remote(path) else Path(local_name(str(path)))


def need_writable(place: Path | str) -> None:
    """Check that a store could be written at a place.

    Raises:
        ShardsieveError: If it is a URL over which stores are only read.
    """
    if over_http(place):
        raise ShardsieveError(
            f"store must be a folder or lie in s3://, gs:// or az://, got {place}; "
            "over http stores are read, not written"
        )


def holds_store(path: str | Path) -> bool:
    """Return whether a Zarr group lies at a path or URL."""
    if is_remote(path):
        return object_exists(f"{path}/zarr.json")
    return (Path(path) / "zarr.json").is_file()


def opened_group(path: str | Path, mode: str) -> zarr.Group:
    """Open (`r`, `r+`) the Zarr group at a path or URL; over http it is only read.

    From afar a group that is only read is known by its own table of contents: names cannot be
    listed over http, and need not be where a bucket lets everybody read.
    """
    contents: bool | None = False
    if is_remote(path):
        mode = "r" if over_http(path) else mode
        where: Any = Objects(str(path), read_only=mode == "r")
        contents = None if mode == "r" else False
    else:
        # Absolute, as a program may go to another folder while it reads.
        where = Folder(Path(path).absolute(), read_only=mode == "r")
    # Zarr would look for its older formats too, and such a bucket forbids what is not there.
    return zarr.open_group(where, mode=mode, zarr_format=3, use_consolidated=contents)  # type: ignore[arg-type]


@contextmanager
def renamed_folder(target: Path, beside: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` when the block ends without an error.

    Args:
        target: Not there yet.
        beside: A folder beside it to work in.
    """
    with told_about_disk(target), _folder_in(beside) as partial:
        yield partial / target.name
        (partial / target.name).rename(target)


@contextmanager
def uploaded_folder(target: str, beside: Path) -> Iterator[Path]:
    """Give a temporary folder that is put at the URL `target` when the block ends without an error.

    What lies there already stays unless it has the same name. The root's zarr.json, by which a
    store is known, is put last: a store that was cut short is none.

    Args:
        target: Where to put it.
        beside: A folder to work in.
    """
    with told_about_disk(target), _folder_in(beside) as folder:
        root = "zarr.json"
        yield folder
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]

        def upload(file: str) -> None:
            put(f"{target}/{file}", (folder / file).read_bytes())

        for _ in at_once(upload, sorted(set(files) - {root}), remote=True):
            pass
        upload(root)


@contextmanager
def _folder_in(folder: Path) -> Iterator[Path]:
    # After a Ctrl-C Zarr's threads write into it while it is removed; the next start does it again.
    how: dict[str, Any] = {"prefix": "store-", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(dir=folder, **how) as name:
        yield Path(name)


@contextmanager
def told_about_disk(target: Path | str) -> Iterator[None]:
    """Turn an `OSError` of a write (a full disk above all) into one line with the cure.

    Over http nothing is written, and that is said before a server is asked for what it cannot do.
    """
    need_writable(target)
    try:
        yield
    except OSError as error:
        cure = "free some space" if is_full(error) else "choose a path that can be written"
        raise ShardsieveError(
            f"cannot write the store {target}: {error.strerror or error}; {cure} and start again: "
            "what is finished is kept"
        ) from error


def stored_key(key: str) -> str:
    r"""Return a key as Zarr can hold it: its strings are UTF-8, names in a tar need not be.

    No name in a tar holds a NUL, so it marks one that is stored byte for byte.

    >>> stored_key("dog"), stored_key("gr\udcfcn")
    ('dog', '\x00grün')
    """
    try:
        key.encode()
    except UnicodeEncodeError:
        return "\0" + key.encode("utf-8", "surrogateescape").decode("latin-1")
    return key


def key_of(stored: str) -> str:
    """Return the key that the store holds as this."""
    if not stored.startswith("\0"):
        return stored
    return stored[1:].encode("latin-1").decode("utf-8", "surrogateescape")


def used_slots(samples: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """Return which slots of an (S, L) table hold a sample, of shards (S,) and L rows."""
    return np.asarray(np.arange(rows) < samples[:, None])


def unpad(table: NDArray[Any], samples: NDArray[np.int64]) -> NDArray[Any]:
    """Return the used slots of an (S, L, ...) table as one array of samples, in id order."""
    return table[: len(samples)][used_slots(samples, table.shape[1])]


def pad(values: NDArray[Any], samples: NDArray[np.int64], rows: int, fill: Any) -> NDArray[Any]:
    """Return the (S, L) table whose used slots hold these values (n,), in id order."""
    table = np.full((len(samples), rows), fill, dtype=values.dtype)
    table[used_slots(samples, rows)] = values
    return table


def read_used(array: zarr.Array[Any], samples: NDArray[np.int64]) -> NDArray[Any]:
    """Return what `unpad` makes of a stored array; a copy is held of some shards at a time."""
    ends = np.concatenate([[0], np.cumsum(samples)])
    found = np.empty((int(ends[-1]), *array.shape[2:]), dtype=array.dtype)
    for first in range(0, len(samples), _SHARDS_AT_ONCE):
        part = samples[first : first + _SHARDS_AT_ONCE]
        table = read_part(array, slice(first, first + len(part)))
        found[ends[first] : ends[first + len(part)]] = unpad(table, part)
    return found
