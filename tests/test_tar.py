"""The header walk against webdataset's own reading."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tars import by_webdataset, content, write_tar

import shardsieve as ss
from shardsieve import CorruptShardError
from shardsieve.io.local import mapped
from shardsieve.shards import names, tar
from shardsieve.shards.fields import parse_sample, plain_fields
from shardsieve.shards.fingerprint import index_fingerprint, table_fingerprint
from shardsieve.shards.samples import sample_table

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
keys = st.lists(
    st.sampled_from(["a", "b/c", "d.x/e", "n" * 60, "dir/" * 30 + "deep", "é"]),
    min_size=1,
    max_size=6,
    unique=True,
)
suffixes = st.lists(st.sampled_from(["jpg", "cls", "seg.PNG", "json"]), min_size=1, unique=True)


def table_of(path):
    with mapped(str(path)) as (read, total):
        return sample_table(read, total, str(path))


@given(keys=keys, suffixes=suffixes, fmt=st.sampled_from(FORMATS), noise=st.booleans())
def test_samples_equal_those_of_webdataset(tmp_path_factory, keys, suffixes, fmt, noise):
    if fmt == tarfile.USTAR_FORMAT:
        keys = [key for key in keys if len(key) < 90 and key.isascii()] or ["a"]
    members = [
        (f"{k}.{s}", content(k + s, 10 + 400 * i)) for i, k in enumerate(keys) for s in suffixes
    ]
    if noise:
        members[1:1] = [("folder/", b""), ("__meta__", b"x"), ("nodot", b"y")]
    path = write_tar(tmp_path_factory.mktemp("t") / "x.tar", members, fmt)
    table, want = table_of(path), by_webdataset(path)
    assert table.keys == [sample["__key__"] for sample in want]
    raw = path.read_bytes()
    for row, sample in enumerate(want):
        start = table.offset[row]
        got = parse_sample(raw[start : start + table.length[row]], table.keys[row], str(path))
        got.pop("__url__")
        assert got == {k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")}


def test_a_global_pax_header_and_a_base_256_size_are_read(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c"}) as tar:
        info = tarfile.TarInfo("a.bin")
        tar.addfile(info)
    assert table_of(path).keys == ["a"]


def good(tmp_path):
    return write_tar(tmp_path / "x.tar", [("a.jpg", content("a", 3000)), ("a.cls", b"1")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "is empty"),
        (lambda raw: raw[:2000], "is truncated"),
        (lambda raw: raw[:3584], "without an end-of-archive block"),
        (gzip.compress, "is gzip-compressed"),
        (lambda raw: b"\xff\xd8" * 4000, "is not a tar"),
        (lambda raw: raw[:3600] + b"zzzz" + raw[3604:], "is damaged: no valid header at byte 3584"),
        (lambda raw: bytes(5 << 20), "is damaged: it has 5242880 bytes and no files"),
    ],
)
def test_a_bad_shard_is_named_with_what_is_wrong(tmp_path, damage, message):
    path = good(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptShardError, match=message) as caught:
        table_of(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_samples_are_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("nodot", b"1"), ("__meta__", b"2")])
    with pytest.raises(CorruptShardError, match=r"holds no samples: .* a name like 12\.jpg"):
        table_of(path)


def test_hidden_files_that_webdataset_takes_for_samples_are_warned_of(tmp_path, caplog):
    def indexed(name, members):
        url = write_tar(tmp_path / f"{name}.tar", [(member, b"1") for member in members])
        return ss.index(url, tmp_path / f"{name}.zarr")

    indexed("none", ["a/1.jpg", "._2.jpg", "2.jpg"])  # at the top it passes them over
    assert caplog.messages == []
    assert len(indexed("some", ["a/._1.jpg", "a/1.jpg", "a/._2.jpg", "a/2.jpg"])) == 4
    (said,) = caplog.messages
    assert said.startswith(
        "2 samples are hidden files such as a Mac's ._1.jpg, the first of them in"
    )
    assert "some.tar" in said


def test_tars_in_a_tar_are_warned_of(tmp_path, caplog):
    inner = [write_tar(tmp_path / f"n{i}.tar", [(f"n{i}_1.JPEG", b"1")]) for i in range(3)]
    outer = write_tar(tmp_path / "train.tar", [(one.name, one.read_bytes()) for one in inner])
    beside = write_tar(tmp_path / "beside.tar", [("a.jpg", b"1"), ("a.tar", inner[0].read_bytes())])
    ss.index([*inner, beside], tmp_path / "inner.zarr")
    assert caplog.messages == []
    more = write_tar(tmp_path / "val.tar", [(f"{i}.tar", b"") for i in range(4)])
    ss.index([inner[0], outer, more], tmp_path / "outer.zarr")
    (said,) = caplog.messages
    assert said.startswith(f"7 samples are tars themselves, the first of them in {outer}")
    assert "--label-member .tar" in said


@pytest.mark.parametrize(("begin", "what"), [(b"PAR1", "a Parquet"), (b"PK\3\4", "a zip")])
def test_what_is_no_tar_is_called_what_it_is(tmp_path, begin, what):
    path = tmp_path / "0000.parquet"
    path.write_bytes(begin + bytes(2000))
    with pytest.raises(CorruptShardError, match=f"parquet is {what} file, not a tar; write its"):
        table_of(path)


def test_a_repeated_member_is_refused(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.JPG", b"2")])
    with pytest.raises(CorruptShardError, match=r"repeats the member a\.JPG"):
        table_of(path)


@pytest.mark.parametrize("records", [("major", "name"), ("size",), ("map", "name")])
def test_a_sparse_member_is_refused(tmp_path, records):
    info = tarfile.TarInfo("a.bin")
    info.pax_headers = {f"GNU.sparse.{record}": "a.bin" for record in records}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(info)
    with pytest.raises(CorruptShardError, match=r"holds the sparse file a\.bin; pack it plainly"):
        table_of(tmp_path / "x.tar")


def test_a_sparse_member_of_old_gnu_tar_is_refused(tmp_path):
    info = tarfile.TarInfo("a.bin")
    info.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info)
        tar.addfile(tarfile.TarInfo("b.jpg"))
    with pytest.raises(CorruptShardError, match=r"holds the sparse file a\.bin; pack it plainly"):
        table_of(tmp_path / "x.tar")


def test_pax_records_may_be_filled_up_with_zeros(tmp_path):
    records = b"15 path=ab.jpg\n" + bytes(4)
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(records))
        tar.addfile(tarfile.TarInfo("other.jpg"))
    assert table_of(tmp_path / "x.tar").keys == ["ab"]


@pytest.mark.parametrize(
    "records",
    [
        b"0 path=b.j\n",
        b"-9 path=b\n",
        b"99 path=b\n",
        b"x a=b\n",
        b"path",
        b"9 size=x\n",
        b"7 \xff=b\n",
    ],
)
def test_damaged_pax_records_are_refused(tmp_path, records):
    """A length of 0 was read again without end."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        tar.addfile(info, io.BytesIO(records))
        tar.addfile(tarfile.TarInfo("other.jpg"))
    with pytest.raises(CorruptShardError, match=r"x\.tar is damaged: no valid header at byte 512"):
        table_of(tmp_path / "x.tar")


def test_fingerprints_are_pinned():
    """Stores of earlier releases are compared by them."""
    table = table_fingerprint(["a", "b"], np.array([0, 1024]), np.array([1024, 512]))
    assert table == "e483ce35c2d83a2b681d1c056c196e25"
    assert index_fingerprint([table, "x"]) == "47f242052b7ef12fd6e8de1379824d66"


def test_samples_whose_files_lie_apart_are_warned_of(tmp_path, caplog):
    def indexed(name, members):
        url = write_tar(tmp_path / f"{name}.tar", [(member, b"1") for member in members])
        return ss.index(url, tmp_path / f"{name}.zarr")

    assert len(indexed("twice", ["a.jpg", "a.cls", "b.jpg", "a.jpg", "a.cls"])) == 3
    assert caplog.messages == []  # two whole samples of one key, as LAION's shards have them
    apart = ["a.jpg", "b.jpg", "a.cls", "b.cls", "a.json"]
    assert len(indexed("apart", apart)) == 5
    (said,) = caplog.messages
    assert said.startswith("3 samples are the rest of an earlier one, the first of them in")
    assert "apart.tar" in said
    assert len(by_webdataset(tmp_path / "apart.tar")) == 5


def test_a_run_that_goes_on_warns_of_what_the_first_one_found(tmp_path, caplog):
    def killed(done, total):
        raise KeyboardInterrupt

    url = write_tar(tmp_path / "x.tar", [(f"a.{suffix}", b"1") for suffix in ("jpg", "cls")])
    second = write_tar(tmp_path / "y.tar", [(name, b"1") for name in ("a.jpg", "b.jpg", "a.cls")])
    with pytest.raises(KeyboardInterrupt):
        ss.index([second, url], tmp_path / "s.zarr", progress=killed)
    assert caplog.messages == []
    ss.index([second, url], tmp_path / "s.zarr")
    assert [said.split(",")[0] for said in caplog.messages] == [
        "1 samples are the rest of an earlier one"
    ]


@pytest.mark.parametrize("dialect", FORMATS)
def test_plain_samples_are_read_the_short_way_with_the_same_fields(tmp_path, dialect):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=dialect) as tar:
        for number, size in enumerate((0, 1, 511, 512, 513, 2000)):
            for name, data in (
                ("jpg", bytes(range(1, 5)) * size),
                ("seg.png", b"x"),
                ("cls", b"3"),
            ):
                info = tarfile.TarInfo(f"a/b.c/{number}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    raw = path.read_bytes()
    table = sample_table(lambda at, n: raw[at : at + n], len(raw), "x")
    known = {suffix.encode(): suffix for suffix in table.suffixes}
    for key, at, length in zip(table.keys, table.offset, table.length, strict=True):
        part = raw[at : at + length]
        fields = plain_fields(part, key, known)
        assert {"__key__": key, "__url__": "x", **fields} == parse_sample(part, key, "x")
        assert plain_fields(part, key + "0", known) is None
        assert plain_fields(part[:-512], key, known) is None
        assert plain_fields(part, key, {b"jpg": "jpg"}) is None
    assert len(table) == 6


def outcome(read, total):
    """What a walk finds, or what it refuses."""
    try:
        return list(tar.walk(read, total, "x"))
    except CorruptShardError as error:
        return str(error)


@pytest.mark.parametrize("dialect", FORMATS)
@given(
    header=st.sampled_from([0, 512 + 1024, 3072]),
    place=st.integers(0, 511),
    byte=st.integers(0, 255),
    add=st.booleans(),
)
@example(header=0, place=135, byte=ord("1"), add=True)  # a size of twelve digits
@example(header=0, place=124, byte=ord("-"), add=True)
@example(header=0, place=156, byte=ord("5"), add=True)
@example(header=0, place=345, byte=ord("a"), add=True)
def test_plain_headers_are_read_the_short_way_as_the_slow_way_does(
    tmp_path_factory, dialect, header, place, byte, add
):
    members = [
        ("a.jpg", b"x" * 700),
        ("a.cls", b"7"),
        ("b/c.jpg", b""),
        (f"{'d' * 60}/{'n' * 60}.x", b"y"),
    ]
    path = write_tar(tmp_path_factory.getbasetemp() / "short.tar", members, dialect)
    raw = bytearray(path.read_bytes())
    raw[header + place] = byte
    if add:  # so that its checksum holds
        head = raw[header : header + 512]
        total = sum(head[:148]) + sum(head[156:]) + 8 * 32
        raw[header + 148 : header + 156] = b"%06o\0 " % total
    read = lambda at, length: bytes(raw[at : at + length])  # noqa: E731
    found = outcome(read, len(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar, "_plain_header", lambda head: None)
        assert outcome(read, len(raw)) == found


@pytest.mark.parametrize("kind", [b"0", b"5", b"x", b"L"])
def test_a_size_below_0_is_refused(tmp_path, kind):
    raw = bytearray(write_tar(tmp_path / "x.tar", [("a.jpg", b"x")]).read_bytes())
    raw[124:136], raw[156:157] = b"-0000002000\0", kind
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:512]) + 8 * 32)
    with pytest.raises(CorruptShardError, match="x is damaged: no valid header at byte "):
        list(tar.walk(lambda at, n: bytes(raw[at : at + n]), len(raw), "x"))


@given(st.text(st.sampled_from("ab._/\nA"), max_size=9))
@example("/.")
@example("a/._b.jpg")
@example("a.b/._c.jpg")
def test_names_are_split_by_webdatasets_rule(name):
    assert names.split_key(name) == names._split_by_rule(name)


def test_a_suffix_that_is_not_utf8_is_refused_by_shard(tmp_path):
    """It would be a field's name, of which the store has a list; keys may be anything."""
    path = write_tar(tmp_path / "a.tar", [("a.\udce9jpg", b"x")], fmt=tarfile.GNU_FORMAT)
    with pytest.raises(ss.CorruptShardError, match=r"a\.tar has members .* not UTF-8, '.udce9jpg'"):
        ss.index(path, tmp_path / "s.zarr")
