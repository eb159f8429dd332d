"""A run's folder: what run it is, its newest checkpoint, its history and its result."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shardsieve._errors import ShardsieveError

IDENTITY, CHECKPOINT, MODEL = "run.json", "checkpoint.pt", "model.pt"
HISTORY, RESULT = "history.jsonl", "result.json"


class RunFolder:
    """The files of one run; each is written to a temporary name and renamed.

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
        held = self._json(IDENTITY)
        if held is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ShardsieveError(f"run folder {self.path} is in use; choose another one")
            return
        wanted = json.loads(json.dumps(identity))
        for name in sorted({*held, *wanted}):
            if held.get(name) != wanted.get(name):
                raise ShardsieveError(
                    f"run folder {self.path} holds another run: {name} is {held.get(name)!r} "
                    f"there, {wanted.get(name)!r} now; choose another folder or delete it"
                )

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Make the folder this run's own; see `refuse_another`."""
        self.refuse_another(identity)
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(IDENTITY, identity)

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, None before that."""
        return self._json(RESULT)

    def checkpoint(self) -> dict[str, Any] | None:
        """Return the newest checkpoint, None at the start of a run."""
        return self.load(CHECKPOINT)

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a saved file of tensors and plain values, None if it is not there."""
        path = self.path / name
        if not path.exists():
            return None
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file of tensors and plain values."""
        partial = self._partial(name)
        torch.save(dict(state), partial)
        self._into_place(partial, name)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._write(name, json.dumps(values, indent=2) + "\n")

    def write_history(self, epochs: list[dict[str, Any]]) -> None:
        """Write one line of JSON per finished epoch."""
        self._write(HISTORY, "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def forget_checkpoint(self) -> None:
        """Delete the checkpoint of a finished run."""
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    # Inside ---------------------------------------------------------------------------------

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _write(self, name: str, text: str) -> None:
        partial = self._partial(name)
        partial.write_text(text)
        self._into_place(partial, name)

    def _partial(self, name: str) -> Path:
        return self.path / f".{name}.partial-{os.getpid()}"

    def _into_place(self, partial: Path, name: str) -> None:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path / name)
