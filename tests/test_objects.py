"""Shards and stores in object stores: moto's S3 and a range server with faults, on loopback."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from servers import range_server
from tars import by_webdataset, write_shards, write_tar
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.commands.showing import describe
from shardsieve.io import clients, objects, retries, source
from shardsieve.io.joined import JoinedReader
from shardsieve.io.local import LocalReader
from shardsieve.io.source import measure_storage, walkable
from shardsieve.io.spans import HARD_DISK, OBJECTS, Storage


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "d", [9, 1, 14, 6])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)


def test_a_store_and_its_shards_live_in_s3(s3, shards, tmp_path):
    s3.upload(shards)
    bucket, local = f"s3://{s3.bucket}", ss.index(shards, tmp_path / "s.zarr")
    urls, target = f"{bucket}/s-{{000..003}}.tar", f"{bucket}/set.zarr"
    store = ss.index(urls, target)
    assert len(ss.index(urls, target)) == 30
    np.testing.assert_array_equal(store.ranges, local.ranges)
    np.testing.assert_array_equal(store.labels(), local.labels())
    store.put_score("up", range(30))
    again = ss.open_store(target, mode="r")
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
        ss.index(f"{bucket}/s-000.tar", target)
    s3.upload([write_tar(tmp_path / "s-003.tar", [("z.jpg", b"1")])])
    with pytest.raises(ss.StoreMismatchError, match=rf"{bucket}/s-003\.tar is not the one"):
        ss.open_store(target)
    with pytest.raises(ss.StoreFormatError, match=f"no store at {bucket}/none"):
        ss.open_store(f"{bucket}/none")


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


def test_how_far_an_embedding_is_made_is_told_where_it_can_be_listed(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [3, 4]), tmp_path / "s.zarr")
    store.embedding_array("half", 5)[1, :4] = 1.0
    (told,) = describe(store.path)["embeddings"]
    assert told == {"name": "half", "dim": 5, "embedded_shards": 1}
    with range_server(tmp_path) as server:
        assert describe(f"{server.url}/s.zarr")["embeddings"] == [{"name": "half", "dim": 5}]


@pytest.mark.parametrize("workers", [0, 2])
def test_five_percent_of_failing_requests_lose_nothing_in_s3(s3, tmp_path, workers):
    paths = write_shards(tmp_path / "d", [120, 90, 150])
    draw, failed = random.Random(5), []

    def flaky(environ):
        if "HTTP_RANGE" not in environ or draw.random() >= 0.05:
            return None
        failed.append(draw.choice(["503 Slow Down", "500 Internal Server Error"]))
        return failed[-1]

    s3.refuse = flaky
    store = ss.index(s3.upload(paths), tmp_path / "s.zarr")
    failed.clear()
    data = ss.ShardDataset(store)
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random")
    loader = DataLoader(data, 16, sampler=sampler, num_workers=workers, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    assert sorted(s["__id__"] for s in samples) == sampler.keep_set.ids().tolist()
    truth = {s["__key__"]: s["jpg"] for path in paths for s in by_webdataset(path)}
    assert all(s["jpg"] == truth[s["__key__"]] for s in samples)
    assert data.ledger.total.retries == len(failed) > 0
    assert data.ledger.total.kept == sampler.keep_set.nbytes(store)


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
    with pytest.raises(ss.ShardsieveError, match="must begin with one of s3, gs, az, hf, http"):
        clients.client("ftp://host/a.tar")
    with pytest.raises(
        ss.ShardsieveError, match=r"not have a query .*, got https://host/a\.tar\?\.{3}$"
    ):
        clients.client("https://host/a.tar?signature=1")
    with pytest.raises(ss.ShardsieveError, match=r"a password, .*, got https://\.{3}@host/a\.tar"):
        ss.open_store("https://me:secret@host/a.tar")
    with pytest.raises(ss.ShardsieveError, match=r"a password, .*, got https://\.{3}@host/a\.tar$"):
        clients.client("https://me:secret@host/a.tar?signature=1")


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


def test_what_is_named_again_waits_on_and_what_is_not_is_given_up(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    reader, url = JoinedReader(Storage(0, 1, 1)), str(tmp_path / "a")
    named, left = [(url, [(0, 1)]), (url, [(1, 1)])]
    reader.prefetch([named, left])
    begun, given_up = (one.answers[0] for one in reader._pending.values())
    given_up.cancel = lambda: stopped.append(True)
    stopped = []
    for call in range(17):
        assert (len(reader._pending), len(stopped)) == (2, 0), call
        reader.prefetch([named])
    assert ([one.answers[0] for one in reader._pending.values()], stopped) == ([begun], [True])
    assert list(reader.read_many(*named)) == [b"1"]
    assert not reader._pending
    reader.close()


def test_a_file_that_ends_early_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    for reader in (LocalReader(), JoinedReader(Storage(0, 1, 1))):
        assert reader.read(str(tmp_path / "a"), 1, 4) == b"2345"
        with pytest.raises(ss.CorruptShardError, match="ends before byte 6"):
            reader.read(str(tmp_path / "a"), 1, 5)
        reader.close()


def test_a_batch_of_more_shards_than_wait_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(250)) * 6)
    reader, url = JoinedReader(Storage(0, 1, 2)), str(tmp_path / "a")
    lists = [[(offset, 1)] for offset in range(1500)]
    reader.prefetch((url, ranges) for ranges in lists)
    got = [data for ranges in lists for data in reader.read_many(url, ranges)]
    assert b"".join(got) == bytes(range(250)) * 6
    reader.close()


def test_workers_ask_a_store_in_s3_for_nothing(s3, shards):
    store = ss.index(s3.upload(shards), f"s3://{s3.bucket}/s.zarr")
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.9, rule="random")
    data = ss.ShardDataset(store)
    loader = DataLoader(data, 4, sampler=sampler, num_workers=2, collate_fn=list)
    s3.seen.clear()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found = {sample["__id__"]: sample["__key__"] for batch in loader for sample in batch}
        assert sorted(found) == sampler.keep_set.ids().tolist()
    assert [path for _, path in s3.seen if ".zarr" in path] == []
    keys = {shard: store.keys(shard) for shard in range(4)}
    assert all(keys[one // 64][one % 64] == key for one, key in found.items())


def test_a_slow_disk_is_read_in_joined_spans(shards, tmp_path):
    store = ss.index(shards, tmp_path / "s.zarr")
    ids = store.ids()[::2].tolist()
    exact, joined = ss.ShardDataset(store), ss.ShardDataset(store, storage=HARD_DISK)
    assert exact.__getitems__(ids) == joined.__getitems__(ids)
    assert joined.ledger.total.kept == exact.ledger.total.read == exact.ledger.total.kept
    assert joined.ledger.total.requests < exact.ledger.total.requests


def test_storage_is_measured(tmp_path, monkeypatch):
    """By a clock that only reading moves: 20 ms to the first byte, at times 1 s, and 20 MB/s."""
    path, now = write_tar(tmp_path / "big.tar", [("a.jpg", bytes(2 << 20))]), [0.0]
    waits = iter([1.0, 0.02, 0.03, 0.02, 0.02, 1.0, 0.01, 0.01, 0.02])

    def read(reader, url, offset, length):
        assert offset + length <= path.stat().st_size
        now[0] += next(waits) + (length - 1) / 20e6

    monkeypatch.setattr(JoinedReader, "read", read)
    monkeypatch.setattr(source, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    found = measure_storage(str(path))
    assert found.latency == pytest.approx(0.02)
    assert found.bandwidth == pytest.approx(20e6, rel=1e-4)
    assert found.in_flight == source.AT_ONCE
    assert list(waits) == []


def test_storage_behind_a_server_is_measured(tmp_path):
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    with range_server(tmp_path, latency=0.02) as server:
        assert measure_storage(f"{server.url}/big").latency >= 0.02


def test_a_walk_may_ask_for_any_part_of_an_object(tmp_path):
    whole = random.Random(0).randbytes(10 << 20)
    (tmp_path / "a").write_bytes(whole)
    with range_server(tmp_path) as server:
        url = f"{server.url}/a"
        with walkable(url, objects.mark_of(url)) as (read, total):
            assert total == len(whole)
            for at, size in ((0, 9), (5 << 20, 5 << 20), (4, 9), (9 << 20, 2 << 20), (2, 5 << 20)):
                assert read(at, size) == whole[at : at + size]


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


def test_a_pipeline_that_selects_members_reads_samples_once(shards, tmp_path):
    import webdataset as wds

    with range_server(tmp_path / "d") as server:
        urls = [f"{server.url}/{path.name}" for path in shards]
        store = ss.index(urls, tmp_path / "s.zarr")
        server.seen.clear()
        only_images = wds.WebDataset(
            urls, shardshuffle=False, select_files=lambda name: name.endswith(".jpg")
        )
        pruned = ss.prune(only_images, store, keep_fraction=0.4, rule="random")
        got = list(pruned)
        assert [set(sample) >= {"cls"} or "__raw__" in sample for sample in got] == [False] * 12
        assert sum(server.seen) == pruned.ledger.total.read
        assert pruned.ledger.total.kept == pruned.pipeline[0].keep.nbytes(store)
