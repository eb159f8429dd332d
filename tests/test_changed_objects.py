"""Objects that are others than they were when they were indexed."""

import os

import pytest
from servers import range_server
from tars import write_shards

import shardsieve as ss


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


def test_an_object_without_tag_that_ends_early_is_asked_for_once(tmp_path):
    (path,) = write_shards(tmp_path / "d", [20])
    with range_server(tmp_path / "d") as server:
        server.tags = False
        store = ss.index(f"{server.url}/{path.name}", tmp_path / "s.zarr")
        os.truncate(path, int(store.ranges[0, 9].sum()) - 1)
        asked = server.asked
        with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar ends before byte"):
            ss.ShardDataset(store).__getitems__([9])
        assert server.asked == asked + 1
