"""What the documents show: every command can be typed as it stands, every table is its record's."""

import pathlib
import re
import runpy
import shlex
from contextlib import redirect_stdout
from io import StringIO

import pytest
import typer

from shardsieve.cli import app

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]*)#?([^)\s]*)\)")
BENCHMARKS = ROOT / "benchmarks"
PROGRAM = {"tools/train_subset.py": "train", "tools/build_store.py": "build"}
TABLES = sorted(BENCHMARKS.glob("records/extrapolation_quality_*.json"))
TABLES += sorted(BENCHMARKS.glob("records/accuracy_by_share_*.json"))


def lines(text):
    """Lines of plain blocks, and what stands between backquotes and has an argument."""
    for language, block in FENCED.findall(text):
        yield from block.replace("\\\n", " ").splitlines() if not language else ()
    yield from (" ".join(quoted.split()) for quoted in QUOTED.findall(FENCED.sub("", text)))


def words_of(line):
    """The words of a shell's line, [] if it is none."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:
        return []
    return words[:-1] if words[-1:] == ["&"] else words


def commands():
    """(what is started, its arguments) of every command with arguments that a page shows."""
    for page in PAGES:
        for line in lines(page.read_text()):
            words = words_of(line)
            for at, word in enumerate(words):
                rest = words[at + 1 :]
                runs = word in PROGRAM or word.startswith(("benchmarks/", "tools/demo"))
                runs |= word == "shardsieve" and (at == 0 or words[at - 1] == "-m")
                if runs and rest and "..." not in rest and (word != "shardsieve" or len(rest) > 1):
                    yield word, rest
                    break


def anchors(page):
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = dict.fromkeys(
    (page, *match.groups())
    for page in PAGES
    for match in LINK.finditer(FENCED.sub("", page.read_text()))
    if "://" not in match[0]
)
COMMANDS = list(dict.fromkeys((what, tuple(rest)) for what, rest in commands()))


def test_commands_are_found():
    started = {what for what, _ in COMMANDS}
    assert {"shardsieve", "tools/demo.sh", "benchmarks/knn_store.py", *PROGRAM} <= started
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(("what", "rest"), COMMANDS, ids=[" ".join([w, *r]) for w, r in COMMANDS])
def test_a_command_that_is_shown_is_understood(what, rest):
    if what == "shardsieve" or what in PROGRAM:
        name, *arguments = rest if what == "shardsieve" else (PROGRAM[what], *rest)
        typer.main.get_command(app).commands[name].make_context(name, arguments)
    else:
        script = (ROOT / what.replace(".sh", ".py")).read_text()
        for option in rest:
            assert not option.startswith("--") or f'"{option}"' in script, option


@pytest.mark.parametrize(
    ("page", "path", "anchor"), LINKS, ids=[f"{page.name} {path}#{at}" for page, path, at in LINKS]
)
def test_a_link_leads_somewhere(page, path, anchor):
    target = page.parent / path if path else page
    assert target.is_file()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("record", TABLES, ids=lambda path: path.stem)
def test_a_table_is_what_its_record_says(record, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("sys.argv", ["tables.py", str(record)])
    with redirect_stdout(StringIO()) as out:
        runpy.run_path(str(BENCHMARKS / "tables.py"), run_name="__main__")
    text, page = out.getvalue(), (BENCHMARKS / "README.md").read_text()
    if record.stem.startswith("extrapolation"):  # confidence stands in the records alone
        text = re.sub(r"\nconfidence:\n\n(\|.*\n)+", "\n", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) >= 8
    assert [row for row in rows if row not in page.splitlines()] == []
