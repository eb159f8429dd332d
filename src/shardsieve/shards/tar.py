"""Walk the headers of a tar: where each file in it begins and ends."""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import adler32

from shardsieve._errors import CorruptShardError

BLOCK = 512
ZEROS = bytes(BLOCK)
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_TAR = {b"PAR1": "a Parquet file", b"PK\3\4": "a zip file"}
_REGULAR = frozenset(b"0\x007")
_OTHERS = frozenset(b"123456")
_PIECE = 1 << 20
# GNU tar's three ways to say in pax records that a member is a map of holes and what lies between.
_SPARSE = {"GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.map"}
# Of a header: name, digits of size and checksum with what ends them, kind, first of the prefix.
_PLAIN = struct.Struct("100s24x11sB12x6s2sB188xB").unpack_from
_OTHER_BLANKS = 8 * ord(" ") - ord(" ")  # the checksum's last two bytes are NUL and a blank
ReadAt = Callable[[int, int], bytes]


class Member(NamedTuple):
    """One regular file of a tar.

    Attributes:
        name: Full path, with pax or GNU long names applied.
        start: First byte of its headers, long-name headers included.
        data: First byte of its content.
        size: Bytes of content.
        end: First byte after the padded content.
    """

    name: str
    start: int
    data: int
    size: int
    end: int


def walk(read: ReadAt, total: int, url: str) -> Iterator[Member]:
    """Yield the regular members of a tar in file order, reading headers only.

    Pax (`path`, `size`), GNU long names and ustar prefixes are applied; directories, links and
    devices are passed over. Every header's checksum is verified, and behind the block of zeros that
    ends a tar nothing else may come: where a part of a file was never written it reads as zeros.

    Args:
        read: `read(offset, length)` returns those bytes, or fewer at the end of the file.
        total: Bytes in the tar.
        url: Named in errors.

    Raises:
        CorruptShardError: If the tar is empty, compressed, truncated or not a tar.
    """
    if total == 0:
        raise CorruptShardError(f"shard {url} is empty (0 bytes); write or download it again")
    offset = start = 0
    pax: dict[str, str] = {}
    common: dict[str, str] = {}
    while offset < total:
        head, data = read(offset, BLOCK), offset + BLOCK
        plain = None if pax or common else _plain_header(head)
        if plain is not None:
            (name, size), is_file = plain, True
        elif head == ZEROS:
            _need_nothing_more(read, data, total, url)
            return
        else:
            kind, size = _kind_and_size(head, offset, url)
            if kind in b"xgLK":
                content = _content(read, data, size, total, url)
                try:
                    _apply_extension(kind, content, pax, common)
                except ValueError as error:
                    raise CorruptShardError(damaged(offset, url)) from error
                offset = data + _padded(size)
                continue
            name, size = _name_and_size(head, size, {**common, **pax})
            name, is_file = _file_name(name, kind, pax, url)
        if not 0 <= size <= total - data:
            raise _wrong_size(url, total, data, size)
        end = data + (size + 511 & -BLOCK)
        if is_file:
            yield Member(name, start, data, size, end)
        offset = start = end
        pax = pax and {}
    raise _no_end(url, total)


def _need_nothing_more(read: ReadAt, at: int, total: int, url: str) -> None:
    for begin in range(at, total, _PIECE):
        if read(begin, min(_PIECE, total - begin)).strip(b"\0"):
            raise CorruptShardError(
                f"shard {url} is damaged: zeros end it at byte {at - BLOCK}, and more lies behind; "
                "write or download it again, or if it is several tars in one, part them"
            )


def _content(read: ReadAt, at: int, size: int, total: int, url: str) -> bytes:
    content = read(at, max(size, 0))
    if len(content) != size:
        raise _wrong_size(url, total, at, size)
    return content


def _apply_extension(
    kind: int, content: bytes, pax: dict[str, str], common: dict[str, str]
) -> None:
    """Take in a header that speaks of the next member, or of all that follow."""
    if kind == ord("L"):
        pax["path"] = _text(content)
    elif kind == ord("x"):
        pax.update(_pax_records(content))
    elif kind == ord("g"):
        common.update(_pax_records(content))


def _plain_header(head: bytes) -> tuple[str, int] | None:
    """Return name and size of a regular file whose header is as plain as they mostly are.

    None leaves every dialect, and what is wrong, to the slow way.
    """
    if len(head) < BLOCK:
        return None
    field, digits, no_digit, total, end, kind, prefix = _PLAIN(head)
    if kind != 48 or prefix or no_digit or end != b"\0 ":
        return None
    try:
        size, told = int(digits, 8), int(total, 8)
    except ValueError:  # of more than 8 GiB, or no header
        return None
    # See `_checksum_holds`.
    found = (adler32(head) & 0xFFFF) - (adler32(total) & 0xFFFF) + _OTHER_BLANKS
    name = field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if (found - told) % 65521 or name.endswith("/"):
        return None
    return name, size


def _kind_and_size(head: bytes, offset: int, url: str) -> tuple[int, int]:
    if len(head) < BLOCK or not _checksum_holds(head):
        raise CorruptShardError(_what_is_wrong(head, offset, url))
    return head[156], _number(head[124:136])


def _file_name(name: str, kind: int, pax: dict[str, str], url: str) -> tuple[str, bool]:
    """Return a member's name, and whether it is a regular file."""
    name = pax.get("GNU.sparse.name", name)
    if kind == ord("S") or _SPARSE & pax.keys():
        raise CorruptShardError(f"shard {url} holds the sparse file {name}; pack it plainly")
    return name, kind in _REGULAR and not name.endswith("/")


def _name_and_size(head: bytes, size: int, fields: dict[str, str]) -> tuple[str, int]:
    name = fields.get("path") or _header_name(head)
    return name, 0 if head[156] in _OTHERS else int(fields.get("size", size))


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU base 256, for sizes of 8 GiB and more
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return 0


def _checksum_holds(head: bytes) -> bool:
    # The low half of Adler-32 is the sum of the bytes plus one, modulo 65521: the fastest sum there
    # is. The checksum counts its own field as eight blanks.
    own = head[148:156]
    total = (adler32(head) & 0xFFFF) - (adler32(own) & 0xFFFF) + 8 * ord(" ")
    return (total - _number(own)) % 65521 == 0


def _text(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _header_name(head: bytes) -> str:
    name = _text(head[:100])
    if head[345] and head[257:263] == b"ustar\0":
        return f"{_text(head[345:500])}/{name}"
    return name


def _pax_records(content: bytes) -> dict[str, str]:
    """Return keyword and value of every record, or raise ValueError."""
    records, at = {}, 0
    while at < len(content) and content[at : at + 1] != b"\0":
        space = content.index(b" ", at)
        end = at + int(content[at:space])
        if not space < end <= len(content):
            raise ValueError(f"a record at byte {at} cannot end at byte {end}")
        key, _, value = content[space + 1 : end - 1].partition(b"=")
        if key == b"size":
            int(value)
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        at = end
    return records


def _what_is_wrong(head: bytes, offset: int, url: str) -> str:
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if offset == 0 and packed is not None:
        return f"shard {url} is {packed}-compressed; unpack it: byte ranges need a plain tar"
    other = next((name for magic, name in _NO_TAR.items() if head.startswith(magic)), None)
    if offset == 0 and other is not None:
        return (
            f"shard {url} is {other}, not a tar; write its images to tars, as "
            "docs/streaming.md shows under Packing"
        )
    if offset == 0:
        return (
            f"shard {url} is not a tar: no valid header at byte 0; give tar shards, or an FFCV "
            "file under a name that ends in .beton or .ffcv (ln -s)"
        )
    if len(head) < BLOCK:
        return f"shard {url} is truncated at byte {offset}; write or download it again"
    return damaged(offset, url)


def damaged(offset: int, url: str) -> str:
    """Return what is said of a shard with no valid header at `offset`."""
    return f"shard {url} is damaged: no valid header at byte {offset}; write or download it again"


def _wrong_size(url: str, total: int, data: int, size: int) -> CorruptShardError:
    if size < 0:
        return CorruptShardError(damaged(data - BLOCK, url))
    return _truncated(url, total, data + size)


def _truncated(url: str, total: int, needed: int) -> CorruptShardError:
    return CorruptShardError(
        f"shard {url} is truncated: it has {total} bytes and its last member needs {needed}; "
        "write or download it again"
    )


def _no_end(url: str, total: int) -> CorruptShardError:
    return CorruptShardError(
        f"shard {url} is truncated: it ends after {total} bytes without an end-of-archive block; "
        "write or download it again"
    )
