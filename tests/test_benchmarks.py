"""Benchmarks are run by hand and seldom: here each must at least be importable and tell its use."""

import pathlib
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    assert runpy.run_path(str(path))["__doc__"]
