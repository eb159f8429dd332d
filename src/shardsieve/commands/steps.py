"""What is known about the steps of a chain, on disk: which are finished, from what, with what."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError
from shardsieve.io.replacing import write_whole

Result = dict[str, Any]

STEPS = ("index", "score", "embed", "ask", "extrapolate", "train", "report")
"""Of a chain, in their usual order."""


class Steps:
    """The file of a chain's steps, replaced in one rename at every change.

    A step is *finished* when its entry holds the digest of its inputs, the mark of its output and
    its result. While it is made, its entry says from which inputs it was `begun`, and at all times
    what it `made`, or may have made before it was killed.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps = _held(path) if path.is_file() else {}

    def result(self, name: str, inputs: str, output: Callable[[Result], Any]) -> Result | None:
        """Return the result of a step that was finished from these inputs; None of any other.

        Args:
            name: Of the step.
            inputs: Digest.
            output: Returns the mark of what a result speaks of, as it is now.
        """
        held = self._steps.get(name, {})
        if held.get("inputs") != inputs or held.get("output") is None:
            return None
        result: Result = held["result"]
        return result if output(result) == held["output"] else None

    def made(self, name: str, store: str) -> list[str]:
        """Return what a step made in a store, or may have made before it was killed."""
        held = self._steps.get(name, {})
        return list(held.get("made", [])) if held.get("store") == store else []

    def begin(
        self, name: str, inputs: str, made: Iterable[str], store: str, remove: Callable[[str], None]
    ) -> None:
        """Say that a step is being made, after all that it made before is removed.

        A step that was begun from these inputs and killed keeps what it has made so far.

        Args:
            name: Of the step.
            inputs: Digest.
            made: Names of what it is going to make in the store, as far as it is not there yet.
            store: Where that is; nothing is removed from another one.
            remove: Called with every name to remove, whether it is there or not.
        """
        held, made = self._steps.get(name, {}), list(made)
        if held.get("begun") == inputs:
            return
        old = self.made(name, store)
        # Killed in between, it is neither begun nor finished, and all is removed again.
        self._put(name, {"made": sorted({*old, *made}), "store": store})
        for one in old:
            remove(one)
        self._put(name, {"begun": inputs, "made": made, "store": store})

    def finish(
        self, name: str, inputs: str, output: Any, result: Result, made: Iterable[str]
    ) -> None:
        """Say that a step is finished, and name all that it made in the store."""
        about = {"inputs": inputs, "output": output, "result": result}
        self._put(name, {**about, "made": list(made), "store": self._steps[name]["store"]})

    def _put(self, name: str, entry: dict[str, Any]) -> None:
        self._steps[name] = entry
        write_whole(self.path, (json.dumps(self._steps, indent=1) + "\n").encode())


def _held(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ShardsieveError(
            f"{path} is damaged; delete it: finished runs are found again, other steps made again"
        ) from error
