"""Files of a store that are damaged: told by name, with the cure."""

import json
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.group import GroupMetadata
from zarr.core.metadata.v3 import ArrayV3Metadata

from shardsieve._errors import ANOTHER_STORE, StoreFormatError

CHECKED = ZstdCodec(level=0, checksum=True)
"""How chunks are written: one in which a byte has changed is no other numbers, but an error."""
_DAMAGE = (RuntimeError, ValueError)  # of zstd, of what it has unpacked
_KINDS: dict[str, Any] = {"array": ArrayV3Metadata, "group": GroupMetadata}
_NO_METADATA = (AttributeError, KeyError, TypeError, ValueError)
_FILLED_AGAIN = ("embedding", "signal")
_INDEX = ("shard", "sample")


def read_part(array: zarr.Array[Any], where: Any = ...) -> Any:
    """Return part of a stored array.

    Raises:
        StoreFormatError: If a file of it is damaged, naming the first.
    """
    try:
        return np.asarray(array[where])
    except _DAMAGE as error:
        key = f"{array.path}/c/{_first_damaged(array)}"
        raise damaged(array.store, key, str(error)) from error


def need_metadata(store: Any, key: str, found: Buffer | None) -> None:
    """Refuse a `zarr.json` that was cut short, or in whose words something has changed.

    Raises:
        StoreFormatError: If it holds no JSON, or what Zarr does not know.
    """
    if found is None or not key.endswith("zarr.json"):
        return
    try:
        held = json.loads(found.to_bytes())
    except ValueError as error:
        raise damaged(store, key, "it is no JSON") from error
    try:
        held.pop("consolidated_metadata", None)  # of all that lies below: it takes the longest
        _KINDS[held["node_type"]].from_dict(held)
        if 0 in held.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", ()):
            raise ValueError("chunks of no rows")
    except _NO_METADATA as error:
        if not __debug__:
            raise StoreFormatError(
                "Zarr reads no store under `python -O`, which leaves steps of it out; start Python "
                "without -O and PYTHONOPTIMIZE"
            ) from error
        raise damaged(store, key, " ".join(str(error).split())) from error


def _first_damaged(array: zarr.Array[Any]) -> int:
    """Return which chunks of the first axis cannot be read, the lowest number."""
    rows = array.chunks[0]
    first, end = 0, -(-array.shape[0] // rows)
    while end - first > 1:
        middle = (first + end) // 2
        try:
            array[first * rows : middle * rows]
            first = middle
        except _DAMAGE:
            end = middle
    return first


def damaged(store: Any, key: str, cause: str) -> StoreFormatError:
    """Return the error of a damaged file, with the cure.

    Args:
        store: Of Zarr.
        key: Of the file.
        cause: By which it is known.
    """
    place = getattr(store, "url", None) or store.root
    kind, *rest = key.split("/")
    if kind in _INDEX or len(rest) < 2:
        cure = ANOTHER_STORE
    elif kind in _FILLED_AGAIN and not key.endswith("zarr.json"):
        cure = "delete it and embed again"
    else:
        cure = f"delete {place}/{kind}/{rest[0]} and make it again"
    return StoreFormatError(f"{place}/{key} is damaged ({cause}); put back a copy of it, or {cure}")
