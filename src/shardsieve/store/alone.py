"""One process at a time in a folder: ranks that index the same shards share the work of one."""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardsieve.store.layout import told_about_disk

_here = threading.local()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and work in it alone: other processes wait here until it is left.

    Whoever is done removes the folder, a killed process leaves it as it is, and an empty one goes
    when it is left. Where the file system knows no locks, nobody waits.

    Raises:
        ShardsieveError: If the folder cannot be made.
    """
    handle = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            if _lies_at(folder, handle):
                folder.rmdir()  # while nobody else is in it
        os.close(handle)


def remove_left_folder(folder: Path) -> None:
    """Remove what a killed process left of a folder that it was alone in; one in use stays.

    Where the file system knows no locks it stays too.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lies_at(folder, handle):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


@contextmanager
def in_turn(store: Path | str) -> Iterator[None]:
    """Change arrays of a store while no other process does: those that come wait here.

    Who is inside may enter again. Nobody waits where the file system knows no locks, nor in an
    object store.
    """
    if not isinstance(store, Path):
        yield
        return
    with told_about_disk(store):
        handle = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _locked_by_this_thread(handle):
            yield
    finally:
        os.close(handle)


@contextmanager
def _locked_by_this_thread(handle: int) -> Iterator[None]:
    held: set[tuple[int, int]] = _here.__dict__.setdefault("held", set())
    folder = os.fstat(handle).st_dev, os.fstat(handle).st_ino
    if folder in held:
        yield
        return
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    held.add(folder)
    try:
        yield
    finally:
        held.discard(folder)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # also for a child forked meanwhile


def _locked(folder: Path) -> int:
    """Return an open and locked folder."""
    while True:
        with told_about_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:
            os.close(handle)
            raise
        # Whoever was here may have removed it meanwhile: that lock keeps nobody out.
        with suppress(FileNotFoundError):
            if _lies_at(folder, handle):
                return handle
        os.close(handle)


def _lies_at(folder: Path, handle: int) -> bool:
    """Return whether an open folder is still the one of that name, not one that came after it."""
    return os.path.samestat(folder.stat(), os.fstat(handle))
