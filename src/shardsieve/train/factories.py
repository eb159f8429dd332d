"""Loading of anybody's own parts by their name, `package.module:factory`."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from shardsieve._errors import ShardsieveError


def load_factory(what: str, spec: str, known: Iterable[str]) -> Callable[..., object]:
    """Return the function or class that a name stands for.

    Modules in the folder that the program was started in are found, however it was started:
    `python -m` looks there by itself, an installed command and a script do not.

    Args:
        what: The setting, for messages.
        spec: `package.module:factory`.
        known: What else the setting may be, for messages.

    Raises:
        ShardsieveError: If it has another form, or nothing is there.
    """
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        others = ", ".join(known)
        raise ShardsieveError(f"{what} must be {others} or package.module:factory, got {spec!r}")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ShardsieveError(f"cannot load {what} {spec!r}: {error}; check the name") from error
    return found
