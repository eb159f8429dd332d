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
    """Print what a command returned, as YAML or JSON."""
    if os.environ.get("RANK", "0") != "0":  # under a launcher, one process speaks for all
        return
    text = json.dumps(result) if as_json else yaml.safe_dump(result, sort_keys=False).rstrip()
    typer.echo(text)


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
