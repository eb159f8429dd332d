"""The import rules of docs/design.md, kept by a test instead of by memory."""

import dis
import pathlib
import types

import pytest

import shardsieve

ROOT = pathlib.Path(__file__).parents[1] / "src" / "shardsieve"

CORE = {"_errors", "_faiss", "order", "scores", "selection", "strata", "betadraw", "doubts"}
DATA = CORE | {"shards", "io", "store"}
MAY_IMPORT = {
    "_errors": set(),
    "_faiss": {"_errors"},
    "_later": set(),
    "_version": set(),
    "order": set(),
    "selection": {"_errors", "order", "scores"},
    "betadraw": {"order", "selection"},
    "doubts": {"selection"},
    "strata": {"_errors", "order", "scores", "selection"},
    "plan": {"order"},
    "epoch": {"order"},
    "scores": {"_faiss"},
    "extrapolate": CORE,
    "shards": {"_errors"},
    "io": {"_errors"},
    "store": {"_errors", "shards", "io", "scores"},  # of scores, what takes in values
    "rules": DATA,
    "keepset": DATA | {"rules"},
    "pack": DATA,
    "cost": set(),
    "policy": DATA,
    "loaders": DATA | {"epoch", "keepset", "plan", "policy"},
    "train": DATA | {"cost", "keepset", "loaders", "plan", "policy", "scores"},
    "report": DATA | CORE | {"keepset", "loaders", "extrapolate", "train"},
    "commands": DATA
    | {"train", "report"}
    | {"cost", "keepset", "plan", "epoch", "policy", "rules", "scores", "extrapolate", "pack"}
    | {"loaders"},
    "cli": {"_errors", "commands", "cost", "policy", "train"},
    "__main__": {"cli"},
}

# Each heavy library has one home; everything else imports, and is tested, without it.
HOMES = {
    "zarr": "store",
    "faiss": "_faiss",
    "torch_geometric": "extrapolate",
    "torch": "loaders",
    "obstore": "io",
    "boto3": "io",
    "huggingface_hub": "io",
    "sklearn": "extrapolate",
    "webdataset": "loaders",
    "ffcv": "loaders",
    "accelerate": "loaders",
    "typer": "cli",
    "matplotlib": "report",
    "jinja2": "report",
}
ALSO = {
    ("pack", "sklearn"),
    ("extrapolate", "torch"),
    ("policy", "torch"),
    ("scores", "torch"),
    ("train", "torch"),
    ("train", "accelerate"),
    ("train", "zarr"),
}


def instructions(path):
    """Everything that the file does, inside functions too.

    CPython 3.11's `ast.parse` fails now and then in a process that has done much else ("recursion
    depth mismatch"); compiling does not build its objects.
    """
    codes = [compile(path.read_text(), str(path), "exec")]
    while codes:
        code = codes.pop()
        yield from dis.get_instructions(code)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]


def imported(path):
    """Every module that the file imports; of the package itself, what it takes from there."""
    names = ()
    for one in instructions(path):
        if one.opname == "IMPORT_NAME":
            whole = one.argval == "shardsieve" and names
            yield from [f"shardsieve.{name}" for name in names] if whole else [one.argval]
        names = one.argval


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "shardsieve":
            target = rest.partition(".")[0]
            allowed = MAY_IMPORT[layer] | {layer, "_later", "_version"}
            assert target in allowed, f"{layer} must not import {name}"
        if (layer, top) in ALSO:
            continue
        assert HOMES.get(top, layer) == layer, f"{top} belongs in {HOMES[top]}, not in {layer}"


@pytest.mark.parametrize(
    "package", [shardsieve, shardsieve.extrapolate, shardsieve.scores], ids=lambda one: one.__name__
)
def test_every_public_name_exists_once_and_is_listed(package):
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
    assert dir(package) == sorted(package.__all__)


def test_type_checkers_see_every_public_name():
    """They read names from imports that never run, and `__all__` where it is written out."""
    done = list(instructions(ROOT / "__init__.py"))
    seen = {one.argval for one in done if one.opname == "IMPORT_FROM"}
    assert seen - {"later", "TYPE_CHECKING"} == set(shardsieve.__all__)
    assert tuple(shardsieve.__all__) in [one.argval for one in done if one.opname == "LOAD_CONST"]
