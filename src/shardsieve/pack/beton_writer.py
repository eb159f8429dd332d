"""Write an FFCV file from finished field bytes: nothing is encoded, FFCV is not needed."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.io.replacing import remove_left_of, replaced
from shardsieve.shards.beton import ALLOCATION, DESCRIPTOR, HEADER, KEYS_MAGIC, VERSION

PAGE_SIZE = 8 << 20


def descriptors_of(fields: Sequence[tuple[str, int]]) -> NDArray[np.void]:
    """Return the descriptors of plain fields without arguments, DESCRIPTOR (fields,)."""
    made = np.zeros(len(fields), DESCRIPTOR)
    for row, (name, type_id) in zip(made, fields, strict=True):
        text = np.frombuffer(name.encode("ascii")[:16], np.uint8)
        row["type_id"] = type_id
        row["name"][: len(text)] = text
    return made


class BetonWriter:
    """Fills pages and the allocation table of one file; used by `write_beton` alone."""

    def __init__(self, file: io.BufferedWriter, data_start: int, page_size: int) -> None:
        self._file, self._page_size = file, page_size
        self._at = -(-data_start // page_size) * page_size
        self._left = 0
        self._table: list[NDArray[np.void]] = []
        self._written = 0

    def put(self, data: bytes, sizes: Sequence[int], name: str) -> NDArray[np.int64]:
        """Write the adjacent regions of one sample into one page; return where each begins."""
        if len(data) > self._page_size:
            raise ShardsieveError(
                f"sample {name} has {len(data)} bytes, more than a page of {self._page_size}; "
                "give a larger page_size, a power of two"
            )
        if len(data) > self._left:
            self._at += self._left
            self._file.seek(self._at)
            self._left = self._page_size
        starts = self._at + np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self._file.write(data)
        entry = np.zeros(len(sizes), ALLOCATION)
        entry["sample_id"], entry["ptr"], entry["size"] = self._written, starts, sizes
        self._table.append(entry)
        self._at, self._left = self._at + len(data), self._left - len(data)
        return starts

    def next_sample(self) -> None:
        """Go on to the next sample."""
        self._written += 1

    def finish(self, keys: Sequence[str]) -> int:
        """Write keys and allocation table after the last whole page; return the table's place."""
        text = "\n".join(keys).encode("utf-8", "surrogateescape")
        self._file.seek(self._at + self._left)
        self._file.write(text + len(text).to_bytes(8, "little") + KEYS_MAGIC)
        place = self._file.tell()
        for entry in self._table:
            self._file.write(entry.tobytes())
        return place


Row = tuple[str, NDArray[np.void], bytes, Sequence[int], Sequence[tuple[str, str]]]
"""Key, metadata row, the sample's bytes, sizes of its regions, and the (field, pointer) of each."""


def write_beton(
    path: str | Path,
    descriptors: NDArray[np.void],
    row_dtype: np.dtype[np.void],
    rows: Iterable[Row],
    num_samples: int,
    *,
    page_size: int = PAGE_SIZE,
) -> None:
    """Write a `.beton` that FFCV reads, with a key per sample, in one rename.

    Args:
        path: File to make.
        descriptors: DESCRIPTOR (fields,).
        row_dtype: Of a metadata row.
        rows: `num_samples` rows; pointers are filled in here.
        num_samples: At least 1.
        page_size: Power of two, at least 2 MiB.

    Raises:
        ShardsieveError: If there is no sample, one is larger than a page, or a key holds a newline.
        ValueError: If `page_size` is none of FFCV's.
    """
    if page_size < 1 << 21 or page_size & (page_size - 1) or page_size >= 1 << 32:
        raise ValueError(f"page_size must be a power of two in [2^21, 2^32), got {page_size}")
    if num_samples < 1:
        raise ShardsieveError(f"no samples to write to {path}; keep at least one")
    metadata, keys = np.zeros(num_samples, row_dtype), []
    start = HEADER.itemsize + descriptors.nbytes
    remove_left_of(Path(path))
    with replaced(Path(path)) as file:
        writer = BetonWriter(file, start + metadata.nbytes, page_size)
        for number, (key, row, data, sizes, pointers) in enumerate(rows):
            if "\n" in key:
                raise ShardsieveError(f"keys must hold no newline, got {key!r}; rename the sample")
            metadata[number] = row
            if len(sizes):
                for at, (field, pointer) in zip(
                    writer.put(data, sizes, key), pointers, strict=True
                ):
                    column = metadata[field]
                    (column[pointer] if pointer else column)[number] = at
            writer.next_sample()
            keys.append(key)
        header = np.zeros(1, HEADER)
        header["version"], header["num_fields"] = VERSION, len(descriptors)
        header["page_size"], header["num_samples"] = page_size, num_samples
        header["alloc_table_ptr"] = writer.finish(keys)
        file.seek(0, os.SEEK_SET)
        file.write(header.tobytes() + descriptors.tobytes() + metadata.tobytes())
