import os
import re

import forks
import pytest
from launching import ROOT, on_two_ranks

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What imports Lightning, for seconds, runs in one process.
LIGHTNING = pytest.mark.xdist_group("lightning")
BLOCKS = [
    pytest.param(
        match[1],
        id=f"{page.name}-{number}",
        marks=LIGHTNING if "lightning" in match[1] else (),
    )
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    for number, match in enumerate(BLOCK.finditer(page.read_text()), start=1)
]


def test_the_readme_has_examples():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("code", BLOCKS)
def test_block_runs(code):
    names = {}
    exec(compile(code, "<docs>", "exec"), names)
    assert names


@pytest.mark.slow
def test_the_loop_for_accelerate_runs_on_two_processes_as_it_stands(tmp_path):
    codes = [block.values[0] for block in BLOCKS if "accelerator.prepare(" in block.values[0]]
    assert len(codes) == 1
    (tmp_path / "loop.py").write_text(codes[0])
    on_two_ranks(tmp_path / "loop.py")


def _is_below(name, folder):
    """Whether there is such a file. A glob does not bear that folders are renamed meanwhile."""
    return any(name in files for _, _, files in os.walk(folder))


@pytest.mark.slow
def test_the_demo_stops_with_one_line_as_the_commands_do(tmp_path):
    said, how = tmp_path / "said", ["--epochs", "2000"]
    said.touch()
    demo = forks.start("tools/demo.py", tmp_path / "out", *how, err=said)
    forks.wait_for(lambda: _is_below("history.jsonl", tmp_path / "out"), demo)
    demo[0].terminate()
    assert forks.ended(demo) == [143]
    lines = said.read_text().splitlines()
    assert len(lines) == 1
    assert re.fullmatch(
        r"shardsieve: stopped in epoch \d+; the same command goes on from there", lines[0]
    )
