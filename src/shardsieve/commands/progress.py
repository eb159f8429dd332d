"""Progress bars for long steps: rate and time left on a terminal, silence elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


class Rate(ProgressColumn):
    """What is done in a second, of what the column before it counts."""

    def render(self, task: Task) -> Text:
        """Return it, empty before anything was done."""
        if task.speed is None:
            return Text("")
        return Text(f"{task.speed:.3g}/s" if task.speed < 100 else f"{task.speed:,.0f}/s")


class Bar:
    """Draws how far a step is; a function of what is done, of how much, and a note beside it."""

    def __init__(self, drawn: Progress, title: str) -> None:
        self._drawn, self._task = drawn, drawn.add_task(title, total=None, note="")

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Draw it."""
        self._drawn.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str, *, shown: bool = True) -> Iterator[Bar]:
    """Give a progress bar on standard error: drawn on a terminal, if `shown`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, disable=not (shown and sys.stderr.isatty())
    ) as progress:
        yield Bar(progress, title)
