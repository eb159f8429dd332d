"""The fields of one sample, from the bytes of its members."""

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from shardsieve._errors import ANOTHER_STORE, CorruptShardError
from shardsieve.shards.names import split_key
from shardsieve.shards.tar import BLOCK, ZEROS, damaged, walk

Members = tuple[tuple[str, bytes], ...]

# Of a header: the digits of the size, the kind, and the first byte of the name's prefix.
_HEADER = struct.Struct("124x11s21xB188xB").unpack_from


def plain_fields(raw: bytes, key: str, suffixes: Mapping[bytes, str]) -> dict[str, Any] | None:
    """Return one sample's fields by suffix if its members are as plain as they mostly are.

    None sends the caller to `parse_sample`, which knows every dialect and says what is wrong. Here
    each header must name `key` and a known suffix and be of a regular file, and the sizes must lead
    to the very end; checksums are not added up again.
    """
    start, at, end = key.encode("utf-8", "surrogateescape") + b".", 0, len(raw)
    skip, fields = len(start), {}
    while at < end:
        stop = raw.find(b"\0", at, at + 100)
        suffix = suffixes.get(raw[at + skip : stop])
        if suffix is None or not raw.startswith(start, at) or raw[at + 156] != 48 or raw[at + 345]:
            return None
        try:
            size = int(raw[at + 124 : at + 135], 8)
        except ValueError:
            return None
        at += BLOCK
        fields[suffix] = raw[at : at + size]
        at += size + 511 & -512
    return fields if at == end else None


def members_of(fields: Iterable[str]) -> Members:
    """Return what `fill_plain` expects of samples that have these suffixes in this order."""
    return tuple((suffix, b"." + suffix.encode() + b"\0") for suffix in fields)


def fill_plain(sample: dict[str, Any], raw: bytes, key: bytes, members: Members) -> bool:
    """Add one sample's fields if it is laid out just so; return whether it is.

    False sends the caller to `plain_fields`, which takes any suffixes in any order, and must then
    forget the sample. The hottest loop of all: every header is compared with the one expected.
    """
    at = 0
    try:
        for suffix, ending in members:
            digits, kind, prefix = _HEADER(raw, at)
            if kind != 48 or prefix or not raw.startswith(key + ending, at):
                return False
            at += BLOCK
            end = at + int(digits, 8)
            sample[suffix] = raw[at:end]
            at = end + 511 & -512
    except (ValueError, struct.error):  # no number, or a header cut short
        return False
    return at == len(raw)


def parse_sample(raw: bytes, key: str, url: str) -> dict[str, object]:
    """Return webdataset's raw dictionary of one sample's byte range.

    Raises:
        CorruptShardError: If the bytes are not the members of `key`.
    """
    sample: dict[str, object] = {"__key__": key, "__url__": url}
    end, seen = len(raw), 0
    padded = raw + ZEROS
    for member in walk(lambda at, n: padded[at : at + n], end + BLOCK, url):
        parts = split_key(member.name)
        if parts is None:
            continue
        if parts[0] != key:
            raise CorruptShardError(
                f"shard {url} holds {parts[0]} where the index says {key}; "
                f"the shard was rewritten: {ANOTHER_STORE}"
            )
        sample[parts[1]] = raw[member.data : member.data + member.size]
        seen = member.end
    if seen != end:  # zeros, as of a part that was never written
        raise CorruptShardError(damaged(seen, url))
    return sample
