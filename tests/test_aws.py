"""Keys that the AWS command line keeps in its files, instead of the environment."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.credentials import RefreshableCredentials
from tars import write_shards

import shardsieve as ss
from shardsieve.io import aws


@pytest.fixture
def asked_by(s3, tmp_path, monkeypatch):
    """Yield who signed the requests, as `key/region`; the files hold a default and a profile."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    keys = "[{}]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    files = {
        "AWS_SHARED_CREDENTIALS_FILE": keys.format("default", "first")
        + keys.format("team", "second"),
        "AWS_CONFIG_FILE": "[default]\nregion = eu-north-1\n[profile team]\nregion = eu-west-2\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(name, str(tmp_path / name))
    found = set()

    def note(environ):
        key, _, region, *_ = environ["HTTP_AUTHORIZATION"].partition("Credential=")[2].split("/")
        found.add(f"{key}/{region}")

    s3.refuse = note
    return found


@pytest.mark.parametrize(
    ("told", "signed"),
    [
        ({}, "first/eu-north-1"),
        ({"AWS_PROFILE": "team"}, "second/eu-west-2"),
        ({"AWS_REGION": "ap-south-1"}, "first/ap-south-1"),
        ({"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "c"}, "own/us-east-1"),
    ],
)
def test_shards_and_stores_are_asked_for_by_the_profile(
    s3, asked_by, tmp_path, monkeypatch, told, signed
):
    urls = s3.upload(write_shards(tmp_path / "d", [4, 3]))
    asked_by.clear()  # of the upload
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    store = ss.index(urls, f"s3://{s3.bucket}/s.zarr")
    store.put_score("up", range(7))
    assert ss.ShardDataset(ss.open_store(store.path))[0]["__id__"] == 0
    assert asked_by == {signed}


def test_a_profile_may_name_another_host(s3, asked_by, tmp_path, monkeypatch):
    urls = s3.upload(write_shards(tmp_path / "d", [4, 3]))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with Path(os.environ["AWS_CONFIG_FILE"]).open("a") as file:
        file.write(f"[profile near]\nendpoint_url = {s3.endpoint}\n")
    with Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).open("a") as file:
        file.write("[near]\naws_access_key_id = third\naws_secret_access_key = c\n")
    monkeypatch.setenv("AWS_PROFILE", "near")
    asked_by.clear()
    assert len(ss.index(urls, f"s3://{s3.bucket}/s.zarr")) == 7
    assert asked_by == {"third/us-east-1"}


@pytest.mark.parametrize("files", [True, False])
def test_a_profile_that_is_nowhere_is_named(s3, asked_by, monkeypatch, files):
    monkeypatch.setenv("AWS_PROFILE", "other")
    if not files:
        for name in aws._FILES:
            Path(os.environ[name]).unlink()
    with pytest.raises(ss.ShardsieveError, match=r"profile of ~/\.aws: .*\(other\) could not"):
        ss.index(f"s3://{s3.bucket}/a.tar", "s.zarr")
    assert not asked_by


@pytest.mark.parametrize("process", ["/nowhere/keys", "/bin/echo no-json", "/bin/false"])
def test_a_process_that_gives_no_keys_is_not_taken_for_a_missing_store(
    s3, asked_by, monkeypatch, process
):
    Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).unlink()
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(f"[default]\ncredential_process = {process}\n")
    with pytest.raises(ss.ShardsieveError, match=r"cannot use the profile of ~/\.aws: "):
        ss.open_store(f"s3://{s3.bucket}/gone.zarr")
    assert not asked_by


def test_keys_are_asked_for_again_before_boto3_would_let_them_end(asked_by):
    keys = aws.identity("s3://bucket")["credential_provider"]()
    most = timedelta(seconds=RefreshableCredentials._advisory_refresh_timeout)
    assert keys["expires_at"] - datetime.now(UTC) <= most


def test_a_profile_is_of_no_other_host(asked_by):
    for url in ("gs://bucket", "az://bucket", "https://host"):
        assert aws.identity(url) == {}


def test_who_has_no_home_has_no_profile_in_it(monkeypatch):
    """As in a container that runs under a number of no name; botocore keeps the tilde, too."""
    for name in ("HOME", *aws._FILES, *aws._SAID, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert aws.identity("s3://bucket") == {}


def test_a_file_below_home_is_found_by_its_tilde(asked_by, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_CONFIG_FILE")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/AWS_SHARED_CREDENTIALS_FILE")
    assert aws.identity("s3://bucket")["credential_provider"]()["access_key_id"] == "first"
