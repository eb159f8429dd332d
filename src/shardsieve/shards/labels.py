"""Where a sample in a tar says its class: a member, a JSON field, its folder, the tar's name."""

import json
from collections.abc import Callable
from contextlib import suppress

from shardsieve.shards.names import file_of

FOLDER = "/"
"""The label member that stands for the folder a sample lies in."""
TAR = ".tar"
"""The label member that stands for the name of the tar, as of ImageNet's tar per class."""
_LONGEST = 256
_LONGEST_JSON = 1 << 20
_MOST_LABEL = (1 << 31) - 1


def label_source(label_member: str) -> tuple[str, int, Callable[[bytes], bytes]]:
    """Return the member to look at, its most bytes, and what makes the label's text of them."""
    member, colon, field = label_member.partition(":")
    if not colon:
        return member, _LONGEST, bytes.strip
    return member, _LONGEST_JSON, lambda content: _field(content, field)


def said_by_place(label_member: str, keys: list[str], url: str) -> list[bytes] | None:
    """Return what folders or the tar's name say of each sample; None if its members shall."""
    if label_member == TAR:
        name = file_of(url).removesuffix(TAR)
        return [name.encode("utf-8", "surrogateescape")] * len(keys)
    return list(map(folder_of, keys)) if label_member == FOLDER else None


def folder_of(key: str) -> bytes:
    """Return the last folder of a key, nothing where there is none.

    >>> folder_of("train/n01440764/n01440764_10026"), folder_of("./12"), folder_of("12")
    (b'n01440764', b'', b'')
    """
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return b"" if folder == "." else folder.encode("utf-8", "surrogateescape")


def class_in(text: bytes) -> int | str:
    """Return the class that a text says: a number, or a name; -1 where it says none.

    Measures and vectors are no names: a name has a letter, is no number of another kind and stands
    in one line.

    >>> [class_in(text) for text in (b"7", b"n01440764", b"0.5", b"[1, 0]", b"-1", b"")]
    [7, 'n01440764', -1, -1, -1, -1]
    """
    if text.isdigit():
        return number if (number := int(text)) <= _MOST_LABEL else -1
    with suppress(ValueError):
        float(text)
        return -1
    with suppress(UnicodeDecodeError):
        name = text.decode()
        return name if any(map(str.isalpha, name)) and len(name.splitlines()) == 1 else -1
    return -1


def _field(content: bytes, field: str) -> bytes:
    try:
        held = json.loads(content)
    except (ValueError, RecursionError):
        return b""
    value = held.get(field) if isinstance(held, dict) else None
    known = isinstance(value, (int, str)) and not isinstance(value, bool)
    text = str(value).strip().encode("utf-8", "surrogatepass") if known else b""
    return text if len(text) <= _LONGEST else b""
