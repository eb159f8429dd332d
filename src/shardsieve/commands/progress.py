"""How far long steps are, with rate and time left: a bar on a terminal, else a line a minute."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_EVERY = 60.0  # seconds


def _rate(speed: float) -> str:
    return f"{speed:.3g}/s" if speed < 100 else f"{speed:,.0f}/s"


class Rate(ProgressColumn):
    """What is done in a second, of what the column before it counts."""

    def render(self, task: Task) -> Text:
        """Return it, empty before anything was done."""
        return Text("" if task.speed is None else _rate(task.speed))


class Lines:
    """Writes to standard error how far a step is, for whoever reads a log: a line a minute."""

    def __init__(self, title: str) -> None:
        self._title, self._written = title, monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, *, completed: int, total: int, note: str) -> None:
        """Write a line, if it is time for one."""
        now = monotonic()
        # A step that goes on where it was stopped does not begin at 0.
        begun, since = self._first = self._first or (completed, now)
        if now - self._written < _EVERY:
            return
        self._written = now
        told = [f"{self._title}: {completed}/{total}"]
        if completed > begun:
            rate = (completed - begun) / (now - since)
            # Steps may be more than were expected, where losses decide about them.
            left = timedelta(seconds=round(max(total - completed, 0) / rate))
            told += [_rate(rate), f"{left} left"]
        sys.stderr.write(", ".join([*told, *([note] if note else [])]) + "\n")
        sys.stderr.flush()


class Bar:
    """Says how far a step is; a function of what is done, of how much, and a note beside it."""

    def __init__(self, update: Callable[..., Any]) -> None:
        self._update = update

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say it."""
        self._update(completed=done, total=total, note=note)


@contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Bar]:
    """Give what says on standard error how far a step is, if `shown`."""
    if shown and not sys.stderr.isatty():
        yield Bar(Lines(title).update)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        yield Bar(partial(progress.update, progress.add_task(title, total=None, note="")))
