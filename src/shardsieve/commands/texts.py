"""Values that come as text on a command line."""

from typing import Any

import yaml


def constants(option: str, texts: list[str]) -> dict[str, Any]:
    """Return `NAME=VALUE` texts as a dictionary, values as YAML reads them.

    >>> constants("policy-arg", ["period=5", "fixed=true"])
    {'period': 5, 'fixed': True}
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--{option} must be NAME=VALUE, got {text!r}")
        found[name.replace("-", "_")] = yaml.safe_load(value)
    return found


def pairs(option: str, text: str) -> tuple[tuple[int, int], ...]:
    """Return `0:128,30:160` as pairs of integers.

    >>> pairs("resolutions", "0:128,30:160")
    ((0, 128), (30, 160))
    """
    try:
        split = [part.split(":") for part in text.split(",") if part]
        return tuple((int(first), int(second)) for first, second in split)
    except ValueError as error:
        raise ValueError(f"--{option} must be EPOCH:PIXELS,..., got {text!r}") from error
