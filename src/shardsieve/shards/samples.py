"""The samples of a tar, without an object per member: where each of them begins and ends."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import CorruptShardError
from shardsieve.shards.labels import label_source, said_by_place
from shardsieve.shards.names import is_utf8, split_key
from shardsieve.shards.tar import ReadAt, walk

_LONGEST_EMPTY = 1 << 20  # programs that pack fill up to a record, mostly of 10 KiB


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
        label=said_by_place(label_member, keys, url) or labels,
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
