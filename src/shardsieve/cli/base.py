"""What every command does alike: how it is explained, and how it shows its result."""

import json
import os
from typing import Any

import typer
import yaml


def example(command: str) -> str:
    """Return the line below a command's help.

    >>> example("check --store train.zarr")
    'Example: shardsieve check --store train.zarr'
    """
    return f"Example: shardsieve {command}"


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print what a command returned, as YAML with lists of names on one line, or as JSON."""
    if os.environ.get("RANK", "0") != "0":  # under a launcher, one process speaks for all
        return
    text = json.dumps(result) if as_json else _in_words(result)
    typer.echo(text)


def _in_words(result: dict[str, Any]) -> str:
    said = {key: " ".join(one) if _are_names(one) else one for key, one in result.items()}
    return str(yaml.safe_dump(said, sort_keys=False)).rstrip()


def _are_names(found: Any) -> bool:
    """Return whether these are words, at least one: a list of none is shown as such."""
    words = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return words and bool(found) and not any(len(one.split()) != 1 for one in found)


def refuse_unused(cure: str, **given: Any) -> None:
    """Refuse options that a command would not look at.

    Args:
        cure: With or without what they must come.
        **given: By option, anything true where it was given.

    Raises:
        ValueError: Naming those that were given.
    """
    names = [f"--{name.replace('_', '-')}" for name, one in given.items() if one]
    if names:
        raise ValueError(f"{', '.join(names)} must come {cure}, or would be left unused")
