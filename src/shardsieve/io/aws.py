"""Who one is by `~/.aws`, where the AWS command line keeps it, if the environment does not say."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shardsieve._errors import ShardsieveError

_SAID = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
# boto3 hands on keys that end in a quarter of an hour, and renews those that end before.
_TTL = timedelta(minutes=15)


def identity(url: str) -> dict[str, Any]:
    """Return what obstore's S3 client takes besides the environment: the profile of `~/.aws`.

    Keys, single sign-on, roles, processes and `endpoint_url` are boto3's matter, and it renews what
    ends.

    Raises:
        ShardsieveError: If the profile cannot be used.
    """
    if not url.startswith("s3:") or any(map(os.environ.get, _SAID)) or not _configured():
        return {}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:  # who has no other key is told
        return {}
    region = next(filter(None, map(os.environ.get, _REGIONS)), None)
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return {}
        config = {"region": region, "endpoint": _endpoint_of(session)}
        keys = Boto3CredentialProvider(session, ttl=_TTL)
    except (BotoCoreError, OSError, ValueError) as error:  # the latter of a credential_process
        raise ShardsieveError(f"cannot use the profile of ~/.aws: {error}") from error
    return {"credential_provider": keys, "config": {k: v for k, v in config.items() if v}}


def _endpoint_of(session: Any) -> str | None:
    """Return the host that is named in place of Amazon's own."""
    found: str = session.client("s3").meta.endpoint_url
    return None if urlsplit(found).netloc.endswith(_AMAZON) else found


def _configured() -> bool:
    if os.environ.get("AWS_PROFILE"):
        return True
    # Who runs a container need have no home: then the tilde stays, and no such file is there.
    files = (os.environ.get(name, f"~/.aws/{file}") for name, file in _FILES.items())
    return any(Path(os.path.expanduser(file)).is_file() for file in files)  # noqa: PTH111
