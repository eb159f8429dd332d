"""What a person sees while a step is under way."""

import io
import sys

from shardsieve.commands.progress import bar
from shardsieve.io.counts import Counts


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_shows_what_was_read(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with bar("train") as progress:
        progress(3, 8, str(Counts(kept=5_000_000, read=6_000_000, requests=9)))
    assert "3/8" in screen.getvalue()
    assert "6.0 MB read, 1.20 of what was kept" in screen.getvalue()


def test_nothing_is_drawn_where_nobody_looks(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with bar("train") as progress:
        progress(3, 8, "note")
    assert screen.getvalue() == ""
