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
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(yaml.safe_dump(_in_words(result), sort_keys=False).rstrip())


def _in_words(found: Any) -> Any:
    """Return a result with one string for a list of words; a list of none stays one.

    >>> _in_words({"index": {"members": ["cls", "jpg"]}, "scores": []})
    {'index': {'members': 'cls jpg'}, 'scores': []}
    """
    if isinstance(found, dict):
        return {name: _in_words(one) for name, one in found.items()}
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        return found
    return " ".join(found) if found and all(len(one.split()) == 1 for one in found) else found


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
