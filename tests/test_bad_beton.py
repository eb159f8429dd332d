"""What is wrong with a .beton ends in one line with the cure, status 2, nothing half-written."""

import os
import sys

import numpy as np
import pytest
from betons import write_beton
from ffcv.fields import FloatField, IntField, RGBImageField

import shardsieve as ss
from shardsieve import cli
from shardsieve.shards.beton import ALLOCATION, DESCRIPTOR, HEADER


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file of 40 rows."""
    return write_beton(tmp_path_factory.mktemp("b") / "train.beton", 40, side=16).read_bytes()


def index(tmp_path):
    return ["index", f"{tmp_path}/train.beton", "--store", f"{tmp_path}/new.zarr"]


def train(tmp_path, *more):
    return ["train", "--out", f"{tmp_path}/run", *(more or ["--data", f"{tmp_path}/train.beton"])]


def spoiled(tmp_path, change):
    path = tmp_path / "train.beton"
    path.write_bytes(change(path.read_bytes()))


def no_beton(tmp_path, monkeypatch):
    spoiled(tmp_path, lambda raw: b"not at all a beton" * 1000)
    return index(tmp_path)


def empty(tmp_path, monkeypatch):
    spoiled(tmp_path, lambda raw: b"")
    return index(tmp_path)


def gone(tmp_path, monkeypatch):
    (tmp_path / "train.beton").unlink()
    return index(tmp_path)


def truncated(tmp_path, monkeypatch):
    spoiled(tmp_path, lambda raw: raw[:-40])
    return index(tmp_path)


def truncated_training(tmp_path, monkeypatch):
    spoiled(tmp_path, lambda raw: raw[:3000])
    return train(tmp_path)


def unfinished(tmp_path, monkeypatch):
    at = HEADER.fields["alloc_table_ptr"][1]
    spoiled(tmp_path, lambda raw: raw[:at] + bytes(8) + raw[at + 8 :])
    return index(tmp_path)


def bytes_outside(tmp_path, monkeypatch):
    """Their end overflows: it is a place in the file."""
    last = np.array((0, 2**64 - 8, 64), ALLOCATION).tobytes()
    spoiled(tmp_path, lambda raw: raw[: -len(last)] + last)
    return index(tmp_path)


def another_version(tmp_path, monkeypatch):
    spoiled(tmp_path, lambda raw: b"\x01" + raw[1:])
    return index(tmp_path)


def changed(tmp_path, monkeypatch):
    ss.index(tmp_path / "train.beton", tmp_path / "train.zarr")
    os.utime(tmp_path / "train.beton", (1, 1))
    return ["info", "--store", f"{tmp_path}/train.zarr", "--keep", "0.5"]


def changed_training(tmp_path, monkeypatch):
    ss.index(tmp_path / "train.beton", tmp_path / "train.zarr")
    os.utime(tmp_path / "train.beton", (1, 1))
    return train(tmp_path)


def other_rows(tmp_path, monkeypatch):
    """Size and time as indexed, other tables."""
    path = tmp_path / "train.beton"
    ss.index(path, tmp_path / "train.zarr")
    stat = path.stat()
    table = 24 * 40
    spoiled(tmp_path, lambda raw: raw[:-table] + raw[-table + 24 :] + raw[-table : -table + 24])
    spoiled(tmp_path, lambda raw: raw[: -table + 8] + b"\x08" + raw[-table + 9 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return ["check", "--store", f"{tmp_path}/train.zarr"]


def label_of_floats(tmp_path, monkeypatch):
    floats(tmp_path)
    return [*index(tmp_path), "--label-member", "real"]


def unknown_field(tmp_path, monkeypatch):
    return [*index(tmp_path), "--label-member", "klass"]


def floats(tmp_path):
    class Floats:
        def __len__(self):
            return 4

        def __getitem__(self, row):
            return float(row), np.full((8, 8, 3), row, np.uint8)

    fields = {"real": FloatField(), "image": RGBImageField()}
    write_beton(tmp_path / "train.beton", data=Floats(), fields=fields)


def no_label(tmp_path, monkeypatch):
    floats(tmp_path)
    return train(tmp_path, "--data", f"{tmp_path}/train.beton", "--rule", "random")


def no_image(tmp_path, monkeypatch):
    class Numbers:
        def __len__(self):
            return 4

        def __getitem__(self, row):
            return (row,)

    write_beton(tmp_path / "train.beton", data=Numbers(), fields={"label": IntField()})
    return train(tmp_path)


def custom_field(tmp_path, monkeypatch):
    at = HEADER.itemsize + DESCRIPTOR.itemsize
    spoiled(tmp_path, lambda raw: raw[:at] + b"\xff" + raw[at + 1 :])
    return train(tmp_path)


def custom_label(tmp_path, monkeypatch):
    at = HEADER.itemsize + DESCRIPTOR.itemsize
    spoiled(tmp_path, lambda raw: raw[:at] + b"\xff" + raw[at + 1 :])
    return [*index(tmp_path), "--label-member", "label"]


def two_files(tmp_path, monkeypatch):
    (tmp_path / "more.beton").write_bytes((tmp_path / "train.beton").read_bytes())
    return ["index", f"{tmp_path}/*.beton", "--store", f"{tmp_path}/new.zarr"]


def no_ffcv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    return train(tmp_path)


def no_ffcv_for_a_store(tmp_path, monkeypatch):
    ss.index(tmp_path / "train.beton", tmp_path / "train.zarr")
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    return train(tmp_path, "--store", f"{tmp_path}/train.zarr")


def nothing_named(tmp_path, monkeypatch):
    return train(tmp_path, "--rule", "random")


def another_store(tmp_path, monkeypatch):
    (tmp_path / "more.beton").write_bytes((tmp_path / "train.beton").read_bytes())
    ss.index(tmp_path / "more.beton", tmp_path / "more.zarr")
    how = ["--data", f"{tmp_path}/train.beton", "--store", f"{tmp_path}/more.zarr"]
    return train(tmp_path, *how)


CASES = [
    (no_beton, "is not a .beton"),
    (empty, "is not a .beton"),
    (gone, "no such file"),
    (truncated, "is truncated"),
    (truncated_training, "is truncated"),
    (unfinished, "never finished"),
    (bytes_outside, "its allocation table names samples or bytes that the file does not have"),
    (another_version, "of version 1, version 2 is read; write it again with ffcv 1.0"),
    (changed, "is not the one that"),
    (changed_training, "index again"),
    (other_rows, "holds other samples than the index"),
    (label_of_floats, "cannot give labels: it is no integer field"),
    (unknown_field, "field must be one of those in"),
    (no_label, "have no label"),
    (no_image, "must have an RGBImageField"),
    (custom_field, "prune your own Loader"),
    (custom_label, "put labels with store.put_score or write plain FFCV fields"),
    (two_files, "make a store for each"),
    (no_ffcv, "pip install 'shardsieve[ffcv]'"),
    (no_ffcv_for_a_store, "pip install 'shardsieve[ffcv]'"),
    (nothing_named, "--data FILE.beton"),
    (another_store, "choose another --store"),
]


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=[c[0].__name__ for c in CASES])
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path, whole, monkeypatch, capsys, spoil, message
):
    (tmp_path / "train.beton").write_bytes(whole)
    arguments = spoil(tmp_path, monkeypatch)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["shardsieve", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert done.value.code == 2, said
    assert said.startswith("shardsieve: ")
    assert len(said.splitlines()) == 1
    assert message in said
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    # An index that training made on its way is whole and stays.
    made = {p for p in set(after) - set(before) if "train.zarr" not in p.parts}
    assert not made
    assert all(after[p] == before[p] for p in before if p != tmp_path)
