"""What goes wrong with stores and shards that are not on this machine, on loopback."""

import json
import multiprocessing
import os
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from obstore.store import HTTPStore
from servers import range_server
from tars import write_shards, write_tar
from torch.utils.data import DataLoader

import shardsieve as ss
from shardsieve.io import clients, local, objects, retries, source
from shardsieve.io.joined import JoinedReader
from shardsieve.io.spans import Storage
from shardsieve.store import create


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)


def test_indexing_into_a_place_that_is_not_empty_deletes_nothing(s3, tmp_path):
    urls = s3.upload(write_shards(tmp_path / "d", [3, 4]), "train/")
    before = s3.names()
    store = ss.index(urls, f"s3://{s3.bucket}/train")
    assert before < s3.names()
    assert len(store) == 7


def test_a_store_whose_upload_was_cut_short_is_none_and_is_made_again(s3, tmp_path):
    urls, target = s3.upload(write_shards(tmp_path / "d", [3, 4])), f"s3://{s3.bucket}/s.zarr"
    puts = []

    def refuse(environ):
        if environ["REQUEST_METHOD"] == "PUT":
            puts.append(environ["PATH_INFO"])
            return "403 Forbidden" if len(puts) > 8 else None
        return None

    s3.refuse = refuse
    with pytest.raises(ss.ShardsieveError, match=r"cannot write s3://\S+: .*403"):
        ss.index(urls, target)
    assert len(puts) > 8
    s3.refuse = lambda environ: None
    with pytest.raises(ss.StoreFormatError, match=r"no store at .*; `ss\.index\(SHARDS, URL\)`"):
        ss.open_store(target)  # the commands make no store there
    assert len(ss.index(urls, target)) == 7
    assert s3.seen[-1][0] != "PUT"


def test_no_store_is_written_over_http_and_no_shard_is_read_for_it(tmp_path):
    paths = write_shards(tmp_path / "d", [3, 2])
    ss.index(paths[0], tmp_path / "d" / "s.zarr")
    with range_server(tmp_path / "d") as server:
        url = f"{server.url}/{paths[1].name}"
        for make, target in ((ss.index, "new.zarr"), (ss.append_shards, "s.zarr")):
            with pytest.raises(ss.ShardsieveError, match="read, not written"):
                make(url, f"{server.url}/{target}")
        assert server.seen == []
        store = ss.open_store(f"{server.url}/s.zarr")
        with pytest.raises(ss.ShardsieveError, match="read, not written"):
            store.put_score("up", range(3))
        with pytest.raises(ss.ShardsieveError, match="read, not written"):
            ss.KeepSet.from_ids(store, [0]).save(store, "first")


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("s3://bucket/train-*.tar", "name them with braces"),
        ("s3://bucket/train-??.tar", "name them with braces"),
        ("s3://bucket/shards.txt", "download it"),
        ("@https://host/shards", "download it"),
        ("s3://bucket/train.beton", "download it"),
    ],
)
def test_what_cannot_be_read_from_afar_says_what_to_do(tmp_path, url, cure):
    with pytest.raises(ss.ShardsieveError, match=cure):
        ss.index(url, tmp_path / "s.zarr")


# The client hangs up before the whole file has come, and the server may end before it has noticed.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_host_without_ranges_is_named_at_once(tmp_path):
    write_shards(tmp_path / "d", [3])
    with range_server(tmp_path / "d") as server:
        server.ranges = False
        with pytest.raises(
            ss.ShardsieveError, match=r"copy it to a .* host that answers byte ranges"
        ):
            ss.index(f"{server.url}/s-000.tar", tmp_path / "s.zarr")
        assert server.asked < retries.ATTEMPTS
        with pytest.raises(ss.ShardsieveError, match="404") as told:
            ss.index(f"{server.url}/gone.tar", tmp_path / "s.zarr")
        assert "byte ranges" not in str(told.value)


def test_indexing_reads_an_object_once(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 4096)
    (path,) = write_shards(tmp_path / "d", [40])
    with range_server(tmp_path / "d") as server:
        store = ss.index(f"{server.url}/{path.name}", tmp_path / "s.zarr")
        assert len(server.seen) > 4
        assert sum(server.seen) <= path.stat().st_size
    assert store.labels().tolist() == [row % 3 for row in range(40)]


def test_an_index_that_an_outage_stopped_goes_on_where_it_was(s3, tmp_path):
    urls = s3.upload(write_shards(tmp_path / "d", [3, 4, 5]))
    s3.refuse = lambda environ: (
        "503 Slow Down" if "HTTP_RANGE" in environ and "s-002" in environ["PATH_INFO"] else None
    )
    with pytest.raises(ss.CorruptShardError, match=r"s-002\.tar, bytes \S+ in 7 attempts"):
        ss.index(urls, tmp_path / "s.zarr")
    s3.refuse = lambda environ: None
    s3.seen.clear()
    assert len(ss.index(urls, tmp_path / "s.zarr")) == 12
    assert {path[-9:] for method, path in s3.seen if method == "GET"} == {"s-002.tar"}
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_a_missing_shard_is_named_before_any_is_read(s3, tmp_path):
    urls = s3.upload(write_shards(tmp_path / "d", [3, 4, 5]))
    s3.seen.clear()
    with pytest.raises(
        ss.CorruptShardError, match=r"cannot read shard \S+/s-003\.tar: .*not found"
    ):
        ss.index([*urls, urls[0].replace("s-000", "s-003")], tmp_path / "s.zarr")
    assert {method for method, _ in s3.seen} == {"HEAD"}


def test_the_first_error_of_an_index_stops_the_walks_that_are_under_way(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 4096)
    paths = write_shards(tmp_path / "d", [1, 60, 60])
    paths[0].write_bytes(b"no tar" * 100)
    with range_server(tmp_path / "d", latency=0.1) as server:
        with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar is not a tar"):
            ss.index([f"{server.url}/{path.name}" for path in paths], tmp_path / "s.zarr")
        assert len(server.seen) < 60  # of 120 blocks


def test_objects_are_checked_several_at_a_time_and_named_in_order(tmp_path, monkeypatch):
    paths = write_shards(tmp_path / "d", [5, 6, 7])
    meet, walk, done = threading.Barrier(3), create.index_shard, []

    def walked(url, **how):
        meet.wait(60)
        return walk(url, **how)

    with range_server(tmp_path / "d") as server:
        store = ss.index([f"{server.url}/{path.name}" for path in paths], tmp_path / "s.zarr")
        monkeypatch.setattr(create, "index_shard", walked)
        create.check(store, progress=lambda *how: done.append(how))
        assert done == [(1, 3), (2, 3), (3, 3)]
        write_tar(paths[1], [("z.jpg", b"1")])
        paths[2].unlink()
        done.clear()
        with pytest.raises(ss.StoreMismatchError, match=r"s-001\.tar holds other samples"):
            create.check(store, progress=lambda *how: done.append(how))
        assert done == [(1, 3)]


def test_opening_bears_a_throttled_request(s3, tmp_path):
    target = f"s3://{s3.bucket}/s.zarr"
    ss.index(s3.upload(write_shards(tmp_path / "d", [3])), target)
    faults = ["503 Slow Down"]
    s3.refuse = lambda environ: faults.pop() if faults else None
    assert len(ss.open_store(target)) == 3
    assert faults == []


@pytest.mark.parametrize("name", ["a b/ü%20+.zarr", "slash.zarr/"])
def test_a_store_lies_where_its_url_says(s3, tmp_path, name):
    urls, target = s3.upload(write_shards(tmp_path / "d", [3])), f"s3://{s3.bucket}/{name}"
    ss.index(urls, target).put_score("up", range(3))
    assert ss.open_store(target).score("up").tolist() == [0, 1, 2]
    assert f"{name.rstrip('/')}/score/up/zarr.json" in s3.names()


def test_a_url_that_was_made_a_path_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "d", [3])
    for call in (ss.open_store, lambda store: ss.index("d/s-000.tar", store)):
        with pytest.raises(ss.ShardsieveError, match="must be given as a string"):
            call(Path("s3://bucket/s.zarr"))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_store_may_be_named_by_a_file_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (path,) = write_shards(tmp_path / "d", [3])
    ss.index(f"file://{path}", f"file://{tmp_path}/s.zarr")
    assert len(ss.open_store(f"file://{tmp_path}/s.zarr")) == len(ss.open_store("s.zarr")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s.zarr"]


def test_a_name_that_cannot_be_is_not_tried_again():
    with pytest.raises(ss.CorruptShardError, match=r"a//b\.tar: .*empty path segment"):
        objects.size_of("https://localhost/a//b.tar")


def test_names_after_a_host_may_be_percent_encoded(tmp_path):
    path = write_shards(tmp_path / "d", [3])[0]
    path.rename(path.with_name("a%20b.tar"))  # as the server hears it
    with range_server(tmp_path / "d") as server:
        for name in ("a%20b.tar", "a b.tar"):
            assert len(ss.index(f"{server.url}/{name}", tmp_path / f"{name}.zarr")) == 3


@pytest.mark.parametrize(
    "host",
    ["b.s3.us-east-1.amazonaws.com", "s3.us-east-1.amazonaws.com", "a.blob.core.windows.net"],
)
def test_a_public_object_of_a_cloud_needs_no_key_over_https(host):
    client, path = clients.client(f"https://{host}/b/a.tar")
    assert isinstance(client, HTTPStore)
    assert path == "b/a.tar"


def test_an_object_without_tag_has_one_mark_in_every_time_zone(monkeypatch):
    found = {"size": 3, "e_tag": None, "last_modified": datetime(2020, 10, 21, tzinfo=UTC)}
    monkeypatch.setattr(objects.obstore, "head", lambda client, path: found)
    marks = set()
    for zone in ("UTC", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        marks.add(objects.mark_of("http://localhost/a.tar"))
    monkeypatch.undo()
    time.tzset()
    assert marks == {"3-1603238400"}


def test_who_has_no_key_is_told_where_to_put_it(monkeypatch):
    def head(client, path):
        raise GenericError(
            "Error performing PUT http://169.254.169.254/latest/api/token\n\nDebug x"
        )

    monkeypatch.setattr(objects.obstore, "head", head)
    with pytest.raises(ss.ShardsieveError, match=r"api/token; the environment has no key: set AWS"):
        objects.mark_of("s3://bucket/a.tar")


def test_what_a_host_answers_is_said_of_long_names_too(s3, tmp_path):
    (url,) = s3.upload(write_shards(tmp_path / "d", [3]), f"{'x' * 150}/")
    s3.refuse = lambda environ: "403 Forbidden"
    with pytest.raises(ss.CorruptShardError, match=r"status code: 403 Forbidden: .*AccessDenied"):
        objects.fetch(url, 0, 10)


def test_every_name_of_an_endpoint_may_be_plain_http(s3, tmp_path, monkeypatch):
    (url,) = s3.upload(write_shards(tmp_path / "d", [3]))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT", s3.endpoint)
    assert objects.size_of(url) == (tmp_path / "d" / "s-000.tar").stat().st_size


@pytest.mark.parametrize("place", ["localhost:9000", "minio", "ftp://minio", "http://"])
def test_an_endpoint_that_is_no_url_is_named(s3, monkeypatch, place):
    monkeypatch.setenv("AWS_ENDPOINT_URL", place)
    with pytest.raises(ss.ShardsieveError, match=rf"AWS_ENDPOINT_URL must be as .* got '{place}'"):
        objects.size_of(f"s3://{s3.bucket}/a.tar")


def test_an_emulator_of_googles_storage_may_be_plain_http(tmp_path, monkeypatch):
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "shard").write_bytes(b"x" * 700)
    key = dict.fromkeys(["client_email", "private_key", "private_key_id"], "")
    with range_server(tmp_path) as server:
        key |= {"gcs_base_url": server.url, "disable_oauth": True}
        (tmp_path / "key.json").write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        assert objects.size_of("gs://bucket/shard") == 700
        assert objects.fetch("gs://bucket/shard", 3, 5).data == b"xxxxx"


def fetched(store, **how):
    data = ss.ShardDataset(store)
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, rule="random")
    loader = DataLoader(
        data, 4, sampler=sampler, num_workers=1, collate_fn=list, timeout=200, **how
    )
    ids = sorted(sample["__id__"] for batch in loader for sample in batch)
    assert ids == sampler.keep_set.ids().tolist()
    return ids


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_a_store_in_s3_however_they_are_started(s3, tmp_path, start):
    own, *others = write_shards(tmp_path / "d", [5, 9, 4])
    store = ss.index([str(own), *s3.upload(others)], f"s3://{s3.bucket}/s.zarr")
    assert len(fetched(store, multiprocessing_context=start)) == 9


def forking_child(store, answers):
    answers.put(store.labels().tolist())  # obstore is used here now
    answers.put(fetched(store, multiprocessing_context="fork"))


def test_a_spawned_process_may_fork_workers_for_a_store_it_was_given(s3, tmp_path):
    store = ss.index(s3.upload(write_shards(tmp_path / "d", [9, 4])), f"s3://{s3.bucket}/s.zarr")
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    child = spawn.Process(target=forking_child, args=(store, answers))
    child.start()
    assert answers.get(timeout=200) == store.labels().tolist()
    assert len(answers.get(timeout=200)) == 7
    child.join(60)


def opened_and_read(url, answers):
    store = ss.open_store(url)
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    data = ss.ShardDataset(store)
    answers.put((store.scores, [data[int(one)]["__id__"] for one in sampler]))


def test_a_process_that_was_forked_opens_a_store(s3, tmp_path):
    target = f"s3://{s3.bucket}/s.zarr"
    store = ss.index(s3.upload(write_shards(tmp_path / "d", [9, 4])), target)
    store.put_score("up", range(13))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=opened_and_read, args=(target, answers))
    child.start()
    try:
        scores, ids = answers.get(timeout=200)
    finally:
        child.kill()
        child.join(60)
    assert scores == ["up"]
    assert sorted(ids) == store.ids()[6:].tolist()


def test_a_forked_process_is_told_that_it_cannot_write(s3, tmp_path):
    store = ss.index(s3.upload(write_shards(tmp_path / "d", [3])), f"s3://{s3.bucket}/s.zarr")
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            store.put_score("up", range(3))
        except ss.ShardsieveError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert "do it in the parent" in told.read()
    os.wait()


@pytest.mark.parametrize("workers", [0, 1])
def test_one_lost_shard_costs_its_own_samples_alone(tmp_path, workers):
    paths = write_shards(tmp_path / "d", [5, 5, 5])
    with range_server(tmp_path / "d") as server:
        store = ss.index([f"{server.url}/{path.name}" for path in paths], tmp_path / "s.zarr")
        paths[1].unlink()
        data = ss.ShardDataset(store, on_error="skip")
        sampler = ss.PrunedShardSampler(store, keep_fraction=1.0, rule="random")
        loader = DataLoader(data, 8, sampler=sampler, num_workers=workers, collate_fn=list)
        ids = sorted(sample["__id__"] for batch in loader for sample in batch)
    assert ids == [*range(5), *range(128, 133)]
    assert data.unreadable == [*range(64, 69)]


@pytest.mark.parametrize("what", ["write", "read"])
def test_what_a_store_may_not_do_is_one_line(s3, tmp_path, what):
    target = f"s3://{s3.bucket}/s.zarr"
    store = ss.index(s3.upload(write_shards(tmp_path / "d", [3])), target)
    methods = {"write": ("PUT",), "read": ("GET",)}[what]
    s3.refuse = lambda environ: "403 Forbidden" if environ["REQUEST_METHOD"] in methods else None
    with pytest.raises(ss.ShardsieveError, match=rf"^cannot {what} s3://\S+: .*403") as told:
        store.put_score("up", range(3)) if what == "write" else ss.open_store(target)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_bucket_that_only_lets_read_what_is_there_suffices(s3, tmp_path, mode):
    target = f"s3://{s3.bucket}/s.zarr"
    ss.index(s3.upload(write_shards(tmp_path / "d", [3])), target).put_score("up", range(3))
    there = {f"/{s3.bucket}/{name}" for name in s3.names()}
    s3.refuse = lambda environ: None if environ["PATH_INFO"] in there else "403 Forbidden"
    store = ss.open_store(target, mode=mode)
    sampler = ss.PrunedShardSampler(store, keep_fraction=0.5, score="up")
    assert sorted(ss.ShardDataset(store)[int(one)]["__id__"] for one in sampler) == [1, 2]
    if mode == "r":
        assert (store.scores, store.embeddings, store.has_score("down")) == (["up"], [], False)


def test_threads_that_read_files_share_their_descriptors(tmp_path, monkeypatch):
    real = os.open

    def slow(path, flags):  # as over a network
        time.sleep(0.005)
        return real(path, flags)

    monkeypatch.setattr(os, "open", slow)
    monkeypatch.setattr(local, "_MAX_OPEN", 3)
    reader, ranges = JoinedReader(Storage(0, 1, 8)), [(offset, 8) for offset in range(0, 160, 16)]
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(12):
        path = tmp_path / str(number)
        path.write_bytes(bytes(range(number, number + 200)))
        found = list(reader.read_many(str(path), ranges))
        assert found == [bytes(range(number + at, number + at + 8)) for at, _ in ranges]
    assert len(list(descriptors.iterdir())) <= before + 3
    reader.close()


def test_batches_that_are_never_asked_for_do_not_pile_up(tmp_path):
    with range_server(tmp_path / "d") as server:
        urls = [f"{server.url}/{p.name}" for p in write_shards(tmp_path / "d", [40, 40])]
        store = ss.index(urls, tmp_path / "s.zarr")
        data = ss.ShardDataset(store)
        sampler = ss.PrunedShardSampler(store, keep_fraction=1.0, rule="random")
        for epoch in range(40):
            sampler.set_epoch(epoch)
            for _ in DataLoader(data, 8, sampler=sampler, collate_fn=list):
                break
            # While the server is there: what was begun may not have been read yet.
        kept = [a.result().data for one in data.reader._pending.values() for a in one.answers]
    assert 0 < len(b"".join(kept)) < 3 * store.ranges[..., 1].sum()


def test_loops_that_take_turns_read_nothing_twice(tmp_path):
    with range_server(tmp_path / "d") as server:
        (path,) = write_shards(tmp_path / "d", [40])
        store = ss.index(f"{server.url}/{path.name}", tmp_path / "s.zarr")
        data = ss.ShardDataset(store, storage=Storage(0, 1, 4))
        halves = (0.5, 0.5, 0.5)
        samplers = [
            ss.PrunedShardSampler(store, keep_fraction=half, rule="random", seed=seed)
            for seed, half in enumerate(halves)
        ]
        server.seen.clear()
        loaders = [DataLoader(data, 4, sampler=s, collate_fn=list) for s in samplers]
        assert sum(1 for _ in zip(*loaders, strict=True)) == 5
        assert sum(server.seen) == sum(s.keep_set.nbytes(store) for s in samplers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_replaced_while_it_is_read_is_refused(s3, tmp_path, workers):
    (path,) = write_shards(tmp_path / "d", [9])
    store = ss.index(s3.upload([path]), tmp_path / "s.zarr")
    data = ss.ShardDataset(store)
    whole = path.read_bytes()
    jpg = data[3]["jpg"]
    path.write_bytes(whole.replace(jpg, jpg[::-1]))  # laid out just so
    s3.upload([path])
    sampler = ss.PrunedShardSampler(store, keep_fraction=1.0, rule="random")
    with pytest.raises(ss.CorruptShardError, match=r"s-000\.tar was replaced after it was indexed"):
        list(DataLoader(data, 4, sampler=sampler, num_workers=workers, collate_fn=list))


def test_a_body_may_take_long_but_not_stand_still(tmp_path, monkeypatch):
    monkeypatch.setitem(clients._TIMEOUTS, "read_timeout", "3s")
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    with range_server(tmp_path, bandwidth=2.5e5, piece=32 << 10) as server:
        # Four seconds, in pieces that come far faster than the timeout. A busy machine may lose an
        # attempt; with a timeout for the whole body every one would be lost.
        assert len(objects.fetch(f"{server.url}/a", 0, 1 << 20).data) == 1 << 20
        monkeypatch.setattr(retries, "ATTEMPTS", 1)
        server.latency = 60
        with pytest.raises(ss.CorruptShardError, match="in 1 attempts"):
            objects.fetch(f"{server.url}/a", 0, 100)


def test_a_weak_tag_is_the_strong_one(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with range_server(tmp_path) as server:
        url = f"{server.url}/a"
        weak = objects.mark_of(url).replace("-", '-W/"', 1)
        assert objects.fetch(url, 1, 3, weak).data == b"234"
        strong, server.weak = objects.mark_of(url), "W/"
        assert objects.fetch(url, 1, 3, strong).data == b"234"
        with pytest.raises(ss.CorruptShardError, match="was replaced"):
            objects.fetch(url, 1, 3, f"{weak}0")
        with pytest.raises(ss.CorruptShardError, match="ends before byte 6; it was truncated"):
            objects.fetch(url, 1, 5)
