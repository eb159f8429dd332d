"""A command's result for people: a line per value, a table per list of rows, short numbers."""

import math
from collections.abc import Iterator
from typing import Any

_STEP = "  "


def lines_of(result: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of a JSON-ready result.

    >>> rows = [{"class": 0, "kept": 12}, {"class": 10, "kept": 3}]
    >>> found = {"kept": 15, "members": ["cls", "jpg"], "cost": {"forward": 5}, "classes": rows}
    >>> for line in lines_of(found):
    ...     print(line)
    kept: 15
    members: cls jpg
    cost:
      forward: 5
    classes:
      class  kept
          0    12
         10     3
    """
    for name, value in result.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from lines_of(value, indent + _STEP)
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            yield f"{indent}{name}:"
            yield from (indent + _STEP + line for line in _table(value))
        elif isinstance(value, list) and any(" " in str(one) for one in value):
            yield f"{indent}{name}:"
            yield from (f"{indent}- {word(one)}" for one in value)
        else:
            yield f"{indent}{name}: {word(value)}"


def visible(text: str) -> str:
    r"""Return a text in which a terminal finds nothing to obey: strangers choose names in shards.

    >>> visible("gr\xfcn\n\x1b[2J")
    'gr\xfcn\n\\x1b[2J'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def word(value: Any) -> str:
    """Return a value in a word or a few, numbers to four digits.

    >>> [word(one) for one in (0.0000123456, 12345.678, 7, None, True, [0.25, 0.5], [])]
    ['1.235e-05', '12346', '7', 'none', 'yes', '0.25 0.5', 'none']
    """
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(word, value))
    return str(value)


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield aligned lines, names first: numbers to the right, and what a row lacks left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column(name, [row.get(name, "") for row in rows]) for name in names]
    for cells in zip(*columns, strict=True):
        yield _STEP.join(cells).rstrip()


def _column(name: str, values: list[Any]) -> list[str]:
    cells = [name, *map(word, values)]
    width = max(map(len, cells))
    numbers = all(isinstance(one, (int, float)) for one in values)
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in cells]
