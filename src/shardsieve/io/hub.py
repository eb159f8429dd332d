"""Data sets of the Hugging Face Hub: their `hf://` names, and the token that private ones want."""

import os
import re
from urllib.parse import urlsplit

from shardsieve._errors import ShardsieveError

_ENDPOINT = "https://huggingface.co"
_NAME = re.compile(
    r"hf://(?:(dataset)s/)?(?!datasets/|spaces/|buckets/)"
    r"([^/@]+/[^/@]+)(?:@(?!refs/)([^/%]+))?/(.+)"
)


def address(url: str) -> str:
    """Return where a file of the Hub is read, and any other URL as it is.

    Args:
        url: `hf://datasets/OWNER/NAME[@REVISION]/PATH`; `HF_ENDPOINT` names a mirror.

    Raises:
        ShardsieveError: If it is an `hf://` name of another form.

    >>> address("hf://datasets/timm/imagenet-1k-wds/train-0000.tar")
    'https://huggingface.co/datasets/timm/imagenet-1k-wds/resolve/main/train-0000.tar'
    """
    if not url.startswith("hf://"):
        return url
    found = _NAME.fullmatch(url)
    if found is None:
        raise ShardsieveError(
            "url must be as in hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@COMMIT/"
            f"PATH, got {url}"
        )
    from huggingface_hub import hf_hub_url

    kind, name, revision, path = found.groups()
    return hf_hub_url(name, path, repo_type=kind, revision=revision, endpoint=_endpoint())


def headers(url: str) -> dict[str, str]:
    """Return what requests to a URL's host say besides: to the Hub, who asks, if one has logged in.

    The client leaves it out where it is sent on to another host.
    """
    if urlsplit(url)[:2] != urlsplit(_endpoint())[:2]:
        return {}
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found = build_hf_headers()
    return {name: found[name] for name in ("authorization",) if name in found}


def advice(error: str) -> str:
    """Return what to do about a refusal by the Hub, nothing about other errors.

    >>> advice("Error performing HEAD https://huggingface.co/a.tar: 401 Unauthorized")
    '; accept the terms on the page of the data set, and run `hf auth login` or set HF_TOKEN'
    >>> advice("Error performing HEAD https://example.org/a.tar: 401 Unauthorized")
    ''
    """
    if not re.search(rf"{re.escape(_endpoint())}/.*\b40[13] ", error):
        return ""
    return "; accept the terms on the page of the data set, and run `hf auth login` or set HF_TOKEN"


def limits(error: str) -> bool:
    """Return whether the Hub refuses requests as too many: it counts those of five minutes.

    >>> limits("Error performing GET https://huggingface.co/a.tar: 429 Too Many Requests")
    True
    """
    return bool(re.search(rf"{re.escape(_endpoint())}/.*\b429 ", error))


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
