"""`pack`, `realign` and `info` between tars and FFCV files, through the command line."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from betons import PAGE, image, write_beton
from PIL import Image
from tars import by_webdataset, write_shards, write_tar

import shardsieve as ss
from shardsieve import cli
from shardsieve.commands import showing
from shardsieve.loaders.mixing import mixing
from shardsieve.loaders.pages import default_pages
from shardsieve.loaders.planned import OrderSettings
from shardsieve.pack import pack
from shardsieve.pack.beton_tars import beton_to_tars
from shardsieve.shards.beton import read_beton
from shardsieve.train.images import ImageDecoder, fixed_size

N = 24


def said(capsys, monkeypatch, *arguments, status=0):
    """Run the program; return what it printed as JSON, or its one line of error."""
    monkeypatch.setattr(sys, "argv", ["shardsieve", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    shown = capsys.readouterr()
    assert done.value.code == status, shown.err
    return json.loads(shown.out) if status == 0 else shown.err


@pytest.fixture
def call(capsys, monkeypatch):
    def call(*arguments, status=0):
        more = ["--json"] if status == 0 else []
        return said(capsys, monkeypatch, *arguments, *more, status=status)

    return call


def jpeg(row):
    out = io.BytesIO()
    Image.fromarray(image(row, 24)).save(out, "JPEG", quality=80)
    return out.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Two tars whose keys are in no order."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        members = []
        for row in range(shard * N // 2, (shard + 1) * N // 2):
            name = f"d/{(7 * row) % N:03d}"
            members += [(f"{name}.jpg", jpeg(row)), (f"{name}.cls", b"%d" % row)]
        write_tar(folder / f"s-{shard:03d}.tar", members)
    return folder


def raw(folder, pattern="*.tar"):
    paths = sorted(folder.glob(pattern))
    return [(s["__key__"], s["jpg"], s["cls"]) for p in paths for s in by_webdataset(p)]


def test_tars_to_beton_to_tars_keeps_bytes_order_and_keys(call, tars, tmp_path):
    call("pack", f"{tars}/s-*.tar", tmp_path / "t.beton", "--to", "beton", "--page-size", PAGE)
    made = call("pack", tmp_path / "t.beton", tmp_path / "back", "--samples-per-shard", 7)
    assert made["splits"][0]["shards"] == 4
    assert made["splits"][0]["pattern"] == f"{tmp_path}/back/t-{{000000..000003}}.tar"
    assert raw(tmp_path / "back") == raw(tars)
    assert len(raw(tars)) == N


def test_samples_without_a_label_are_told_of_and_a_folder_may_be_one(call, tmp_path, caplog):
    names = ["dog", "cat", "dog"]
    members = [(f"{name}/{row}.jpg", jpeg(row)) for row, name in enumerate(names)]
    tar, how = write_tar(tmp_path / "s.tar", members), ("--to", "beton", "--page-size", PAGE)
    call("pack", tar, tmp_path / "named.beton", *how, "--label-member", "/")
    assert ss.index(tmp_path / "named.beton", tmp_path / "n.zarr").labels().tolist() == [1, 0, 1]
    call("pack", tar, tmp_path / "bare.beton", *how)
    named, said = caplog.messages
    assert named.startswith("of 2 classes that have names the numbers alone are written")
    assert said.startswith("3 of 3 samples have no label: -1 is written in its place")


def test_tars_of_a_beton_whose_packing_was_killed_are_packed_to_their_end(call, tars, tmp_path):
    """The same call refused the shards that it had written, and those of another stay."""
    call("pack", f"{tars}/s-*.tar", tmp_path / "a.beton", "--to", "beton", "--page-size", PAGE)

    def killed(done, total):
        raise KeyboardInterrupt

    how = {"samples_per_shard": 9}
    with pytest.raises(KeyboardInterrupt):
        beton_to_tars(tmp_path / "a.beton", tmp_path / "out", progress=killed, **how)
    (first,) = (tmp_path / "out").iterdir()
    time = first.stat().st_mtime_ns
    beton_to_tars(tmp_path / "a.beton", tmp_path / "out", **how)
    assert raw(tmp_path / "out") == raw(tars)
    assert first.stat().st_mtime_ns == time
    with pytest.raises(ss.ShardsieveError, match="of another packing"):
        beton_to_tars(tmp_path / "a.beton", tmp_path / "out", samples_per_shard=8)
    assert raw(tmp_path / "out") == raw(tars)


@pytest.mark.parametrize("to", ["tar", "beton"])
def test_every_source_of_pack_gives_both_layouts(call, tmp_path, to):
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for row in range(3):
            (tmp_path / "images" / label / f"{row}.jpg").write_bytes(jpeg(row))
    made = call("pack", tmp_path / "images", tmp_path / "out", "--to", to, "--test-fraction", 0.34)
    assert {s["split"]: s["samples"] for s in made["splits"]} == {"train": 4, "test": 2}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b"]
    store = ss.index(made["splits"][0]["pattern"], tmp_path / "s.zarr")
    assert sorted(store.labels().tolist()) == [0, 0, 1, 1]
    stored = {ss.ShardDataset(store)[i]["jpg"] for i in store.ids()}
    assert stored <= {jpeg(row) for row in range(3)}


@pytest.mark.parametrize("to", ["tar", "beton"])
def test_sixteen_bits_become_eight(call, tmp_path, to):
    (tmp_path / "images" / "a").mkdir(parents=True)
    grey = np.arange(0, 1 << 16, 1 << 10, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "images" / "a" / "0.png")
    made = call("pack", tmp_path / "images", tmp_path / "out", "--to", to)
    store = ss.index(made["splits"][0]["pattern"], tmp_path / "s.zarr")
    pixels = ss.ShardDataset(store, ImageDecoder(channels=1))[0][0][0]
    assert pixels.tolist() == (grey >> 8).tolist()
    assert fixed_size(store) == (8, 1 if to == "tar" else 3)


def test_one_set_of_scores_serves_both_layouts(call, tars, tmp_path):
    call("pack", f"{tars}/s-*.tar", tmp_path / "t.beton", "--to", "beton")
    a, b = tmp_path / "a.zarr", tmp_path / "b.zarr"
    # Shards in another order: ids differ, keys do not.
    call("index", tars / "s-001.tar", tars / "s-000.tar", "--store", a)
    call("index", tmp_path / "t.beton", "--store", b)
    store = ss.open_store(a)
    store.put_score("up", store.labels())
    store.put_score("down", -store.labels())
    assert call("realign", a, b, "--score", "up")["scores"] == ["up"]
    assert ss.open_store(b).score("up").tolist() == ss.open_store(b).labels().tolist()
    assert call("realign", a, b)["scores"] == ["down", "up"]
    assert "put_score" in call("realign", a, b, "--score", "none", status=2)


def test_scores_of_shards_that_were_renamed_and_removed_are_carried_over(call, tmp_path):
    shards = write_shards(tmp_path / "d", [4, 3, 5])
    old = ss.index(shards, tmp_path / "old.zarr")
    old.put_score("mine", np.arange(12))
    shards[0].rename(tmp_path / "d" / "z.tar")
    shards[1].unlink()
    new = ss.index(sorted((tmp_path / "d").glob("*.tar")), tmp_path / "new.zarr")
    assert call("realign", old.path, new.path)["scores"] == ["mine"]
    assert new.score("mine").tolist() == [*range(7, 12), *range(4)]


def test_realign_refuses_keys_that_name_other_samples_since_they_were_packed_anew(call, tmp_path):
    stores = []
    for seed in (0, 1):
        packed = pack("digits", tmp_path / f"d{seed}", samples_per_shard=900, seed=seed)[0]
        stores.append(ss.index(packed.pattern, tmp_path / f"{seed}.zarr"))
    old, new = stores
    old.put_score("up", range(len(old)))
    line = call("realign", old.path, new.path, status=2)
    assert "labels of" in line
    assert new.scores == []


def test_realign_goes_by_the_labels_that_both_stores_have(tmp_path):
    stores = []
    for name, labelled in (("a", range(40)), ("b", range(3))):
        files = [(f"{n}.jpg", b"x") for n in range(40)]
        files += [(f"{n}.cls", name.encode().hex().encode()) for n in labelled]
        tar = write_tar(tmp_path / f"{name}.tar", sorted(files))
        stores.append(ss.index(tar, tmp_path / f"{name}.zarr"))
    stores[0].put_score("up", range(40))
    with pytest.raises(ss.StoreMismatchError, match="3 of 3 labels"):
        ss.realign(*stores)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_realign_takes_a_tenth_of_other_labels_for_mended_and_more_for_other_samples(
    tmp_path, before, after
):
    def labelled(name, mended):
        labels = [after] * mended + [before] * (20 - mended)
        files = [(f"{n:02d}.cls", str(label).encode()) for n, label in enumerate(labels)]
        return ss.index(write_tar(tmp_path / f"{name}.tar", files), tmp_path / f"{name}.zarr")

    old = labelled("old", 0)
    old.put_score("up", range(20))
    assert ss.realign(old, labelled("mended", 2)) == ["up"]
    with pytest.raises(ss.StoreMismatchError, match="3 of 20 labels"):
        ss.realign(old, labelled("other", 3))


def test_realign_refuses_ambiguous_and_missing_keys(call, tars, tmp_path):
    twice = [write_tar(tmp_path / f"{n}.tar", [("k.jpg", b"x"), ("k.cls", b"1")]) for n in "ab"]
    other = write_tar(tmp_path / "other.tar", [("new.jpg", b"x"), ("new.cls", b"1")])
    stores = {"twice": twice, "other": [other], "tars": sorted(tars.glob("*.tar"))}
    for name, shards in stores.items():
        made = ss.index(shards, tmp_path / f"{name}.zarr")
        made.put_score("s", np.arange(len(made)))
    line = call("realign", tmp_path / "twice.zarr", tmp_path / "tars.zarr", status=2)
    assert "must be unique" in line
    line = call("realign", tmp_path / "tars.zarr", tmp_path / "other.zarr", status=2)
    assert "1 keys of" in line
    assert "'new'" in line
    assert ss.open_store(tmp_path / "other.zarr").score("s").tolist() == [0]


@pytest.fixture
def scored(tmp_path):
    path = write_beton(tmp_path / "train.beton", 300)
    store = ss.index(path, tmp_path / "train.zarr")
    store.put_score("mine", np.random.default_rng(5).permutation(300))
    return store


def test_keeping_by_score_writes_the_highest_first_with_bytes_untouched(call, scored, tmp_path):
    source, half = tmp_path / "train.beton", tmp_path / "half.beton"
    how = ["--to", "beton", "--store", scored.path, "--keep", "mine"]
    made = call("pack", source, half, *how, "--keep-fraction", 0.5)
    assert made["splits"][0]["samples"] == 150
    want = np.argsort(-scored.score("mine"))[:150]
    before, after = source.read_bytes(), half.read_bytes()
    whole, kept = read_beton(source), read_beton(half)
    assert kept.labels().tolist() == want.tolist()
    for new, old in enumerate(want.tolist()):
        (a, n), (b, m) = whole.ranges[old].tolist(), kept.ranges[new].tolist()
        assert before[a : a + n] == after[b : b + m]
    # Any keep fraction of a file in score order is a prefix: as few pages as its bytes need.
    call("pack", source, tmp_path / "all.beton", *how)
    ordered = ss.index(tmp_path / "all.beton", tmp_path / "all.zarr")
    ss.realign(scored, ordered)
    assert (np.diff(ordered.score("mine")) < 0).all()
    few = call("info", "--store", ordered.path, "--keep", 0.25, "--score", "mine")["reads"]
    many = call("info", "--store", scored.path, "--keep", 0.25, "--score", "mine")["reads"]
    assert (few["pages_touched"], few["pages"]) == (1, 4)
    assert (many["pages_touched"], many["pages"]) == (4, 4)
    assert few["kept_bytes"] == many["kept_bytes"] == 75 * 96 * 96 * 3
    assert few["says"] == "keep 0.25 touches 1 of 4 pages"
    assert "saves no I/O" in many["says"]
    names = {"FILE.beton": source, "NEW.beton": tmp_path / "new.beton"}
    advised = many["says"].partition("shardsieve ")[2].split()
    call(*(names.get(word, word) for word in advised))
    assert (tmp_path / "new.beton").read_bytes() == (tmp_path / "all.beton").read_bytes()
    # No other order would touch fewer.
    most = call("info", "--store", ordered.path, "--keep", 0.8, "--score", "mine")["reads"]
    assert most["says"] == "keep 0.8 touches 4 of 4 pages"


def test_keeping_the_ids_that_select_wrote(call, scored, tars, tmp_path):
    ids = tmp_path / "ids.txt"
    rule = ["--keep-fraction", 0.1, "--rule", "random", "--out", ids]
    call("select", "--store", scored.path, *rule)
    kept = list(map(int, ids.read_text().split()))
    source = tmp_path / "train.beton"
    call("pack", source, tmp_path / "k.beton", "--to", "beton", "--keep", ids)
    assert read_beton(tmp_path / "k.beton").labels().tolist() == kept
    assert read_beton(tmp_path / "k.beton").keys() == [f"{row:08d}" for row in kept]
    call("pack", source, tmp_path / "tars", "--keep", ids)
    rows = [s for p in (tmp_path / "tars").glob("*.tar") for s in by_webdataset(p)]
    assert [int(s["cls"]) for s in rows] == kept
    ids.write_text("64\n3\n")  # the first of the second tar, the fourth of the first
    call("pack", f"{tars}/s-*.tar", tmp_path / "t.beton", "--to", "beton", "--keep", ids)
    assert read_beton(tmp_path / "t.beton").labels().tolist() == [N // 2, 3]


def test_a_file_with_an_id_twice_or_beside_a_fraction_is_refused(call, tars, tmp_path):
    ids, out = tmp_path / "ids.txt", tmp_path / "t.beton"
    ids.write_text("64\n3\n64\n")
    error = call("pack", f"{tars}/s-*.tar", out, "--to", "beton", "--keep", ids, status=2)
    assert "ids.txt must hold an id once, got 64 twice" in error
    how = ["--to", "beton", "--keep", ids, "--keep-fraction", 0.5]
    error = call("pack", f"{tars}/s-*.tar", out, *how, status=2)
    assert "--keep-fraction must come with --keep SCORE, got the file" in error
    assert not out.exists()


class ByPage:
    """Rows whose label is their page."""

    def __len__(self):
        return 300

    def __getitem__(self, row):
        return image(row), row // 75


def test_a_window_of_an_ffcv_store_is_of_pages(tmp_path):
    store = ss.index(write_beton(tmp_path / "p.beton", data=ByPage()), tmp_path / "p.zarr")
    keep = ss.select(store, keep_fraction=1.0)
    for window in (1, 2, 4):
        ids = list(ss.PrunedShardSampler(store, keep_set=keep, window=window))
        assert sorted(ids) == list(range(300))
        assert len(set(store.labels()[ids[:75]])) == window
        assert mixing(store, keep, OrderSettings(0, "window", window), 75).found == window


def test_of_small_pages_so_many_are_shuffled_together_as_hold_some_thousand_kept_rows(tmp_path):
    store = ss.index(write_beton(tmp_path / "p.beton", 6000, side=2), tmp_path / "p.zarr")
    store.group.attrs["page_size"] = 64
    pages = store.ranges[..., 0].reshape(-1)[:6000] // 64
    keep = ss.select(store, keep_fraction=0.5, rule="random")
    window = default_pages(3000, len(np.unique(pages[keep.ids()])))
    assert 16 < window < len(np.unique(pages)) < 2000
    orders = [list(ss.PrunedShardSampler(store, keep_set=keep, window=w)) for w in (None, window)]
    assert orders[0] == orders[1]


def test_an_ffcv_store_gives_raw_samples_too(scored):
    data = ss.ShardDataset(scored)
    sample = data[17]
    assert (sample["__id__"], sample["__key__"], sample["cls"]) == (17, "00000017", b"17")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["ppm"]))), image(17))
    assert data.ledger.total.kept == 96 * 96 * 3


def test_info_of_tars_says_what_ranges_save(call, tars, tmp_path):
    ss.index(f"{tars}/s-*.tar", tmp_path / "s.zarr")
    reads = call("info", "--store", tmp_path / "s.zarr", "--keep", 0.5)["reads"]
    assert reads["kept"] == N // 2
    assert reads["ranges"] == reads["kept_bytes"] < reads["all_bytes"] < reads["whole_shards"]


def test_no_more_than_the_file_is_said_to_be_read(call, scored, monkeypatch):
    """A disk may read ahead more than there is."""
    monkeypatch.setattr(showing, "readahead_of", lambda path: 1 << 30)
    reads = call("info", "--store", scored.path, "--keep", 0.5)["reads"]
    assert reads["os_cache_true"] == Path(scored.urls[0]).stat().st_size


def wrong(tmp_path, tars):
    """(arguments, words of the one line) of every wrong way to pack."""
    source, tar = tmp_path / "train.beton", f"{tars}/s-*.tar"
    store = ["--store", tmp_path / "train.zarr"]
    (tmp_path / "ids.txt").write_text("1\nx\n")
    (tmp_path / "far.txt").write_text("1000\n")
    new = tmp_path / "new.beton"
    return [
        ([source, new, "--to", "zip"], "to must be one of tar, beton"),
        ([tar, tmp_path / "folder", "--to", "beton"], "name the file"),
        ([tar, tmp_path / "folder"], "packed as tar already"),
        ([source, new, "--to", "beton"], "or the rows with --keep"),
        ([source, source, "--to", "beton", "--keep", "mine", *store], "is there already"),
        ([source, new, "--to", "beton", "--keep", "mine"], "neither --store nor such a file"),
        ([source, new, "--to", "beton", "--keep", "other", *store], "must be one of those in"),
        ([source, new, "--to", "beton", "--keep", "part", *store], "must be finite"),
        ([source, new, "--to", "beton", "--keep", tmp_path / "ids.txt"], "one id a line"),
        ([source, new, "--to", "beton", "--keep", tmp_path / "far.txt"], "ids must name samples"),
        ([tar, new, "--to", "beton", "--keep", "mine", *store], "choose another --store"),
        ([tar, new, "--to", "beton", "--page-size", 1000], "power of two"),
        (["digits", tmp_path, "--keep", "mine"], "pack and score it first"),
        (["digits", tmp_path, *store], "--store must come with tars or a .beton"),
        ([source, tmp_path, "--bytes-per-shard", 9999], "--bytes-per-shard must come with images"),
        ([tmp_path / "gone.beton", new], "No such file"),
    ]


def test_wrong_ways_to_pack_are_one_line_and_write_nothing(call, scored, tars, tmp_path, capsys):
    capsys.readouterr()
    scored.put_score("part", np.r_[np.nan, np.arange(299)])
    cases = wrong(tmp_path, tars)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for arguments, words in cases:
        line = call("pack", *arguments, status=2)
        assert words in line
        assert line.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
