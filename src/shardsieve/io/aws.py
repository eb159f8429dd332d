"""Who one is by `~/.aws`, where the AWS command line keeps it, if the environment does not say."""

import os
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError

_SAID = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


def identity(url: str) -> dict[str, Any]:
    """Return what obstore's S3 client takes besides the environment: the profile of `~/.aws`.

    Keys, single sign-on, roles and processes are boto3's matter, and it renews what ends.

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
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return {}
        found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    except BotoCoreError as error:
        raise ShardsieveError(f"cannot use the profile of ~/.aws: {error}") from error
    region = next(filter(None, map(os.environ.get, _REGIONS)), None)
    return found | ({"config": {"region": region}} if region else {})


def _configured() -> bool:
    if os.environ.get("AWS_PROFILE"):
        return True
    usual = Path.home() / ".aws"
    return any(Path(os.environ.get(name, usual / file)).is_file() for name, file in _FILES.items())
