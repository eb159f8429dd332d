"""Keys that the AWS command line keeps in its files, instead of the environment."""

import pytest
from tars import write_shards

import shardsieve as ss


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


def test_a_profile_that_is_nowhere_is_named(s3, asked_by, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(ss.ShardsieveError, match=r"profile of ~/\.aws: .*\(other\) could not"):
        ss.index(f"s3://{s3.bucket}/a.tar", "s.zarr")
    assert not asked_by
