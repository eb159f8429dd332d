"""One sample of an FFCV file as webdataset's members: bytes by suffix, without FFCV."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shardsieve._errors import CorruptShardError, ShardsieveError
from shardsieve.shards.beton import BYTES, IMAGE, INT, JSON, POINTERS, Beton

JPEG, RAW = 0, 1
_WITH_MEMBERS = (IMAGE, INT, BYTES, JSON)


class BetonFields:
    """Cuts the bytes of a sample into its fields.

    JPEGs are `jpg` with their bytes untouched, raw images `png` or `ppm`, the label `cls`, other
    integers, bytes and JSON members named after their field. With several images a member is
    `FIELD.jpg`. Fields of other types have no member.
    """

    def __init__(self, beton: Beton, *, label: str | None = None, raw: str = "png") -> None:
        """Look at the tables.

        Args:
            beton: The file's tables.
            label: Name of the integer field that is the label; as in `Beton.labels` if left out.
            raw: What raw images become: `png`, or `ppm`, which costs a copy only.

        Raises:
            ShardsieveError: If custom fields hide the rows.
        """
        if beton.metadata is None:
            raise ShardsieveError(
                f"{beton.path} has custom fields ({', '.join(beton.custom)}), whose samples only "
                "FFCV can read, with their class: prune an ffcv Loader"
            )
        self._beton, self._raw, self._rows = beton, raw, beton.metadata
        # A field of no bytes has the pointer of the next one: the last of a pointer is whole.
        order = np.lexsort((beton.allocations["size"], beton.allocations["ptr"]))
        self._starts = beton.allocations["ptr"][order]
        self._sizes = beton.allocations["size"][order]
        names = dict(zip(beton.names, beton.types, strict=True))
        self.without_members = [n for n, t in names.items() if t not in _WITH_MEMBERS]
        self._label = beton.label_field if label is None else label
        self._one_image = beton.types.count(IMAGE) == 1

    def regions(self, row: int) -> list[tuple[int, int]]:
        """Return (first byte, size) of every field that has bytes of its own, in field order."""
        found = []
        for number, kind in enumerate(self._beton.types):
            if kind in POINTERS:
                found.append(self._region(row, number, kind))
        return found

    def __call__(self, row: int, data: bytes, offset: int) -> dict[str, bytes]:
        """Return the members of a row.

        Args:
            row: Its number.
            data: What `Beton.ranges` says.
            offset: Where in the file `data` begins.
        """
        members: dict[str, bytes] = {}
        for number, (name, kind) in enumerate(
            zip(self._beton.names, self._beton.types, strict=True)
        ):
            value = self._rows[row][f"f{number}"]
            if kind == INT:
                members["cls" if name == self._label else name] = str(int(value)).encode()
            elif kind in (IMAGE, BYTES, JSON):
                at, size = self._region(row, number, kind)
                part = data[at - offset : at - offset + size]
                if kind == IMAGE:
                    suffix, part = self._image(value, part)
                    members[suffix if self._one_image else f"{name}.{suffix}"] = part
                elif kind == JSON:
                    members[f"{name}.json"] = part.rstrip(b"\0")
                else:
                    members[name] = part
        return members

    def _region(self, row: int, number: int, kind: int) -> tuple[int, int]:
        value = self._rows[row][f"f{number}"]
        at = int(value[POINTERS[kind]] if POINTERS[kind] else value)
        if kind in (BYTES, JSON):
            return at, int(value["size"])
        return at, int(self._sizes[np.searchsorted(self._starts, np.uint64(at), side="right") - 1])

    def _image(self, value: NDArray[np.void], data: bytes) -> tuple[str, bytes]:
        if int(value["mode"]) == JPEG:
            return "jpg", data
        height, width = int(value["height"]), int(value["width"])
        if not len(data) == height * width * 3 > 0:
            raise CorruptShardError(
                f"{self._beton.path} is damaged: it has {len(data)} bytes for an image of {height} "
                f"x {width} pixels; write it again"
            )
        if self._raw == "ppm":
            return "ppm", b"P6 %d %d 255\n" % (width, height) + data
        out = io.BytesIO()
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        Image.fromarray(pixels).save(out, "PNG", compress_level=6)
        return "png", out.getvalue()
