"""What the processes of a launch must have in common, asked once before anything is made."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from shardsieve._errors import ShardsieveError, StoreMismatchError
from shardsieve.store.store import Store, open_store
from shardsieve.train.launch import on_main
from shardsieve.train.runfolder import LEFT, RunFolder

T = TypeVar("T")

_SECONDS = 3.0


def on_all(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Return what this process makes; what one of them refuses, all of them raise."""
    made: list[T] = []
    refused: Exception | None = None
    try:
        made.append(make())
    except (ShardsieveError, ValueError) as error:
        refused = error
    if accelerator.num_processes > 1:
        said = gather_object([(refused, platform.node())])
        refused = _first_refusal(said)
    if refused is not None:
        raise refused
    return made[0]


def open_together(accelerator: Accelerator, path: Path, *, mode: str = "r+") -> Store:
    """Open a store on every process; to be written it must be one that all of them see.

    Raises:
        ShardsieveError: On all processes, if one of them cannot open it or opens another one.
    """
    if mode != "r":
        check_shared(accelerator, {"store": path})
    store = on_all(accelerator, lambda: open_store(path, mode=mode))
    check_same(accelerator, {"store": store.fingerprint})
    return store


def enter_run(
    accelerator: Accelerator, run: RunFolder, identity: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the result of a run if it is finished; the main process' view counts.

    Raises:
        ShardsieveError: On all processes, if they do not share the folder or were given different
            runs, or it holds another one.
    """
    check_same(accelerator, identity)
    check_shared(accelerator, {"run folder": run.path})
    on_main(accelerator, lambda: run.refuse_another(identity))
    return on_main(accelerator, partial(_finished, run))


def _finished(run: RunFolder) -> dict[str, Any] | None:
    result = run.result()
    if result is not None:
        run.forget_checkpoints()  # of a process that was killed before it had
    return result


def check_same(accelerator: Accelerator, what: Mapping[str, Any]) -> None:
    """Check that every process was given the same.

    Raises:
        StoreMismatchError: On all of them, naming the first difference.
    """
    if accelerator.num_processes == 1:
        return
    found = gather_object([(dict(what), platform.node())])
    ours = found[0][0]
    for rank, (theirs, host) in enumerate(found):
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                raise StoreMismatchError(
                    f"{name} must be the same on every process, got {ours.get(name)!r} on process "
                    f"0 and {theirs.get(name)!r} on process {rank} ({host}); give every machine "
                    "the same command, files and release"
                )


def check_shared(accelerator: Accelerator, folders: Mapping[str, Path]) -> None:
    """Check that every process sees the main process' folders, be they made yet or not.

    The main process leaves a file in each for a moment, or in the nearest folder above that is
    there, and the others look for it.

    Args:
        accelerator: From `make_accelerator`.
        folders: By what they are called in the message.

    Raises:
        ShardsieveError: On all processes, naming a folder and who does not see it.
    """
    if accelerator.num_processes == 1:
        return
    left = on_main(accelerator, lambda: [_leave(folder) for folder in folders.values()])
    files = [
        _above(folder, one[0]) / one[1] if one else None
        for folder, one in zip(folders.values(), left, strict=True)
    ]
    found = gather_object([([not file or _sees(file) for file in files], platform.node())])
    if accelerator.is_main_process:
        for file in filter(None, files):
            file.unlink(missing_ok=True)
    for rank, (one, host) in enumerate(found):
        for (called, folder), is_seen in zip(folders.items(), one, strict=True):
            if not is_seen:
                raise ShardsieveError(
                    f"{called} {folder} must lie on storage that all machines share, but process "
                    f"{rank} ({host}) does not see process 0's; give one path that all of them see"
                )


def _first_refusal(said: list[tuple[Exception | None, str]]) -> Exception | None:
    """Return the first error, with where it was said unless all say the same."""
    lines = {str(error) for error, _ in said}
    for rank, (error, host) in enumerate(said):
        if error is not None:
            if len(lines) == 1:
                return error
            # Other errors may not be made of one line.
            kind = type(error) if isinstance(error, ShardsieveError) else ValueError
            return kind(f"process {rank} ({host}): {error}")
    return None


def _leave(folder: Path) -> tuple[int, str] | None:
    """Leave a file; return so many levels above the folder it lies, and its name.

    None if nothing can be written there: then there is nothing to share either.
    """
    # A new name: file systems remember for a while that a name was not there.
    name, levels = LEFT + os.urandom(8).hex(), 0
    while not _above(folder, levels).is_dir():
        levels += 1
    try:
        (_above(folder, levels) / name).touch()
    except OSError:
        return None
    return levels, name


def _above(folder: Path, levels: int) -> Path:
    return [folder, *folder.parents][levels]


def _sees(path: Path) -> bool:
    until = time.monotonic() + _SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
