"""Walk the headers of a tar without an object per member: where each sample begins and ends."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import adler32

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ANOTHER_STORE, CorruptShardError
from shardsieve.shards.labels import FOLDER, folder_of, label_source
from shardsieve.shards.names import is_utf8, split_key

BLOCK = 512
_ZERO = bytes(BLOCK)
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_TAR = {b"PAR1": "a Parquet file", b"PK\3\4": "a zip file"}
_REGULAR = frozenset(b"0\x007")
_OTHERS = frozenset(b"123456")
_LONGEST_EMPTY = 1 << 20  # programs that pack fill up to a record, mostly of 10 KiB
_PIECE = 1 << 20
# GNU tar's three ways to say in pax records that a member is a map of holes and what lies between.
_SPARSE = {"GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.map"}
# Of a header: the digits of the size, the kind, and the first byte of the name's prefix.
_HEADER = struct.Struct("124x11s21xB188xB").unpack_from
# Name, digits of size and checksum with what ends them, kind, and as above.
_PLAIN = struct.Struct("100s24x11sB12x6s2sB188xB").unpack_from
_OTHER_BLANKS = 8 * ord(" ") - ord(" ")  # the checksum's last two bytes are NUL and a blank
ReadAt = Callable[[int, int], bytes]
Members = tuple[tuple[str, bytes], ...]


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
        elif head == _ZERO:
            _need_nothing_more(read, data, total, url)
            return
        else:
            kind, size = _kind_and_size(head, offset, url)
            if kind in b"xgLK":
                content = _content(read, data, size, total, url)
                try:
                    _apply_extension(kind, content, pax, common)
                except ValueError as error:
                    raise CorruptShardError(_damaged(offset, url)) from error
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


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The samples of one tar, in file order.

    Attributes:
        keys: One per sample, webdataset's `__key__`.
        offset: int64 (n,), first byte of the first member's headers.
        length: int64 (n,), bytes up to the end of the last member's padding.
        label: What each sample says of its class, empty where it says nothing or too much.
        suffixes: Distinct suffixes, in the order met.
        split: Samples that hold only other members of an earlier sample's key: their files are not
            next to each other, and webdataset too takes them for samples of their own.
    """

    keys: list[str]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: list[bytes]
    suffixes: tuple[str, ...]
    split: int

    def __len__(self) -> int:
        return len(self.keys)


def sample_table(read: ReadAt, total: int, url: str, *, label_member: str = "cls") -> SampleTable:
    """Group the members of a tar into samples by webdataset's rules.

    Adjacent members with one key are a sample; a repeated suffix within a sample is an error. A tar
    without files has no samples: who packs what could be downloaded may get one.

    Raises:
        CorruptShardError: If the tar is damaged, holds files but no sample, or repeats a member.
    """
    keys: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    labels: list[bytes] = []
    present: list[int] = []
    bit_of: dict[str, int] = {}
    member, longest, text_in = label_source(label_member)
    current, bits, end = None, 0, 0
    for name, start, data, size, end in walk(read, total, url):
        parts = split_key(name)
        if parts is None:
            continue
        key, suffix = parts
        bit = bit_of.get(suffix) or bit_of.setdefault(suffix, 1 << len(bit_of))
        if key != current:
            current, bits = key, 0
            keys.append(key)
            starts.append(start)
            ends.append(end)
            labels.append(b"")
            present.append(0)
        if bits & bit:
            raise CorruptShardError(
                f"shard {url} repeats the member {name} at byte {start}; "
                "give every file of a sample its own suffix"
            )
        bits |= bit
        present[-1] = bits
        ends[-1] = end
        if suffix == member and size <= longest:
            # Here and now: of an object the block around it is at hand.
            labels[-1] = text_in(read(data, size))
    for suffix in bit_of:
        if not is_utf8(suffix):
            raise CorruptShardError(
                f"shard {url} has members whose suffix is not UTF-8, {suffix!r}; pack it again"
            )
    if not keys:
        _need_no_files(end, total, url)
    offset = np.array(starts, dtype=np.int64)
    return SampleTable(
        keys=keys,
        offset=offset,
        length=np.array(ends, dtype=np.int64) - offset,
        label=list(map(folder_of, keys)) if label_member == FOLDER else labels,
        suffixes=tuple(bit_of),
        split=_num_split(keys, present),
    )


def _need_no_files(end: int, total: int, url: str) -> None:
    """Check that a tar of `total` bytes without samples, whose last file ends there, is empty."""
    if end:
        raise CorruptShardError(
            f"shard {url} holds no samples: a member needs a name like 12.jpg; leave it out"
        )
    if total > _LONGEST_EMPTY:
        raise CorruptShardError(
            f"shard {url} is damaged: it has {total} bytes and no files; write or download it again"
        )


def _num_split(keys: list[str], present: list[int]) -> int:
    """Count the samples none of whose members, as bits, an earlier one of the same key has.

    Hidden files share a key, that of their folder, without belonging together.
    """
    if len(set(keys)) == len(keys):
        return 0
    before: dict[str, int] = {}
    count = 0
    for key, bits in zip(keys, present, strict=True):
        met = before.get(key, 0)
        count += met != 0 and not met & bits and not key.endswith("/")
        before[key] = met | bits
    return count


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
    padded = raw + _ZERO
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
        raise CorruptShardError(_damaged(seen, url))
    return sample


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
    return _damaged(offset, url)


def _damaged(offset: int, url: str) -> str:
    return f"shard {url} is damaged: no valid header at byte {offset}; write or download it again"


def _wrong_size(url: str, total: int, data: int, size: int) -> CorruptShardError:
    if size < 0:
        return CorruptShardError(_damaged(data - BLOCK, url))
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
