"""The command line: arguments in, one command each, errors as one line.

Groups of commands are `shards`, `scores`, `kept` and `trainings`; `options` has what they share.
"""

import errno
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from shardsieve._errors import ShardsieveError
from shardsieve._version import __version__
from shardsieve.cli import kept, scores, shards, trainings
from shardsieve.cli.base import print_no_more
from shardsieve.cli.shown import visible
from shardsieve.train.ending import Stopped, end_processes, first_to_say, lost_process

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score a little, extrapolate the rest, and skip samples while streaming.",
)
# What stands on the command line wrongly; typer gives its name no one of its own.
_UsageError: Any = typer.BadParameter.__base__
# What torch puts before the message of an error of a loader's worker: where it was raised.
_FROM_WORKER = re.compile(
    r"\ACaught \w+ in .+\nOriginal Traceback .*^[\w.]+: ", re.DOTALL | re.MULTILINE
)
_INTERRUPTED = 130  # as typer has it for a Ctrl-C


def _say_release(asked: bool) -> None:
    if asked:
        typer.echo(f"shardsieve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say which release.", callback=_say_release, is_eager=True),
    ] = False,
) -> None:
    """Hold the options of the program itself."""


for group in (shards, scores, kept, trainings):
    app.add_typer(group.app)


def run(call: Callable[[], Any]) -> int:
    """Return the exit status of a call: 2 for a user's error, 130 and 143 after SIGINT and SIGTERM.

    Of these three there is one line each.

    Args:
        call: May return a status of its own.
    """
    try:
        status = call()
    except SystemExit:  # of a closed pipe
        end_processes()
        raise
    except _UsageError as error:
        _hint_at_longer_names(error)
        # Without a message the help was asked for, and is printed.
        if text := " ".join(error.format_message().split()).rstrip("."):
            _say(f"shardsieve: {text[0].lower()}{text[1:]}; see `{_program(error)} --help`\n")
        return 2
    except (ShardsieveError, ValueError) as error:
        _say(f"shardsieve: {_FROM_WORKER.sub('', str(error)).strip()}\n")
        end_processes()
        return 2
    except RuntimeError as error:
        if not lost_process(error):
            raise
        first = str(error).strip().partition(". ")[0][:200]
        _say(
            f"shardsieve: another process of this run has ended, and says why where it ran "
            f"({first}); the same commands go on from the newest checkpoint\n"
        )
        return 1
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Stopped as stopped:
        end_processes()
        _say(f"shardsieve: {stopped}; the same command goes on from there\n")
        return 143
    if status == _INTERRUPTED:
        _say("shardsieve: interrupted; the same command goes on from what is done\n")
    end_processes()
    return status if isinstance(status, int) else 0


def _hint_at_longer_names(error: Any) -> None:
    """Where one name begins the other, as --keep and --keep-fraction, typer sees no likeness."""
    wrong = getattr(error, "option_name", None)
    if wrong and error.ctx:
        known = {name for param in error.ctx.command.params for name in param.opts}
        alike = [n for n in known if n.startswith(wrong) or wrong.startswith(f"{n}-")]
        error.possibilities = alike or error.possibilities


def _program(error: Any) -> str:
    return error.ctx.command_path if error.ctx else "shardsieve"


def _say(line: str) -> None:
    # What all processes of a launch have to say is said once.
    if first_to_say(line):
        sys.stderr.write(visible(line))
        sys.stderr.flush()


def main() -> None:
    """Run the program: exit 0 when done, 2 for a user's error, 130 and 143 after the signals.

    A fault keeps its traceback.
    """
    sys.exit(run(_on_any_disk))


def _on_any_disk() -> Any:
    try:
        return app(prog_name="shardsieve", standalone_mode=False)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print_no_more()
        raise ShardsieveError(f"{error.strerror}; free some space and start again") from error
