"""What a request to an object store is worth: how often it is tried again, and what is said."""

import logging
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from obstore import exceptions

from shardsieve._errors import CorruptShardError, ShardsieveError
from shardsieve.io import hub
from shardsieve.io.clients import forget_clients
from shardsieve.io.stopping import interruptible, pause, stopped

ATTEMPTS = 7
FIRST_WAIT = 0.1
AT_THE_LIMIT = 60.0  # times longer
# Who is asked for a key when the environment has none.
_METADATA = ("169.254.169.254", "metadata.google.internal")
_HOPELESS = (
    FileNotFoundError,
    PermissionError,
    ValueError,  # of a name
    exceptions.NotFoundError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_NO_RANGES = "Range request not supported"
_LOG = logging.getLogger("shardsieve")


def retried(
    once: Callable[[], Any], what: str, kind: type[ShardsieveError] = CorruptShardError
) -> tuple[Any, int]:
    """Return what a request brings, and how often it was tried again; Ctrl-C does not wait for it.

    Args:
        once: Makes the request.
        what: `read`, `write` or `list`, and of what.
        kind: Raised when it fails for good.
    """
    return interruptible(lambda: _tried(once, what, kind))


def _tried(once: Callable[[], Any], what: str, kind: type[ShardsieveError]) -> tuple[Any, int]:
    for attempt in range(ATTEMPTS):
        if stopped():
            raise kind(f"cannot {what}: nobody waits for it any more")
        try:
            return once(), attempt
        except _HOPELESS as error:
            if isinstance(error, _REFUSED) and attempt == 0:
                # Keys are read when a client is made: since then somebody may have logged in.
                forget_clients()
                continue
            raise kind(f"cannot {what}: {cause_of(error)}") from error
        except (exceptions.BaseError, OSError) as error:
            if attempt + 1 == ATTEMPTS:
                raise kind(f"cannot {what} in {ATTEMPTS} attempts: {cause_of(error)}") from error
            wait = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5)
            if hub.limits(str(error)):
                _warn_of_limit()
                wait *= AT_THE_LIMIT
            pause(wait)
    raise AssertionError  # pragma: no cover


@cache
def _warn_of_limit() -> None:
    _LOG.warning(
        "the Hub allows no more requests for now (429): waiting up to some minutes; copy the "
        "shards to a disk or a bucket if that happens often"
    )


def cause_of(error: BaseException) -> str:
    """Return one line of an error of obstore, with what helps against it."""
    whole = " ".join(str(error).split("\n\nDebug")[0].split())
    # Without the address, which has been said: what the host answers stands last.
    text = re.sub(r"(Error performing \w+) \S+(?= in )", r"\1", whole)[:400]
    if any(host in whole for host in _METADATA):
        text += (
            "; the environment has no key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(AWS_SKIP_SIGNATURE=true for a public bucket; those of ~/.aws are found where boto3 "
            "is installed), or GOOGLE_..., AZURE_..."
        )
    if _NO_RANGES in whole:
        text += "; copy it to a disk, a bucket or a host that answers byte ranges"
    return text + hub.advice(whole)
