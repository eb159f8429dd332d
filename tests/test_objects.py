"""Shards and stores in object stores: moto's S3 and a range server with faults, on loopback."""

import os
import random
import threading

import boto3
import numpy as np
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from servers import range_server
from tars import by_webdataset, write_shards, write_tar
from torch.utils.data import DataLoader
from werkzeug.serving import make_server

import shardsieve as ss
from shardsieve.io import objects
from shardsieve.io.joined import JoinedReader
from shardsieve.io.source import measure_storage
from shardsieve.io.spans import HARD_DISK, OBJECTS, Storage

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def s3():
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        made = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        made.create_bucket(Bucket="shards")
        yield made
    server.stop()


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "d", [9, 1, 14, 6])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.002)


def test_a_store_and_its_shards_live_in_s3(s3, shards, tmp_path):
    for path in shards:
        s3.upload_file(str(path), "shards", path.name)
    urls, local = "s3://shards/s-{000..003}.tar", ss.index(shards, tmp_path / "s.zarr")
    store = ss.index(urls, "s3://shards/set.zarr")
    assert len(ss.index(urls, "s3://shards/set.zarr")) == 30
    np.testing.assert_array_equal(store.ranges, local.ranges)
    np.testing.assert_array_equal(store.labels(), local.labels())
    store.put_score("up", range(30))
    again = ss.open_store("s3://shards/set.zarr", mode="r")
    assert again.scores == ["up"]
    assert again.score("up").tolist() == list(range(30))
    sampler = ss.PrunedShardSampler(again, keep_fraction=0.5, score="up")
    data = ss.ShardDataset(again)
    got = [s for batch in DataLoader(data, 4, sampler=sampler, collate_fn=list) for s in batch]
    assert sorted(s["__id__"] for s in got) == again.ids()[15:].tolist()
    truth = {s["__key__"]: s["jpg"] for path in shards for s in by_webdataset(path)}
    assert all(s["jpg"] == truth[s["__key__"]] for s in got)
    assert data.ledger.total.kept == sampler.keep_set.nbytes(again)
    with pytest.raises(ss.StoreMismatchError, match="choose another --store"):
        ss.index("s3://shards/s-000.tar", "s3://shards/set.zarr")
    s3.upload_file(str(write_tar(tmp_path / "n.tar", [("z.jpg", b"1")])), "shards", "s-003.tar")
    with pytest.raises(ss.StoreMismatchError, match=r"s3://shards/s-003\.tar is not the one"):
        ss.open_store("s3://shards/set.zarr")
    with pytest.raises(ss.StoreFormatError, match="no store at s3://shards/none"):
        ss.open_store("s3://shards/none")


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_lose_nothing_also_in_forked_workers(shards, tmp_path, workers):
    with range_server(tmp_path / "d", faults=0.3, seed=workers) as server:
        urls = [f"{server.url}/{path.name}" for path in shards]
        store = ss.index(urls, tmp_path / "s.zarr")
        data = ss.ShardDataset(store)
        sampler = ss.PrunedShardSampler(store, keep_fraction=0.6, rule="random")
        server.seen.clear()
        server.failed.clear()
        loader = DataLoader(data, 4, sampler=sampler, num_workers=workers, collate_fn=list)
        ids = [s["__id__"] for batch in loader for s in batch]
        assert sorted(ids) == sampler.keep_set.ids().tolist()
        total = data.ledger.total
        assert total.kept == sampler.keep_set.nbytes(store)
        assert total.read == sum(server.seen)
        assert total.retries == len(server.failed) > 0
        assert total.requests == len(server.seen) + len(server.failed)
        assert 1 <= total.amplification <= OBJECTS.amplification
        assert len(data.ledger.workers) == 1 + workers
        assert sum((w.kept for w in data.ledger.workers), 0) == total.kept


class FlakyS3:
    """moto's S3 behind an application that answers a share of the range requests with faults."""

    def __init__(self, share):
        self.inner, self.share, self.draw, self.failed = None, share, random.Random(5), 0

    def __call__(self, environ, start_response):
        if "HTTP_RANGE" in environ and self.draw.random() < self.share:
            self.failed += 1
            body = self.draw.choice([b"SlowDown", b"InternalError"])
            status = "503 Slow Down" if body == b"SlowDown" else "500 Internal Server Error"
            xml = b"<Error><Code>" + body + b"</Code></Error>"
            start_response(status, [("Content-Type", "application/xml")])
            return [xml]
        return self.inner(environ, start_response)


@pytest.mark.parametrize("workers", [0, 2])
def test_five_percent_of_failing_requests_lose_nothing_in_s3(tmp_path, workers, monkeypatch):
    paths = write_shards(tmp_path / "d", [120, 90, 150])
    flaky = FlakyS3(0.05)
    flaky.inner = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, flaky, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    try:
        s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        bucket = f"flaky-{workers}-{os.getpid()}"
        s3.create_bucket(Bucket=bucket)
        for path in paths:
            s3.upload_file(str(path), bucket, path.name)
        store = ss.index([f"s3://{bucket}/{path.name}" for path in paths], tmp_path / "s.zarr")
        before = flaky.failed
        data = ss.ShardDataset(store)
        sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random")
        loader = DataLoader(data, 16, sampler=sampler, num_workers=workers, collate_fn=list)
        samples = [sample for batch in loader for sample in batch]
        assert sorted(s["__id__"] for s in samples) == sampler.keep_set.ids().tolist()
        truth = {s["__key__"]: s["jpg"] for path in paths for s in by_webdataset(path)}
        assert all(s["jpg"] == truth[s["__key__"]] for s in samples)
        assert data.ledger.total.retries == flaky.failed - before > 0
        assert data.ledger.total.kept == sampler.keep_set.nbytes(store)
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_lasting_fault_names_shard_range_and_cause(shards, tmp_path):
    with range_server(tmp_path / "d") as server:
        url = f"{server.url}/{shards[0].name}"
        store = ss.index(url, tmp_path / "s.zarr")
        server.faults = 1.0
        with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar, bytes 0-2\d+ in 7 attempts: "):
            ss.ShardDataset(store)[0]
        shards[0].unlink()
        with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar, bytes 0-2\d+: "):
            ss.ShardDataset(store)[0]
    with pytest.raises(ss.ShardsieveError, match="must begin with one of s3, gs, az, http, https"):
        objects.client("ftp://host/a.tar")
    with pytest.raises(ss.ShardsieveError, match="must not have a query"):
        objects.client("https://host/a.tar?signature=1")


def test_reads_begun_ahead_are_not_made_twice(shards, tmp_path):
    with range_server(tmp_path / "d") as server:
        store = ss.index(f"{server.url}/{shards[2].name}", tmp_path / "s.zarr")
        server.seen.clear()
        reader = JoinedReader(Storage(0, 1, 4))
        ranges = list(map(tuple, store.ranges[0, [1, 5, 9]].tolist()))
        reader.prefetch([(store.urls[0], ranges)])
        whole = shards[2].read_bytes()
        got = list(reader.read_many(store.urls[0], ranges))
        assert got == [whole[offset : offset + length] for offset, length in ranges]
        assert sorted(server.seen) == sorted(length for _, length in ranges)
        reader.close()


def test_a_batch_of_more_shards_than_wait_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(250)) * 6)
    reader, url = JoinedReader(Storage(0, 1, 2)), str(tmp_path / "a")
    lists = [[(offset, 1)] for offset in range(1500)]
    reader.prefetch((url, ranges) for ranges in lists)
    got = [data for ranges in lists for data in reader.read_many(url, ranges)]
    assert b"".join(got) == bytes(range(250)) * 6
    reader.close()


def test_a_slow_disk_is_read_in_joined_spans(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    ids = store.ids()[::2].tolist()
    exact, joined = ss.ShardDataset(store), ss.ShardDataset(store, storage=HARD_DISK)
    assert exact.__getitems__(ids) == joined.__getitems__(ids)
    assert joined.ledger.total.kept == exact.ledger.total.read == exact.ledger.total.kept
    assert joined.ledger.total.requests < exact.ledger.total.requests


def test_storage_is_measured(shards, tmp_path):
    path = write_tar(tmp_path / "d" / "big.tar", [("a.jpg", bytes(2 << 20))])
    with range_server(tmp_path / "d", latency=0.02, bandwidth=20e6) as server:
        found = measure_storage(f"{server.url}/{path.name}")
    assert 0.02 <= found.latency < 0.5
    assert found.bandwidth < 40e6


def test_a_pipeline_over_urls_is_pruned(shards, tmp_path):
    import webdataset as wds

    with range_server(tmp_path / "d") as server:
        urls = [f"{server.url}/{path.name}" for path in shards]
        store = ss.index(urls, tmp_path / "s.zarr")
        pruned = ss.prune(
            wds.WebDataset(urls, shardshuffle=False), store, keep_fraction=0.4, rule="random"
        )
        got = [s["__key__"] for s in pruned]
        assert len(got) == len(set(got)) == 12
        assert pruned.ledger.total.kept > 0
