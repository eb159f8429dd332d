"""What every command does alike: how it is explained, and how it shows its result."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import typer

from shardsieve._errors import ShardsieveError
from shardsieve.cli.shown import lines_of, visible

_OUTPUT = Path("/dev/stdout")


def example(command: str) -> str:
    """Return the line below a command's help.

    >>> example("check --store train.zarr")
    'Example: shardsieve check --store train.zarr'
    """
    return f"Example: shardsieve {command}"


def show(result: dict[str, Any], as_json: bool, *, out: Path | None = None) -> None:
    """Print what a command returned, for people or as JSON.

    Args:
        result: JSON-ready.
        as_json: Print JSON.
        out: What the command has written; where that is standard output, which may be piped on,
            the result goes to standard error.

    Raises:
        ShardsieveError: If the disk is full that it is sent to.
    """
    if os.environ.get("RANK", "0") != "0":  # under a launcher, one process speaks for all
        return
    text = json.dumps(result) if as_json else visible("\n".join(lines_of(result)))
    try:
        typer.echo(text, err=out is not None and out.resolve() == _OUTPUT.resolve())
    except BrokenPipeError:
        raise
    except OSError as error:
        print_no_more()
        raise ShardsieveError(
            f"cannot print the result: {error.strerror}; the work is done: free some space, and "
            "the same command says it again"
        ) from error


def print_no_more() -> None:
    """Let go of what could not be printed: Python would try again at its end, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, be it with its usual value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_unused(context: typer.Context, cure: str, *names: str) -> None:
    """Refuse options that are given and that a command would not look at.

    Args:
        context: Of the command.
        cure: With or without what they must come.
        *names: Of the options, as Python has them.

    Raises:
        ValueError: Naming those that are given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if is_given(context, name)]
    if given:
        raise ValueError(f"{', '.join(given)} must come {cure}, or would be left unused")
