"""A keep set in the words of other loaders."""

import csv
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from betons import write_beton
from tars import write_shards, write_tar
from typer.testing import CliRunner

import shardsieve as ss
from shardsieve.cli import app, main
from shardsieve.commands.exporting import export_keep_set

HALF = {"keep_fraction": 0.5, "rule": "top", "score": "up"}


@pytest.fixture
def store(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [9, 1, 14, 6]), tmp_path / "s.zarr")
    store.put_score("up", range(30))
    return store


def test_ids_keys_and_the_list_to_exclude(store, tmp_path):
    for layout in ("ids", "keys", "energon"):
        shown = export_keep_set(store.path, tmp_path / layout, layout, HALF)
        assert (shown["kept"], shown["samples"]) == (15, 30)
    ids, keys, dropped = (
        (tmp_path / layout).read_text().splitlines() for layout in ("ids", "keys", "energon")
    )
    assert [int(i) for i in ids] == store.ids()[15:].tolist()
    assert keys[0] == "s-002.tar/02-0005"
    assert dropped[:2] == ["s-000.tar/00-0000", "s-000.tar/00-0001"]
    assert len(set(keys) | set(dropped)) == 30
    assert not set(keys) & set(dropped)


def test_shards_of_one_name_are_not_listed_by_it(tmp_path):
    """A sample to exclude was excluded from all of them."""
    shards = [*write_shards(tmp_path / "a", [3]), *write_shards(tmp_path / "b", [3])]
    store, how = ss.index(shards, tmp_path / "s.zarr"), {"keep_fraction": 0.5, "rule": "random"}
    for layout in ("keys", "energon"):
        with pytest.raises(
            ss.ShardsieveError, match=r"a/s-000\.tar and .*b/s-000\.tar; use layout"
        ):
            export_keep_set(store.path, tmp_path / layout, layout, how)
    assert export_keep_set(store.path, tmp_path / "ids", "ids", how)["kept"] == 3


@pytest.mark.parametrize("command", [["export", "OUT"], ["select", "--out", "OUT"]])
def test_what_cannot_be_written_whole_is_one_line_and_leaves_what_was_there(
    store, tmp_path, command, capsys, monkeypatch
):
    out = tmp_path / "new" / "out.txt"
    how = ["--store", str(store.path), "--score", "up", "--keep-fraction", "0.5"]
    command = ["shardsieve", *(str(out) if word == "OUT" else word for word in command), *how]
    monkeypatch.setattr(sys, "argv", command)
    for status in (0, 2):
        with pytest.raises(SystemExit) as done, limited(20 if status else resource.RLIM_INFINITY):
            main()
        assert done.value.code == status
        whole = out.read_bytes()
        assert len(whole) > 20
    assert [path.name for path in out.parent.iterdir()] == ["out.txt"]
    line = f"shardsieve: cannot write {out}: File too large; free some space or choose another"
    assert capsys.readouterr().err == f"{line} place\n"


@contextmanager
def limited(nbytes):
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_pipe_is_written_to_and_not_replaced(store):
    reading, writing = os.pipe()
    try:
        out = Path(f"/dev/fd/{writing}")
        export_keep_set(store.path, out, "ids", HALF)
        assert [int(i) for i in os.read(reading, 2**16).split()] == store.ids()[15:].tolist()
        assert out.is_fifo()
    finally:
        os.close(reading)
        os.close(writing)


def test_what_is_written_to_stays_open_and_links_stay_links(store, tmp_path):
    with (tmp_path / "redirected").open("wb", buffering=0) as file:
        out = tmp_path / "stdout"
        out.symlink_to(f"/proc/self/fd/{file.fileno()}")
        file.write(b"before\n")
        for name in (out, Path(f"/dev/fd/{file.fileno()}")):
            export_keep_set(store.path, name, "ids", HALF)
        file.write(b"after\n")
        assert out.is_symlink()
    ids = [f"{one}\n" for one in ss.select(store, **HALF).ids()]
    found = (tmp_path / "redirected").read_text()
    assert found == "".join(["before\n", *ids, *ids, "after\n"])
    link = tmp_path / "link"
    link.symlink_to("file")
    for rule, kept in ((HALF, 15), (HALF | {"keep_fraction": 0.1}, 3)):
        export_keep_set(store.path, link, "ids", rule)
        assert link.is_symlink()
        assert len((tmp_path / "file").read_text().split()) == kept


def test_what_is_piped_on_is_what_was_asked_for_alone(store):
    how = ["--store", str(store.path), "--score", "up", "--keep-fraction", "0.5", "--json"]
    for command in (["export", "/dev/stdout"], ["select", "--out", "/dev/stdout"]):
        run = [sys.executable, "-m", "shardsieve", *command, *how]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        assert [int(one) for one in done.stdout.split()] == ss.select(store, **HALF).ids().tolist()
        assert json.loads(done.stderr.splitlines()[-1])["kept"] == 15


def test_a_key_of_two_lines_is_not_listed_as_two(tmp_path):
    members = [("a.cls", b"0"), ("b\nc.cls", b"1")]
    store = ss.index(write_tar(tmp_path / "s.tar", members), tmp_path / "s.zarr")
    store.put_score("up", range(2))
    with pytest.raises(ss.ShardsieveError, match=r"got 's\.tar/b\\nc'; use layout ids or csv"):
        export_keep_set(store.path, tmp_path / "keys", "keys", HALF)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("score", ["up", None])
def test_a_table_of_every_sample(store, tmp_path, score):
    rule = HALF if score else {"keep_fraction": 0.5, "rule": "random"}
    how = [text for name, one in rule.items() for text in (f"--{name.replace('_', '-')}", str(one))]
    command = ["export", "--store", str(store.path), str(tmp_path / "t.csv"), *how]  # csv by name
    assert CliRunner().invoke(app, command).exit_code == 0
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == store.ids().tolist()
    assert [int(row["label"]) for row in rows] == store.labels().tolist()
    assert [row["key"] for row in rows] == [key for keys in store.keys_by_shard() for key in keys]
    kept = [int(row["id"]) for row in rows if int(row["kept"])]
    assert kept == ss.select(store, **rule).ids().tolist()
    if score:
        assert [float(row["up"]) for row in rows] == list(range(30))
    assert [*rows[0]] == ["id", "shard", "key", "label", "kept", *([score] if score else [])]


def test_rows_for_ffcv(store, tmp_path):
    beton = ss.index(write_beton(tmp_path / "x.beton", 40), tmp_path / "b.zarr")
    rule = {"keep_fraction": 0.25, "rule": "random"}
    export_keep_set(beton.path, tmp_path / "rows.npy", "ffcv", rule)
    rows = np.load(tmp_path / "rows.npy")
    assert rows.dtype == np.uint64
    assert rows.tolist() == ss.select(beton, **rule).ids().tolist()
    with pytest.raises(ss.ShardsieveError, match=r"needs a store of a \.beton.*--layout"):
        export_keep_set(store.path, tmp_path / "no.npy", None, HALF)
    assert export_keep_set(store.path, tmp_path / "kept", None, HALF)["layout"] == "ids"
    assert not (tmp_path / "no.npy").exists()
    with pytest.raises(ValueError, match="layout must be one of ids, keys"):
        export_keep_set(store.path, tmp_path / "no", "dali", HALF)


@pytest.mark.parametrize(
    "options",
    [{"rule": "ccs", "hard_cutoff": 0.2, "bins": 4}, {"rule": "beta", "difficulty": "unsure"}],
)
def test_every_rule_can_be_exported_with_its_options(store, tmp_path, options):
    store.put_score("unsure", -np.linspace(0.1, 0.9, 30))
    how = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = ["export", str(tmp_path / "out"), "--store", str(store.path), "--score", "up", *how]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    want = ss.select(store, score="up", keep_fraction=0.5, **options).ids().tolist()
    assert list(map(int, (tmp_path / "out").read_text().split())) == want
