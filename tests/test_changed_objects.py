"""Objects that are others than they were when they were indexed."""

import os

import pytest
from servers import range_server
from tars import write_shards, write_tar

import shardsieve as ss
from shardsieve.io import objects, source


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [(64, "was replaced after it was indexed"), (83, r"ends before byte \d+; it was truncated")],
)
def test_an_object_that_was_replaced_by_a_shorter_one_is_asked_for_once(
    s3, tmp_path, wanted, cause
):
    paths = write_shards(tmp_path / "d", [3, 20])
    store = ss.index(s3.upload(paths), tmp_path / "s.zarr")
    s3.upload([paths[0].rename(paths[1])])
    s3.seen.clear()
    with pytest.raises(ss.CorruptShardError, match=rf"s-001\.tar {cause}"):
        ss.ShardDataset(store)[wanted]
    assert [method for method, _ in s3.seen] == ["GET"]


@pytest.mark.parametrize(
    ("tagged_before", "more"), [(False, -1), (False, 0), (False, 1), (True, -1), (True, 1)]
)
def test_an_object_without_tag_is_told_by_its_size_and_time(tmp_path, tagged_before, more):
    (path,) = write_shards(tmp_path / "d", [20])
    with range_server(tmp_path / "d") as server:
        server.tags = tagged_before
        store = ss.index(f"{server.url}/{path.name}", tmp_path / "s.zarr")
        server.tags = False
        data = ss.ShardDataset(store)
        assert data[0]["__id__"] == 0
        os.truncate(path, path.stat().st_size + more)
        os.utime(path, (7, 7))
        asked = server.asked
        with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar was replaced"):
            data[9]
        assert server.asked == asked + 1


@pytest.fixture
def many(s3, tmp_path):
    """The URLs of more shards than are asked for one by one, beside other objects."""
    for name in ("a", "a b/0", "a b/s-005.json", "a b/s-007.tar/below", "b"):
        s3.client.put_object(Bucket=s3.bucket, Key=name, Body=b"other")
    return s3.upload(write_shards(tmp_path / "d", [1] * 20), "a b/")


def test_many_objects_are_listed_with_one_question(s3, tmp_path, many):
    s3.seen.clear()
    ss.index(many, tmp_path / "s.zarr")
    asked = [method for method, path in s3.seen if path[-4:] == ".tar"]
    assert sorted(asked) == ["GET"] * 20 + ["HEAD"] * 20
    s3.seen.clear()
    store = ss.open_store(tmp_path / "s.zarr")
    assert s3.seen == [("GET", f"/{s3.bucket}")]
    assert source.cheap_fingerprints(many) == list(map(source.cheap_fingerprint, many))
    s3.upload([write_tar(tmp_path / "s-003.tar", [("z.jpg", b"1")])], "a b/")
    with pytest.raises(ss.StoreMismatchError, match=r"a b/s-003\.tar is not the one"):
        ss.open_store(store.path)
    s3.client.delete_object(Bucket=s3.bucket, Key="a b/s-003.tar")
    with pytest.raises(ss.CorruptShardError, match=r"a b/s-003\.tar: .*not found"):
        ss.open_store(store.path)


@pytest.mark.parametrize("most", [20, 0], ids=["forbidden", "long"])
def test_what_a_listing_does_not_tell_is_asked_for(s3, tmp_path, many, monkeypatch, most):
    ss.index(many, tmp_path / "s.zarr")
    monkeypatch.setattr(objects, "_MOST_LISTED", most)
    if most:
        s3.refuse = lambda environ: "403 Forbidden" if environ["QUERY_STRING"] else None
    else:
        for number in range(60):
            name = f"a b/s-000.tar-{number}"
            s3.client.put_object(Bucket=s3.bucket, Key=name, Body=b"other")
    s3.seen.clear()
    assert ss.open_store(tmp_path / "s.zarr").num_shards == 20
    assert [method for method, _ in s3.seen if method == "HEAD"] == ["HEAD"] * (20 if most else 19)


def test_a_listing_that_is_old_refuses_nothing(s3, tmp_path, many, monkeypatch):
    ss.index(many, tmp_path / "s.zarr")
    monkeypatch.setattr(source, "listed_marks", lambda urls: dict.fromkeys(urls, "1-old"))
    assert ss.open_store(tmp_path / "s.zarr").num_shards == 20


def test_an_object_that_is_replaced_while_it_is_indexed_is_refused(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 1024)
    urls = s3.upload(write_shards(tmp_path / "d", [30]))
    (other,) = write_shards(tmp_path / "e", [31])
    asked = []

    def replace(environ):
        asked.extend([environ["HTTP_RANGE"]] if "HTTP_RANGE" in environ else [])
        if len(asked) == 5:
            asked.append("replaced")
            s3.upload([other])

    s3.refuse = replace
    with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar was replaced"):
        ss.index(urls, tmp_path / "s.zarr")
