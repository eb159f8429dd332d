"""A run's folder: what run it is, its newest checkpoint, its history and its result."""

import fcntl
import hashlib
import json
import logging
import os
import re
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from shardsieve._errors import ShardsieveError
from shardsieve.io.replacing import (
    is_full,
    remove_left,
    replaced,
    temporary,
    temporary_prefix,
    to_disk,
)

IDENTITY, MODEL = "run.json", "model.pt"
HISTORY, RESULT = "history.jsonl", "result.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.pt")
_KEPT = 2
LEFT = ".shardsieve-seen-by-all-"
"""How a file begins by which processes find out whether they see one folder; see `machines`."""
_LOCK = ".lock"
# What runs of earlier releases do not say of themselves: nothing contradicts them.
_LATER = ("labels_digest", "test_labels_digest")

_LOG = logging.getLogger("shardsieve")


def differences(held: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of every name in which what `run.json` holds and a run differ."""
    wanted = json.loads(json.dumps(identity))
    names = sorted(n for n in {*held, *wanted} if n in held or n not in _LATER)
    pairs = {name: (held.get(name), wanted.get(name)) for name in names}
    return {name: (there, now) for name, (there, now) in pairs.items() if there != now}


class RunFolder:
    """The files of one run; each is written to a temporary name and renamed.

    A checkpoint's name holds its step and the digest of its bytes, and the last two are kept: one
    that was damaged is recognised, and the one before it used.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def refuse_another(self, identity: Mapping[str, Any]) -> None:
        """Check that the folder is free or holds this very run; writes nothing.

        Raises:
            ShardsieveError: If it holds another run, naming what differs.
        """
        held = self.identity()
        if held is None:
            if self.path.exists() and (not self.path.is_dir() or self._holds_anything()):
                raise ShardsieveError(f"run folder {self.path} is in use; choose another one")
            return
        for name, (there, now) in differences(held, identity).items():
            raise ShardsieveError(
                f"run folder {self.path} holds another run: {name} is {there!r} there, {now!r} "
                "now; choose another folder (for a seed run: another --name) or delete it"
            )

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's own, and this process' until it ends or drops this object.

        Raises:
            ShardsieveError: As `refuse_another`, if the folder cannot be made, or another process
                trains in it.
        """
        self.refuse_another(identity)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardsieveError(
                f"cannot make run folder {self.path}: {error.strerror}; choose another one"
            ) from error
        self._lock()
        remove_left(self.path, "*", alone=True)
        self.write_json(IDENTITY, identity)

    def identity(self) -> dict[str, Any] | None:
        """Return which run the folder holds, None if it was never claimed."""
        return self._json(IDENTITY)

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, None before that."""
        return self._json(RESULT)

    def newest_checkpoint(self) -> str | None:
        """Return the name of the newest checkpoint that is whole, None at the start of a run.

        A damaged one is passed over with a warning.
        """
        for path in self._checkpoints():
            match = _CHECKPOINT.fullmatch(path.name)
            if match and _digest(path) == match[2]:
                return path.name
            _LOG.warning("checkpoint %s is damaged; going on from the one before it", path)
        return None

    def save_checkpoint(self, state: Mapping[str, Any], steps: int) -> None:
        """Write a checkpoint after so many steps, and delete all but the one before it."""
        with self.told_about_disk(), temporary(self.path / "checkpoint") as (file, beside):
            torch.save(dict(state), file)
            to_disk(file)
            name = f"checkpoint-{steps:09d}-{_digest(beside)}.pt"
            beside.replace(self.path / name)
        older = [p for p in self._checkpoints() if p.name != name and _steps(p) <= steps]
        kept = (self.path / name, *older[: _KEPT - 1])
        self._remove(path for path in self._checkpoints() if path not in kept)

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a saved file of tensors and plain values, None if it is not there.

        Raises:
            ShardsieveError: If it is damaged.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            return _loaded(path)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise self._damaged(path) from error

    def need(self, name: str) -> dict[str, Any]:
        """Return a saved file that is there.

        Raises:
            ShardsieveError: If it is not.
        """
        held = self.load(name)
        if held is None:
            raise ShardsieveError(
                f"run folder {self.path} must hold {name}, which another process has seen there; "
                "is it on storage that all machines share?"
            )
        return held

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file of tensors and plain values."""
        self._write(name, lambda file: torch.save(dict(state), file))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._write_text(name, json.dumps(values, indent=2) + "\n")

    def write_history(self, epochs: list[dict[str, Any]]) -> None:
        """Write one line of JSON per finished epoch."""
        self._write_text(HISTORY, "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def forget_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run."""
        self._remove(self._checkpoints())

    @contextmanager
    def told_about_disk(self) -> Iterator[None]:
        """Turn an `OSError` of a write into one line with the cure."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch makes a RuntimeError of the file's own, which says nothing of the disk.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError) or cause.errno is None:  # or it is of a network
                raise
            cure = "free some space" if is_full(cause) else "see that it is there and writable"
            raise ShardsieveError(
                f"cannot write to run folder {self.path}: {cause.strerror or cause}; {cure} and "
                "start again: the run goes on from its newest checkpoint"
            ) from error

    # Inside ---------------------------------------------------------------------------------

    def _holds_anything(self) -> bool:
        # Killed while it was claimed, the folder holds a part of what says whose it is.
        ours = (LEFT, _LOCK, temporary_prefix(IDENTITY))
        return any(not path.name.startswith(ours) for path in self.path.iterdir())

    def _lock(self) -> None:
        # A record lock belongs to the process alone: workers forked from it do not keep it when
        # it is killed. Where the file system knows no locks, nothing is refused.
        with self.told_about_disk():
            handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, handle)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ShardsieveError(
                f"another process trains in run folder {self.path}; wait for it or choose another "
                "folder, and launch processes of several machines as one with --num_machines"
            ) from error
        except OSError:
            pass

    def _checkpoints(self) -> list[Path]:
        found = [p for p in self.path.glob("checkpoint-*.pt") if _CHECKPOINT.fullmatch(p.name)]
        return sorted(found, key=_steps, reverse=True)

    def _remove(self, paths: Iterable[Path]) -> None:
        with self.told_about_disk():
            for path in paths:
                path.unlink(missing_ok=True)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise self._damaged(path) from error

    def _damaged(self, path: Path) -> ShardsieveError:
        return ShardsieveError(f"{path} is damaged; delete {self.path} to train anew")

    def _write_text(self, name: str, text: str) -> None:
        self._write(name, lambda file: file.write(text.encode()))

    def _write(self, name: str, write: Callable[[IO[bytes]], Any]) -> None:
        with self.told_about_disk(), replaced(self.path / name) as file:
            write(file)
            to_disk(file)


def _steps(path: Path) -> int:
    return int(path.name.split("-")[1])


def _loaded(path: Path) -> dict[str, Any]:
    """Return what a file of torch holds if all its parts have their checksums: torch asks none."""
    with zipfile.ZipFile(path) as parts:
        if changed := parts.testzip():
            raise ValueError(changed)
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
