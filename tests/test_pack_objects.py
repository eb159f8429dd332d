"""FFCV files from tars in an object store."""

import io
import threading

import numpy as np
import pytest
from PIL import Image
from tars import content, write_tar

import shardsieve as ss
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.pack import beton
from shardsieve.pack.beton import pack_beton


def image(name):
    """Return an image that has as many bytes as any other."""
    file = io.BytesIO()
    Image.fromarray(np.frombuffer(content(name, 64), np.uint8).reshape(8, 8)).save(file, "BMP")
    return file.getvalue()


@pytest.fixture
def tars(tmp_path):
    (tmp_path / "d").mkdir()
    names = [[f"{shard}-{row}" for row in range(9)] for shard in range(3)]
    return [
        write_tar(
            tmp_path / "d" / f"s-{shard}.tar",
            [(f"{name}.{s}", d) for name in row for s, d in (("bmp", image(name)), ("cls", b"1"))],
        )
        for shard, row in enumerate(names)
    ]


@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
def test_a_beton_of_objects_holds_what_one_of_their_files_does(
    s3, tars, tmp_path, monkeypatch, order
):
    monkeypatch.setattr(beton, "_AT_ONCE", 4)
    files, store = ss.index(tars, tmp_path / "f.zarr"), ss.index(s3.upload(tars), tmp_path / "o")
    ids = store.ids()[::order]
    for one, out in ((files, "f.beton"), (store, "o.beton")):
        pack_beton(one, tmp_path / out, ids=ids)
    assert (tmp_path / "o.beton").read_bytes() == (tmp_path / "f.beton").read_bytes()
    packed = ShardDataset(ss.index(tmp_path / "o.beton", tmp_path / "b.zarr"))
    keys = [sample["__key__"] for sample in packed.__getitems__(list(range(27)))]
    assert keys == [f"{shard}-{row}" for shard in range(3) for row in range(9)][::order]


def test_a_beton_of_objects_is_read_several_samples_at_a_time(s3, tars, tmp_path):
    store, meet = ss.index(s3.upload(tars), tmp_path / "s.zarr"), threading.Barrier(8)

    def together(environ):
        if "HTTP_RANGE" in environ and not meet.broken:
            meet.wait(60)

    s3.refuse = together
    pack_beton(store, tmp_path / "t.beton", ids=store.ids()[-1:2:-1])
    assert not meet.broken
    s3.seen.clear()
    s3.refuse = lambda environ: None
    pack_beton(store, tmp_path / "a.beton")
    assert len(s3.seen) == 3  # neighbours come together


def test_no_beton_is_made_of_an_object_that_was_replaced(s3, tars, tmp_path):
    store = ss.index(s3.upload(tars), tmp_path / "s.zarr")
    other = tars[1].read_bytes().replace(image("1-5"), image("1-6"))
    s3.client.put_object(Bucket=s3.bucket, Key="s-1.tar", Body=other)
    with pytest.raises(ss.CorruptShardError, match=r"s-1\.tar was replaced"):
        pack_beton(store, tmp_path / "t.beton")
    assert not (tmp_path / "t.beton").exists()
