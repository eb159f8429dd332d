"""Shards and stores of the Hugging Face Hub, as a server on loopback imitates it."""

import numpy as np
import pytest
import webdataset as wds
from servers import hub_server, range_server
from tars import write_shards

import shardsieve as ss
from shardsieve.io import clients, objects, retries
from shardsieve.io.hub import address, advice

NAME = "hf://datasets/owner/name"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Yield the server that a private data set lies on; `main` holds its files."""
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.002)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # nobody has logged in there
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with range_server(tmp_path / "main") as behind, hub_server(behind, "secret") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield behind


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("by", ["hf", "https"])
def test_a_private_data_set_is_read_by_who_has_its_token(hub, tmp_path, monkeypatch, heads, by):
    paths = write_shards(tmp_path / "main", [4, 3])
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.heads = heads
    front = address(f"{NAME}/x").removesuffix("/x") if by == "https" else NAME
    store = ss.index(f"{front}/s-{{000..001}}.tar", tmp_path / "hub.zarr")
    near = ss.index(paths, tmp_path / "near.zarr")
    assert store.urls == [f"{front}/s-{shard:03d}.tar" for shard in range(2)]
    assert np.array_equal(store.ids(), near.ids())
    there, here = ss.ShardDataset(store), ss.ShardDataset(near)
    for one, other in zip(
        there.__getitems__(store.ids()), here.__getitems__(near.ids()), strict=True
    ):
        path = other["__url__"]
        assert {**one, "__url__": path, "__local_path__": path} == other


def test_a_pruned_pipeline_reads_from_the_hub(hub, tmp_path, monkeypatch):
    write_shards(tmp_path / "main", [6, 6])
    monkeypatch.setenv("HF_TOKEN", "secret")
    shards = f"{NAME}/s-{{000..001}}.tar"
    store = ss.index(shards, tmp_path / "hub.zarr")
    pipeline = wds.WebDataset(shards, shardshuffle=False)
    pipeline = ss.prune(pipeline, store, keep_fraction=0.5, rule="random")
    keys = {key for shard in store.keys_by_shard() for key in shard}
    found = [sample["__key__"] for sample in pipeline]
    assert len(found) == len(set(found)) == 6
    assert set(found) < keys


@pytest.mark.parametrize(
    ("of_hub", "status", "least", "most"),
    [
        (True, "429 Too Many Requests", 180, 600),
        (True, "503 Slow Down", 3, 10),
        (False, "429 Too Many Requests", 3, 10),
    ],
)
def test_too_many_requests_to_the_hub_are_waited_for_longer_than_other_faults(
    s3, monkeypatch, caplog, of_hub, status, least, most
):
    """It counts those of five minutes: seconds of patience ended a run."""
    retries._warn_of_limit.cache_clear()
    waits = []
    monkeypatch.setattr(retries, "pause", waits.append)
    monkeypatch.setenv("HF_ENDPOINT", s3.endpoint if of_hub else "")
    s3.refuse = lambda environ: status
    with pytest.raises(ss.ShardsieveError, match=f"in 7 attempts: .* {status[:3]}"):
        objects.size_of(f"s3://{s3.bucket}/a.tar")
    assert least < sum(waits) < most
    assert ("(429)" in caplog.text) == (most == 600)


def test_without_an_endpoint_in_the_environment_the_hub_is_the_hub(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert address(f"{NAME}/a.tar").startswith("https://huggingface.co/datasets/owner/")
    assert advice("HEAD https://example.org/a.tar: 401 Unauthorized") == ""


def test_a_store_on_the_hub_is_read(hub, tmp_path, monkeypatch):
    made = ss.index(write_shards(tmp_path / "d", [4, 3]), tmp_path / "main" / "train.zarr")
    made.put_score("loss", np.arange(7.0))
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = ss.open_store(f"{NAME}/train.zarr", mode="r")
    assert found.score("loss").tolist() == list(range(7))
    with pytest.raises(ss.ShardsieveError, match="over http stores are read, not written"):
        ss.index(tmp_path / "d" / "s-000.tar", f"{NAME}/other.zarr")


@pytest.mark.parametrize("file", ["s-000.tar", f"{'long' * 50}.tar"])
def test_who_is_not_let_in_is_told_how_to_get_there(hub, tmp_path, file):
    with pytest.raises(ss.ShardsieveError, match=r"; accept the terms .* or set HF_TOKEN$"):
        ss.index(f"{NAME}/{file}", tmp_path / "hub.zarr")


def test_who_logs_in_after_a_refusal_is_let_in(hub, tmp_path, monkeypatch):
    """As in a notebook: the process goes on."""
    write_shards(tmp_path / "main", [4])
    with pytest.raises(ss.ShardsieveError, match="or set HF_TOKEN"):
        ss.index(f"{NAME}/s-000.tar", tmp_path / "hub.zarr")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert len(ss.index(f"{NAME}/s-000.tar", tmp_path / "hub.zarr")) == 4


def test_nobody_else_hears_the_token(hub, tmp_path, monkeypatch):
    write_shards(tmp_path / "main", [4])
    monkeypatch.setenv("HF_TOKEN", "secret")  # which this server would refuse
    assert len(ss.index(f"{hub.url}/s-000.tar", tmp_path / "other.zarr")) == 4


@pytest.mark.parametrize(
    "name",
    [
        "datasets/name",
        "datasets/owner/name",
        "spaces/a/b/c.tar",
        "buckets/a/b/c.tar",
        "datasets/a/b@refs/pr/1/c.tar",
        "datasets/a/b@refs%2Fpr%2F1/c.tar",
    ],
)
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(ss.ShardsieveError, match="url must be as in hf://datasets/OWNER/NAME/PATH"):
        objects.size_of(f"hf://{name}")


def test_a_revision_and_names_that_need_quotes_are_kept():
    for name, path in (
        ("datasets/a/b@v1.0/c d#é%20.tar", "datasets/a/b/resolve/v1.0/c d#é%20.tar"),
        ("a/b/c/d.tar", "a/b/resolve/main/c/d.tar"),
    ):
        assert clients.client(f"hf://{name}")[1] == path


def test_a_mirrors_address_may_end_in_a_slash(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    found = address("hf://datasets/a/b/c.tar")
    assert found == "https://mirror.example/datasets/a/b/resolve/main/c.tar"
    assert advice(f"Error performing HEAD {found}: 401 Unauthorized")


@pytest.mark.parametrize(("status", "told"), [(401, True), (403, True), (404, False), (500, False)])
def test_who_may_not_read_is_told_how_to_and_nobody_else(monkeypatch, status, told):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    error = f"Error performing HEAD https://huggingface.co/datasets/a/b.tar: {status} Said"
    assert ("accept the terms" in advice(error)) == told
