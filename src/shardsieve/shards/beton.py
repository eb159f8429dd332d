"""Read the tables of an FFCV `.beton` file with numpy: no Python object per sample.

Layout (ffcv 1.0, `types.py` and `writer.py`): header, one descriptor per field, one metadata row
per sample, pages, allocation table up to the end. All bytes of a sample lie in one page.
shardsieve may put sample keys between the pages and the allocation table, where FFCV never looks:
joined by newlines, then their size as u8 and `KEYS_MAGIC`.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import CorruptShardError, ShardsieveError

VERSION = 2
SUFFIXES = (".beton", ".ffcv")
"""How names of these files end: FFCV itself takes any."""
KEYS_MAGIC = b"SIEVEKEY"
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
DESCRIPTOR = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FLOAT, INT, IMAGE, BYTES, ARRAY, JSON, TENSOR, CUSTOM = 0, 1, 2, 3, 4, 5, 6, 255
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
ROW_TYPES = {
    FLOAT: np.dtype("<f8"),
    INT: np.dtype("<i8"),
    IMAGE: np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")]),
    BYTES: _POINTER_AND_SIZE,
    ARRAY: np.dtype("<u8"),
    JSON: _POINTER_AND_SIZE,
    TENSOR: np.dtype("<u8"),
}
# Where a row type holds its one pointer; "" means that the value is the pointer itself.
POINTERS = {IMAGE: "data_ptr", BYTES: "ptr", JSON: "ptr", ARRAY: "", TENSOR: ""}
_SMALLEST_PAGE = 1 << 21
_MOST_FIELDS = 1024


@dataclass(frozen=True)
class Beton:
    """The tables of one `.beton` file.

    Attributes:
        path: The file.
        page_size: Bytes of a page, a power of two.
        names: Field names in file order.
        types: FFCV's type numbers of the fields; 255 is a custom field.
        descriptors: DESCRIPTOR (fields,), as in the file.
        metadata: One row per sample with fields `f0`, `f1`...; None where a custom field hides the
            length of a row.
        allocations: ALLOCATION (m,), in file order.
        num_samples: n.
        nbytes: Bytes of the whole file.
        table_at: First byte of the allocation table.
    """

    path: str
    page_size: int
    names: tuple[str, ...]
    types: tuple[int, ...]
    descriptors: NDArray[np.void]
    metadata: NDArray[np.void] | None
    allocations: NDArray[np.void]
    num_samples: int
    nbytes: int
    table_at: int

    def __len__(self) -> int:
        return self.num_samples

    @cached_property
    def ranges(self) -> NDArray[np.int64]:
        """Offset and length of each sample's bytes, int64 (n, 2); (-1, 0) where all is inline."""
        rows = self.allocations["sample_id"].astype(np.int64)
        start = self.allocations["ptr"].astype(np.int64)
        first = np.full(len(self), np.iinfo(np.int64).max)
        last = np.full(len(self), -1)
        np.minimum.at(first, rows, start)
        np.maximum.at(last, rows, start + self.allocations["size"].astype(np.int64))
        inline = last < 0
        return np.stack([np.where(inline, -1, first), np.where(inline, 0, last - first)], axis=1)

    def column(self, name: str) -> NDArray[np.generic]:
        """Return the metadata of one field, (n,).

        Raises:
            ShardsieveError: If there is no such field, or a custom field hides the rows.
        """
        if name not in self.names:
            raise ShardsieveError(
                f"field must be one of those in {self.path} ({', '.join(self.names)}), got {name!r}"
            )
        if self.metadata is None:
            raise ShardsieveError(
                f"{self.path} has custom fields ({', '.join(self.custom)}), whose rows only their "
                "own class can read; put labels with store.put_score or write plain FFCV fields"
            )
        column: NDArray[np.generic] = self.metadata[f"f{self.names.index(name)}"]
        return column

    @property
    def custom(self) -> list[str]:
        """Names of the fields of custom type."""
        return [n for n, t in zip(self.names, self.types, strict=True) if t == CUSTOM]

    @property
    def label_field(self) -> str | None:
        """The integer field that is the label if nobody names one."""
        found = self._integers()
        if self.metadata is None:
            return None
        return "label" if "label" in found else found[0] if len(found) == 1 else None

    def labels(self, field: str | None = None) -> NDArray[np.int32]:
        """Return a label per sample: int32 (n,), -1 where there is none.

        Args:
            field: An integer field. Left out: `label`, else the only integer field, else none.

        Raises:
            ShardsieveError: If the named field cannot give labels.
        """
        name = self.label_field if field is None else field
        if name is None:
            return np.full(len(self), -1, dtype=np.int32)
        values = self.column(name)
        if self.types[self.names.index(name)] != INT:
            raise ShardsieveError(
                f"field {name!r} of {self.path} cannot give labels: it is no integer field; "
                f"integer fields are: {', '.join(self._integers()) or 'none'}"
            )
        whole = values.astype(np.int64)
        usable = (whole >= 0) & (whole <= np.iinfo(np.int32).max)
        if field is not None and not usable.all():
            raise ShardsieveError(
                f"labels of field {name!r} of {self.path} must lie in [0, 2^31), got "
                f"{whole[~usable][0]} in row {np.flatnonzero(~usable)[0]}; name another field"
            )
        return np.where(usable, whole, -1).astype(np.int32)

    def keys(self) -> list[str]:
        """Return a key per sample: those that shardsieve wrote, else the row number.

        Raises:
            CorruptShardError: If the keys are not one per sample.
        """
        with Path(self.path).open("rb") as file:
            file.seek(max(self.table_at - 16, 0))
            tail = file.read(16)
            if tail[8:] != KEYS_MAGIC:
                return [f"{row:08d}" for row in range(len(self))]
            size = int.from_bytes(tail[:8], "little")
            file.seek(max(self.table_at - 16 - size, 0))
            keys = file.read(size).decode("utf-8", "surrogateescape").split("\n")
        if len(keys) != len(self):
            raise CorruptShardError(
                f"{self.path} holds {len(keys)} keys for {len(self)} samples; write it again"
            )
        return keys

    def _integers(self) -> list[str]:
        return [n for n, t in zip(self.names, self.types, strict=True) if t == INT]


def read_beton(path: str | Path) -> Beton:
    """Read the tables of a `.beton` file; 24 bytes per allocation and one row per sample.

    Raises:
        CorruptShardError: If the file is not a .beton, of another version, unfinished, truncated,
            or its tables contradict each other.
        ShardsieveError: If it cannot be read.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            header = _header(file.read(HEADER.itemsize), name)
            table_at, rows = int(header["alloc_table_ptr"]), int(header["num_samples"])
            raw = file.read(int(header["num_fields"]) * DESCRIPTOR.itemsize)
            _check_extent(name, header, len(raw), total)
            descriptors = np.frombuffer(raw, DESCRIPTOR)
            types = tuple(int(t) for t in descriptors["type_id"])
            metadata = _metadata(file.read, types, rows, name)
            file.seek(table_at)
            allocations = np.frombuffer(file.read(), ALLOCATION)
    except OSError as error:
        raise ShardsieveError(f"cannot read {name}: {error.strerror or error}") from error
    beton = Beton(
        path=name,
        page_size=int(header["page_size"]),
        names=tuple(_text(d) for d in descriptors["name"]),
        types=types,
        descriptors=descriptors,
        metadata=metadata,
        allocations=allocations,
        num_samples=rows,
        nbytes=total,
        table_at=table_at,
    )
    _check_tables(beton)
    return beton


def row_type(types: tuple[int, ...]) -> np.dtype[np.void]:
    """Return the dtype of a metadata row for these field types, aligned as FFCV does."""
    return np.dtype([("", ROW_TYPES[t]) for t in types], align=True)


def _metadata(read, types: tuple[int, ...], rows: int, path: str) -> NDArray[np.void] | None:  # type: ignore[no-untyped-def]
    if CUSTOM in types:
        return None
    unknown = [t for t in types if t not in ROW_TYPES]
    if unknown:
        raise CorruptShardError(
            f"{path} has a field of type {unknown[0]}, which no FFCV {VERSION} file has; "
            "write it again"
        )
    kind = row_type(types)
    raw = read(rows * kind.itemsize)
    if len(raw) < rows * kind.itemsize:
        raise _truncated(path)
    return np.frombuffer(raw, kind)


def _header(raw: bytes, path: str) -> NDArray[np.void]:
    if len(raw) < HEADER.itemsize:
        raise CorruptShardError(f"{path} is not a .beton: {len(raw)} bytes; give an FFCV file")
    header: NDArray[np.void] = np.frombuffer(raw, HEADER)[0]
    page = int(header["page_size"])
    plausible = 0 < header["num_fields"] <= _MOST_FIELDS and page >= _SMALLEST_PAGE
    if not plausible or page & (page - 1):
        raise CorruptShardError(f"{path} is not a .beton: no FFCV header; give an FFCV file")
    if header["version"] != VERSION:
        raise CorruptShardError(
            f"{path} is a .beton of version {header['version']}, version {VERSION} is read; "
            "write it again with ffcv 1.0"
        )
    return header


def _check_extent(path: str, header: NDArray[np.void], descriptors: int, total: int) -> None:
    table_at, rows = int(header["alloc_table_ptr"]), int(header["num_samples"])
    if rows == 0:
        raise CorruptShardError(f"{path} holds no samples; write it again")
    if table_at == 0:
        raise CorruptShardError(f"{path} was never finished: no allocation table; write it again")
    short = descriptors < int(header["num_fields"]) * DESCRIPTOR.itemsize
    if short or rows > total or table_at > total or (total - table_at) % ALLOCATION.itemsize:
        raise _truncated(path)


def _check_tables(beton: Beton) -> None:
    table = beton.allocations
    if len(table):
        end = np.uint64(beton.table_at)
        # The sum of both may overflow.
        outside = (table["ptr"] > end) | (table["size"] > end - table["ptr"])
        if int(table["sample_id"].max()) >= len(beton) or outside.any():
            raise CorruptShardError(
                f"{beton.path} is damaged: its allocation table names samples or bytes that the "
                "file does not have; write it again"
            )
    pointers = sum(t in POINTERS for t in beton.types)
    if beton.metadata is not None and len(table) != pointers * len(beton):
        raise _truncated(beton.path)


def _truncated(path: str) -> CorruptShardError:
    return CorruptShardError(
        f"{path} is truncated: its tables are not all there; copy or write it again"
    )


def _text(raw: NDArray[np.uint8]) -> str:
    return raw.tobytes().split(b"\0", 1)[0].decode("ascii", "replace")
