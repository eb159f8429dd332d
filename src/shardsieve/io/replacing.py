"""Files that appear as a whole or not at all, and what killed processes left of them."""

import errno
import fcntl
import glob
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardsieve._errors import ShardsieveError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in place of one of that name, which stays where that fails; make its folder.

    A pipe, a device or what is open, such as `/dev/stdout`, is written to and stays what it is; so
    does a symbolic link, whose file is replaced.

    Raises:
        ShardsieveError: If it cannot be written.
    """
    try:
        if (handle := _handle_of(path)) is not None:
            with os.fdopen(os.dup(handle), "wb") as file:
                file.write(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        place = path.resolve()
        remove_left_of(place)
        with replaced(place) as file:
            file.write(data)
            to_disk(file)
    except OSError as error:
        raise ShardsieveError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "place"
        ) from error


def temporary_folder() -> Path:
    """Return the folder of temporary files.

    Raises:
        ShardsieveError: If there is none that can be written, as in a container that is only read.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise ShardsieveError(
            f"cannot write temporary files: {error.strerror}; set TMPDIR to a folder that can be "
            "written and has room"
        ) from error


def is_full(error: OSError) -> bool:
    """Return whether a write failed because no more fits there."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _handle_of(path: Path) -> int | None:
    """Return the number of what a name says that this process has open, as `/dev/stdout` does.

    Opened anew by that name, a file would be written from its beginning, and what else the process
    writes there would go over it.
    """
    for place in [path, path.parent / path.readlink()] if path.is_symlink() else [path]:
        if place.name.isdigit() and place.parent.resolve() == Path(f"/proc/{os.getpid()}/fd"):
            return int(place.name)
    return None


@contextmanager
def replaced(path: Path) -> Iterator[io.BufferedWriter]:
    """Give a temporary file that becomes `path` when the block ends without an error."""
    with temporary(path) as (file, beside):
        yield file
        file.flush()
        beside.replace(path)


@contextmanager
def temporary(path: Path) -> Iterator[tuple[io.BufferedWriter, Path]]:
    """Give a file beside `path`, which is gone when the block ends unless it was renamed there.

    It is locked meanwhile: see `remove_left`.
    """
    # Not named by the process: it has threads, and other machines have its number too.
    beside = path.with_name(temporary_prefix(path.name) + os.urandom(8).hex())
    try:
        with _locked(beside) as file:
            yield file, beside
    finally:
        beside.unlink(missing_ok=True)


def temporary_prefix(name: str) -> str:
    """Return how the name of a file begins while the file of this name is written beside it."""
    return f".{name}.tmp-"


def to_disk(file: io.BufferedWriter) -> None:
    """Return when what was written to a file will outlast a power cut."""
    file.flush()
    os.fsync(file.fileno())


def _locked(path: Path) -> io.BufferedWriter:
    while True:
        file = path.open("wb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # taken for a left one before it was locked


def remove_left(folder: Path, names: str, *, alone: bool = False) -> None:
    """Remove what killed processes left of files of such names, a pattern.

    What another process is writing is locked and stays. Where the file system knows no locks
    everything stays, unless nobody else writes there (`alone`).
    """
    for left in folder.glob(f"{temporary_prefix(names)}*"):
        with suppress(OSError), left.open("r+b") as file:
            if not alone:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def remove_left_of(path: Path) -> None:
    """Remove what killed processes left of one file; see `remove_left`."""
    remove_left(path.parent, glob.escape(path.name))
