"""The tables of a .beton, packing and carrying scores, against FFCV's own reader and writer."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from betons import PAGE, image, write_beton
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import by_webdataset, write_tar

import shardsieve as ss
from shardsieve.commands.packing import kind_of
from shardsieve.commands.showing import describe, kept_per_class
from shardsieve.commands.sources import store_of
from shardsieve.loaders.pages import default_pages, estimate_reads, page_order
from shardsieve.pack import pack
from shardsieve.pack.beton import keep_rows, pack_beton
from shardsieve.pack.beton_tars import beton_to_tars
from shardsieve.shards.beton import FLOAT, IMAGE, INT, read_beton
from shardsieve.store.create import check


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("beton") / "train.beton", 300)


class Mixed:
    """Samples with a field of every kind that FFCV brings."""

    def __len__(self):
        return 40

    def __getitem__(self, row):
        row = int(row)
        data = np.frombuffer(f"bytes {row}".encode() * (row + 1), np.uint8)
        array = np.arange(5, dtype=np.int32) + row
        return row / 2, image(row, 8 + row), {"row": row}, data, array, row % 7


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    fields = {
        "real": FloatField(),
        "image": RGBImageField(write_mode="proportion"),
        "note": JSONField(),
        "data": BytesField(),
        "array": NDArrayField(np.dtype("int32"), (5,)),
        "klass": IntField(),
    }
    path = tmp_path_factory.mktemp("mixed") / "mixed.beton"
    return write_beton(path, data=Mixed(), fields=fields)


def columns(loader):
    """Every field of a whole pass, over the batches."""
    batches = [[field.numpy().copy() for field in batch] for batch in loader]
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def everything(path, rows=None):
    """All fields of some rows as FFCV gives them, but for the images, whose sizes differ."""
    return columns(
        Loader(
            str(path),
            batch_size=5,
            num_workers=1,
            drop_last=False,
            order=OrderOption.SEQUENTIAL,
            indices=rows,
            pipelines={"image": None},
        )
    )


def pixels(path):
    """Images and labels as FFCV gives them."""
    return columns(Loader(str(path), batch_size=16, num_workers=1, drop_last=False))


def test_tables_are_those_that_ffcv_reads(mixed):
    ours, theirs = read_beton(mixed), Reader(str(mixed))
    assert ours.names == tuple(theirs.field_names)
    np.testing.assert_array_equal(ours.metadata, theirs.metadata)
    np.testing.assert_array_equal(ours.allocations, theirs.alloc_table)
    assert ours.labels().tolist() == [row % 7 for row in range(40)]
    for row, (offset, length) in enumerate(ours.ranges.tolist()):
        own = theirs.alloc_table[theirs.alloc_table["sample_id"] == row]
        assert offset == own["ptr"].min()
        assert offset + length == (own["ptr"] + own["size"]).max()
        assert offset // PAGE == (offset + length - 1) // PAGE


def test_ids_are_rows_also_over_several_blocks(tmp_path):
    class Numbers:
        def __len__(self):
            return 9000

        def __getitem__(self, row):
            return (row,)

    path = write_beton(tmp_path / "n.beton", data=Numbers(), fields={"number": IntField()})
    store = ss.index(path, tmp_path / "n.zarr")
    assert store.num_shards == 3
    np.testing.assert_array_equal(store.ids(), np.arange(9000))
    np.testing.assert_array_equal(store.labels(), np.arange(9000))
    os.utime(path, ns=(1, 10**18 + 1))
    assert [check(ss.open_store(store.path, check_shards=False)) for _ in range(2)] == [3, 0]
    assert ss.index(path, tmp_path / "n.zarr").fingerprint == store.fingerprint
    # All of a sample lies in the file's tables: it has no bytes of its own.
    assert describe(store.path)["bytes"] == 0
    half = {"rule": "random", "keep_fraction": 0.5}
    assert kept_per_class(store.path, half, None)["bytes_kept_fraction"] == 0
    assert ss.ShardDataset(store)[8999]["cls"] == b"8999"
    with pytest.raises(IndexError, match="got 9000"):
        ss.ShardDataset(store)[9000]
    with pytest.raises(ss.StoreMismatchError, match=r"holds a \.beton, which does not grow"):
        ss.append_shards(path, store.path)


@pytest.mark.parametrize("array", ["sample/offset", "sample/length"])
def test_places_that_a_store_has_lost_are_not_taken_for_samples_without_bytes(
    path, tmp_path, array
):
    store = ss.index(path, tmp_path / "s.zarr")
    (store.path / array / "c/0/0").unlink()
    with pytest.raises(ss.StoreFormatError, match=f"lost what {array} held"):
        ss.ShardDataset(ss.open_store(store.path))


def test_a_file_that_cannot_be_read_is_refused(path, mixed, tmp_path):
    raw = bytearray(path.read_bytes())

    def index(data, **how):
        (tmp_path / "x.beton").write_bytes(data)
        return ss.index(tmp_path / "x.beton", tmp_path / "x.zarr", **how)

    for data, words in (
        (b"hello", "not a .beton"),
        (bytes(5000), "not a .beton"),
        (b"\x03" + raw[1:], "version 3"),
        (raw[:5000], "truncated"),
        (raw[:-24], "truncated"),
        (raw[:-7], "truncated"),
        (raw[:16] + bytes(8) + raw[24:], "never finished"),
        (raw[:8] + bytes(8) + raw[16:], "holds no samples"),
        (raw[:8] + (1 << 62).to_bytes(8, "little") + raw[16:], "truncated"),
        (raw[:8] + len(raw).to_bytes(8, "little") + raw[16:], "truncated"),
        (raw[:4] + (3 << 20).to_bytes(4, "little") + raw[8:], "not a .beton"),
        (raw[:-24] + b"\xff" * 24, "damaged"),
        (raw[:-24] + (300).to_bytes(8, "little") + raw[-16:], "damaged"),
        (raw[:-8] + (1 << 40).to_bytes(8, "little"), "damaged"),
        (raw[:-16] + (2**64 - 8).to_bytes(8, "little") + raw[-8:], "damaged"),
    ):
        with pytest.raises(ss.CorruptShardError, match=words):
            index(data)
    with pytest.raises(ss.ShardsieveError, match="cannot give labels"):
        ss.index(mixed, tmp_path / "m.zarr", label_member="real")
    with pytest.raises(ss.ShardsieveError, match="field must be one of"):
        ss.index(mixed, tmp_path / "m.zarr", label_member="wrong")
    with pytest.raises(ss.ShardsieveError, match="holds one"):
        ss.index([path, mixed], tmp_path / "m.zarr")
    custom = raw.copy()
    custom[24] = 255
    store = index(custom)
    assert (store.labels() == -1).all()
    with pytest.raises(ss.ShardsieveError, match="custom fields"):
        ss.index(tmp_path / "x.beton", tmp_path / "y.zarr", label_member="label")


def test_kept_rows_are_copied_with_their_bytes_and_keys(mixed, tmp_path):
    rows = [31, 4, 17, 0, 39]
    keep_rows(mixed, tmp_path / "kept.beton", rows)
    want = everything(mixed, rows)
    got = everything(tmp_path / "kept.beton")
    assert len(got) == len(want) == 5
    for field in (0, 3, 4):
        np.testing.assert_array_equal(got[field], want[field])
    # FFCV fills a batch's shorter byte strings up with whatever lay in memory.
    sizes = read_beton(mixed).column("data")["size"][rows].tolist()
    for new, size in enumerate(sizes):
        np.testing.assert_array_equal(got[2][new, :size], want[2][new, :size])
    kept, whole = read_beton(tmp_path / "kept.beton"), read_beton(mixed)
    assert kept.keys() == [f"{row:08d}" for row in rows]
    before, after = mixed.read_bytes(), (tmp_path / "kept.beton").read_bytes()
    for new, old in enumerate(rows):
        (a, n), (b, m) = whole.ranges[old], kept.ranges[new]
        assert before[a : a + n] == after[b : b + m]
    source = ss.index(mixed, tmp_path / "m.zarr")
    assert ss.ShardDataset(source)[17]["note.json"] == b'{"row": 17}'
    source.put_score("up", np.arange(40))
    target = ss.index(tmp_path / "kept.beton", tmp_path / "k.zarr")
    assert ss.realign(source, target) == ["up"]
    assert target.score("up").tolist() == rows
    with pytest.raises(ss.StoreMismatchError, match="35 keys"):
        ss.realign(target, source)
    with pytest.raises(ValueError, match="distinct"):
        keep_rows(mixed, tmp_path / "bad.beton", [1, 1])
    for wrong in ([0.6, 1.7], np.arange(40) < 2):  # numbers cut off, a mask for the rows 1 and 0
        with pytest.raises(
            ValueError, match=r"^rows must be integers, got (float64|bool); give row"
        ):
            keep_rows(mixed, tmp_path / "bad.beton", wrong)
        with pytest.raises(
            ValueError, match=r"^ids must be integers, got (float64|bool); give ids"
        ):
            pack_beton(source, tmp_path / "bad.beton", ids=wrong)


def test_a_field_of_no_bytes_does_not_empty_the_one_after_it(tmp_path):
    """Both have the same pointer; FFCV itself finds no image there."""

    class Captions:
        def __len__(self):
            return 30

        def __getitem__(self, row):
            return image(row, 8), np.full(row % 3, row, np.uint8), row

    fields = {"image": RGBImageField(), "text": BytesField(), "label": IntField()}
    path = write_beton(tmp_path / "c.beton", data=Captions(), fields=fields)
    keep_rows(path, tmp_path / "kept.beton", range(29, -1, -1))
    for name, rows in [(path, range(30)), (tmp_path / "kept.beton", range(29, -1, -1))]:
        store = ss.index(name, tmp_path / f"{name.stem}.zarr")
        for row, sample in zip(rows, ss.ShardDataset(store).__getitems__(range(30)), strict=True):
            assert sample["text"] == bytes([row] * (row % 3))
            np.testing.assert_array_equal(Image.open(io.BytesIO(sample["ppm"])), image(row, 8))


def test_the_label_of_a_file_is_the_field_that_was_named(tmp_path):
    class Counted:
        def __len__(self):
            return 6

        def __getitem__(self, row):
            return image(row, 8), row % 3, 1000 + row

    fields = {"image": RGBImageField(), "target": IntField(), "index": IntField()}
    path = write_beton(tmp_path / "c.beton", data=Counted(), fields=fields)
    beton = read_beton(path)
    assert beton.label_field is None
    assert replace(beton, names=("image", "index", "label")).label_field == "label"
    assert replace(beton, types=(IMAGE, FLOAT, INT)).label_field == "index"
    rows = beton.metadata.copy()
    rows["f1"][:3] = 2**31, -1, 2**31 - 1
    odd = replace(beton, names=("image", "label", "index"), metadata=rows)
    assert odd.labels().tolist() == [-1, -1, 2**31 - 1, 0, 1, 2]
    with pytest.raises(ss.ShardsieveError, match=r"must lie in .* got 2147483648 in row 0"):
        odd.labels("label")
    store = ss.index(path, tmp_path / "c.zarr", label_member="target")
    (sample,) = ss.ShardDataset(store).__getitems__([4])
    assert (sample["cls"], sample["index"], "target" in sample) == (b"1", b"1004", False)
    made = beton_to_tars(path, tmp_path / "named", label_field="target")
    assert ss.index(made.pattern, tmp_path / "n.zarr").labels().tolist() == [0, 1, 2] * 2
    made = beton_to_tars(path, tmp_path / "unnamed")
    unnamed = ss.index(made.pattern, tmp_path / "u.zarr", label_member="target")
    assert unnamed.labels().tolist() == [0, 1, 2] * 2
    with pytest.raises(ss.ShardsieveError, match="it is no integer field"):
        beton_to_tars(path, tmp_path / "wrong", label_field="image")
    assert not (tmp_path / "wrong").exists()


def jpeg(row):
    out = io.BytesIO()
    Image.fromarray(image(row, 24)).save(out, "JPEG", quality=80)
    return out.getvalue()


def test_tars_to_beton_and_back_keep_bytes_order_and_keys(tmp_path):
    members = []
    for row in range(30):
        members += [(f"a/{29 - row:03d}.jpg", jpeg(row)), (f"a/{29 - row:03d}.cls", b"%d" % row)]
    tar = write_tar(tmp_path / "s-000.tar", members)
    tars = ss.index(tar, tmp_path / "t.zarr")
    pack_beton(tars, tmp_path / "t.beton", page_size=PAGE)
    images, labels = pixels(tmp_path / "t.beton")
    assert labels.ravel().tolist() == list(range(30))
    for row in range(30):
        want = np.asarray(Image.open(io.BytesIO(jpeg(row)))).astype(int)
        assert np.abs(images[row] - want).max() <= 8
    store = ss.index(tmp_path / "t.beton", tmp_path / "b.zarr")
    assert store.keys(0) == tars.keys(0)
    with pytest.raises(ss.CorruptShardError, match="holds 30 keys for 29 samples"):
        replace(read_beton(tmp_path / "t.beton"), num_samples=29).keys()
    packed = beton_to_tars(tmp_path / "t.beton", tmp_path / "back", samples_per_shard=20)
    again = [s for path in packed.shards for s in by_webdataset(tmp_path / "back" / path)]
    assert [(s["__key__"], s["jpg"], s["cls"]) for s in again] == [
        (s["__key__"], s["jpg"], s["cls"]) for s in by_webdataset(tar)
    ]


def test_a_source_gives_the_same_samples_in_tars_and_in_a_beton(tmp_path):
    tar, beton = pack("digits", tmp_path / "tar")[0], pack_beton("digits", tmp_path)[0]
    a = ss.index(tar.pattern, tmp_path / "a.zarr")
    b = ss.index(beton.pattern, tmp_path / "b.zarr")
    assert (beton.samples, beton.classes) == (tar.samples, tar.classes)
    np.testing.assert_array_equal(a.labels(), b.labels())
    a.put_score("up", np.arange(len(a)))
    ss.realign(a, b)
    assert b.score("up").tolist() == list(range(len(a)))
    images, _ = pixels(beton.shards[0])
    want = Image.open(io.BytesIO(ss.ShardDataset(a)[3]["png"])).convert("RGB")
    np.testing.assert_array_equal(images[3], np.asarray(want))


def test_ambiguous_keys_are_refused(tmp_path):
    shards = [
        write_tar(tmp_path / f"{n}.tar", [("k.jpg", b"x"), ("k.cls", b"1")]) for n in range(2)
    ]
    store = ss.index(shards, tmp_path / "s.zarr")
    with pytest.raises(ss.StoreMismatchError, match="unique"):
        ss.realign(store, store)


@given(st.data())
def test_page_order_is_a_permutation_that_reads_each_page_in_one_stretch(data):
    pages = np.array(data.draw(st.lists(st.integers(-1, 12), max_size=60)), dtype=np.int64)
    rows = np.arange(len(pages)) * 3
    window = data.draw(st.integers(0, 5))
    order = page_order(rows, pages, seed=data.draw(st.integers(0, 9)), epoch=2, window=window)
    assert sorted(order.tolist()) == rows.tolist()
    if window == 0:
        assert (np.diff(pages[order // 3]) >= 0).all()
        return
    # No more than a window of pages is ever open: pages that appeared and are still to come.
    place = pages[order // 3]
    for at in range(len(place)):
        assert len(set(place[: at + 1]) & set(place[at:])) <= window


def test_page_order_touches_few_pages_and_is_pinned():
    rows = np.arange(9_600)
    pages = np.random.default_rng(0).permutation(rows // 75)
    ordered = page_order(rows, pages, seed=1, epoch=0, window=default_pages(9600, 128))

    def per_batch(order):
        return [len(set(order[at : at + 256].tolist())) for at in range(0, len(order), 256)]

    assert max(per_batch(pages[ordered])) <= 2 * default_pages(9600, 128)
    assert np.mean(per_batch(pages)) > 100
    pinned = page_order(np.arange(10), np.arange(10) // 3, seed=0, epoch=0, window=2)
    assert pinned.tolist() == PINNED
    assert default_pages(96_000, 100) == 16
    turned = page_order(np.arange(9, -1, -1), np.arange(10) // 5, seed=0, epoch=0, window=0)
    assert turned.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


PINNED = [6, 0, 7, 2, 8, 1, 3, 9, 5, 4]


def test_a_file_of_ffcv_is_known_by_either_of_its_names(path, tmp_path):
    named = tmp_path / "train_500_0.50_90.ffcv"
    other = tmp_path / "train.dat"
    for link in (named, other):
        link.symlink_to(path)
    store = ss.index(named, tmp_path / "s.zarr")
    assert (store.kind, len(store)) == ("ffcv", 300)
    loader = Loader(str(named), batch_size=100, num_workers=1, drop_last=False)
    pruned = ss.prune(loader, store, keep_fraction=0.5, rule="random")
    assert [i for b in pruned for i in b.ids.tolist()] == pruned.keep_set.ids().tolist()
    assert kind_of(str(named)) == "beton"
    assert store_of(str(named), None) == tmp_path / "train_500_0.50_90.zarr"
    with pytest.raises(ss.CorruptShardError, match=r"not a tar.* FFCV file under a name that ends"):
        ss.index(other, tmp_path / "o.zarr")


SIZES = st.one_of(st.integers(0, 9000), st.sampled_from([0, 4096, 8192]))


@given(st.lists(st.tuples(SIZES, SIZES), max_size=30), st.data())
def test_estimate_counts_the_blocks_that_a_slow_loop_finds(pieces, data):
    at, ranges = 0, []
    for gap, length in pieces:
        ranges.append((at + gap, length) if length else (-1, 0))
        at += gap + length
    ranges = data.draw(st.permutations(ranges))
    table = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    kept = data.draw(st.lists(st.sampled_from(range(len(ranges))))) if ranges else []
    found = estimate_reads(table, np.array(kept, np.int64), page_size=16384, readahead=8192)

    def slow(size, rows=kept):
        return len({b // size for r in rows for b in range(ranges[r][0], sum(ranges[r]))})

    assert found.kept == sum(ranges[r][1] for r in set(kept))
    assert found.memory == slow(4096) * 4096
    assert found.readahead == slow(8192) * 8192
    assert found.pages == slow(16384) * 16384
    assert found.all_pages == slow(16384, range(len(ranges)))
    assert found.kept <= found.rewritten < found.kept + 16384
    # Padding counts for nothing: half of the pages are half of the reading, however empty.
    much, little = slow(16384) > 0.9 * found.all_pages, found.kept < 0.9 * found.total
    assert found.saves_little == (much and little)
