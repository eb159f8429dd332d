import fcntl
import gzip
import shutil
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tars import by_webdataset

import shardsieve as ss
from shardsieve.pack import pack, writer
from shardsieve.pack.beton import pack_beton
from shardsieve.shards.pixels import IMAGE_SUFFIXES
from shardsieve.train.images import ImageDecoder


@pytest.fixture
def images(tmp_path):
    for c in ("cat", "dog", "eel"):
        (tmp_path / "in" / c).mkdir(parents=True)
        for i in range(8):
            path = tmp_path / "in" / c / f"{i}.{'JPG' if i % 2 else 'png'}"
            Image.fromarray(np.full((4, 4), i * 9, np.uint8)).save(path, "JPEG" if i % 2 else "PNG")
    return tmp_path / "in"


def read(split):
    return [sample for path in split.shards for sample in by_webdataset(Path(path))]


def test_webdataset_reads_every_image_back_untouched(images, tmp_path):
    (split,) = pack(images, tmp_path / "out", samples_per_shard=7)
    samples = read(split)
    got = sorted((s["cls"], s.get("jpg") or s["png"]) for s in samples)
    want = sorted(
        (str(label).encode(), path.read_bytes())
        for label, c in enumerate(("cat", "dog", "eel"))
        for path in (images / c).iterdir()
    )
    assert got == want
    assert len(split.shards) == 4
    assert split.classes == ("cat", "dog", "eel")
    first = [s["cls"] for s in samples[:7]]
    assert len(set(first)) > 1
    assert len(ss.index(split.pattern, tmp_path / "s.zarr")) == 24


def test_the_same_seed_gives_the_same_bytes(images, tmp_path):
    a, b, c = (pack(images, tmp_path / str(i), seed=i // 2)[0].shards[0] for i in range(3))
    raw = [Path(path).read_bytes() for path in (a, b, c)]
    assert raw[0] == raw[1] != raw[2]


def test_a_shard_holds_no_more_bytes_than_asked(images, tmp_path):
    (split,) = pack(images, tmp_path / "out", samples_per_shard=None, bytes_per_shard=9000)
    sizes = [(tmp_path / "out" / p.rsplit("/", 1)[1]).stat().st_size for p in split.shards]
    assert max(sizes) <= 9000 + 1024
    assert len(read(split)) == 24


@pytest.mark.parametrize("to", ["tar", "beton"])
def test_what_a_killed_packing_left_goes_and_what_is_being_written_stays(images, tmp_path, to):
    out = tmp_path / "out"
    out.mkdir()
    name = "train-000123.tar" if to == "tar" else "train.beton"
    left, busy = (out / f".{name}.tmp-{pid}" for pid in (1, 2))
    for path in (left, out / ".classes.json.tmp-1"):
        path.write_bytes(b"cut short")
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (pack if to == "tar" else pack_beton)(images, out)
    assert [path for path in out.iterdir() if path.name.startswith(".")] == [busy]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_packed_by_split(tmp_path, zipped):
    for prefix, n in (("train", 6), ("t10k", 3)):
        pixels = np.arange(n * 4, dtype=np.uint8)
        images = struct.pack(">4i", 0x803, n, 2, 2) + pixels.tobytes()
        labels = struct.pack(">2i", 0x801, n) + bytes(range(n))
        for name, raw in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(raw) if zipped else raw)
    train, test = pack(tmp_path, tmp_path / "out")
    assert (train.samples, test.samples) == (6, 3)
    assert sorted(s["cls"] for s in read(test)) == [b"0", b"1", b"2"]


def test_an_idx_file_that_was_not_loaded_to_its_end_is_named(tmp_path):
    for prefix, name in product(("train", "t10k"), ("images-idx3", "labels-idx1")):
        path = tmp_path / f"{prefix}-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(bytes(99))[:-9])
    with pytest.raises(ss.ShardsieveError, match=r"-ubyte\.gz is no whole gzip file; download"):
        pack(tmp_path, tmp_path / "out")


def test_digits_hold_out_a_fifth_of_every_class(tmp_path):
    train, test = pack("digits", tmp_path / "out")
    assert (train.samples, test.samples) == (1438, 359)
    counts = np.bincount([int(s["cls"]) for s in read(test)])
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_a_failed_write_leaves_nothing_half_written(images, tmp_path, monkeypatch):
    calls = []

    def full(name, data):
        calls.append(name)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return member(name, data)

    member = writer.tar_member
    monkeypatch.setattr(writer, "tar_member", full)
    with pytest.raises(ss.ShardsieveError, match="No space left on device"):
        pack(images, tmp_path / "out", samples_per_shard=8)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["train-000000.tar"]


def test_bad_sources_are_refused(images, tmp_path):
    with pytest.raises(ss.ShardsieveError, match="must be a folder, 'digits' or 'fashion-mnist'"):
        pack(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ss.ShardsieveError, match="no class folders"):
        pack(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "a").mkdir()
    with pytest.raises(ss.ShardsieveError, match="has no images; move it elsewhere"):
        pack(tmp_path / "empty", tmp_path / "out")
    (images / "cat" / "0.png").unlink()
    (images / "cat" / "0.png").symlink_to("/proc/self/mem")
    with pytest.raises(ss.ShardsieveError, match=r"cannot read .*/0\.png: Input/output error; see"):
        pack(images, tmp_path / "out")
    (images / "cat" / "0.png").unlink()
    (images / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(ss.ShardsieveError, match=r"0\.png is empty"):
        pack(images, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("make", [pack, pack_beton])
def test_names_of_another_packings_classes_stay_unless_told_otherwise(images, tmp_path, make):
    out, others = tmp_path / "out", tmp_path / "others"
    make(images, out)
    names = (out / "classes.json").read_bytes()
    (others / "val" / "ant").mkdir(parents=True)
    shutil.copy(images / "cat" / "0.png", others / "val" / "ant" / "0.png")
    with pytest.raises(ss.ShardsieveError, match=r"holds classes\.json of another packing; use"):
        make(others, out)
    assert (out / "classes.json").read_bytes() == names
    assert not any(out.glob("val*"))
    make(others, out, overwrite=True)
    assert (out / "classes.json").read_text() == '["ant"]'


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_what_is_packed_can_be_decoded(tmp_path, suffix):
    path = tmp_path / "in" / "cat" / f"0.{suffix}"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (6, 6), (200, 90, 10)).save(path)
    store = ss.index(pack(tmp_path / "in", tmp_path / "out")[0].pattern, tmp_path / "s.zarr")
    pixels, label, _, _ = ss.ShardDataset(store, ImageDecoder())[0]
    assert (pixels.shape, label) == ((3, 6, 6), 0)
    assert abs(pixels[:, 3, 3].float() - torch.tensor([200.0, 90.0, 10.0])).max() < 9


def test_what_is_hidden_or_has_no_suffix_is_neither_class_nor_image(images, tmp_path):
    (before,) = pack(images, tmp_path / "before")
    for hidden in (".ipynb_checkpoints/0.png", "cat/._0.png", "cat/.cache/0.png", "cat/png"):
        path = images / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    (after,) = pack(images, tmp_path / "after")
    assert (after.classes, after.samples) == (before.classes, before.samples)


def test_shards_of_another_packing_are_not_mixed_in(images, tmp_path):
    pack(images, tmp_path / "out", samples_per_shard=5)
    with pytest.raises(ss.ShardsieveError, match="of another packing"):
        pack(images, tmp_path / "out", samples_per_shard=20)
    (split,) = pack(images, tmp_path / "out", samples_per_shard=20, overwrite=True)
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(split.shards) == 2


@pytest.mark.parametrize("how", [{"samples_per_shard": 20}, {"seed": 1}, {"bytes_per_shard": 9000}])
def test_shards_of_another_packing_are_not_written_over(images, tmp_path, how):
    usual = {"samples_per_shard": 5}
    pack(images, tmp_path / "out", **usual)
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ss.ShardsieveError, match=r"train-00000\d.tar of another packing"):
        pack(images, tmp_path / "out", **usual | how)
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    store = ss.index(str(tmp_path / "out" / "*.tar"), tmp_path / "s.zarr")
    pack(images, tmp_path / "out", **usual)  # of the same bytes: the store knows them still
    ss.open_store(store.path)


def test_a_flat_split_is_labelled_by_its_annotations(images, tmp_path):
    """Tiny-ImageNet's layout."""
    root = tmp_path / "tiny"
    (root / "val" / "images").mkdir(parents=True)
    images.rename(root / "train")
    for i in range(3):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(root / "val" / "images" / f"v{i}.JPEG")
    table = root / "val" / "val_annotations.txt"
    table.write_text(
        "v0.JPEG\tdog\t0\t0\t3\t3\nv1.JPEG\teel\t0\t0\t3\t3\nv2.JPEG\tcat\t0\t0\t3\t3\n"
    )
    val = next(split for split in pack(root, tmp_path / "out") if split.split == "val")
    assert sorted(sample["cls"] for sample in read(val)) == [b"0", b"1", b"2"]
    by_label = {sample["cls"]: sample["jpeg"] for sample in read(val)}
    assert by_label[b"1"] == (root / "val" / "images" / "v0.JPEG").read_bytes()
    table.write_text("v0.JPEG\tcow\t0\t0\t3\t3\n")
    with pytest.raises(ss.ShardsieveError, match=r"must list images of .*got .v0.JPEG.*cow"):
        pack(root, tmp_path / "again")
