"""How the arrays of a store are made, found, read and deleted."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

from shardsieve._errors import StoreFormatError
from shardsieve.store.alone import in_turn
from shardsieve.store.contents import WRITTEN_LAST, unlist, write_contents
from shardsieve.store.damage import damaged, read_part
from shardsieve.store.layout import is_name, make_array, told_about_disk, used_slots


class StoreArrays:
    """The arrays of a store by name; a base of `Store`."""

    path: Path | str
    group: zarr.Group
    rows_per_shard: int
    urls: list[str]
    samples: NDArray[np.int64]
    _num_shards: Any

    def __len__(self) -> int:
        return int(self.samples.sum())

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.urls)

    def ids(self) -> NDArray[np.int64]:
        """Return every sample id, ascending: int64 (n,)."""
        used = used_slots(self.samples, self.rows_per_shard)  # an id is the place of a slot
        return np.flatnonzero(used).astype(np.int64, copy=False)

    def has_files(self, name: str) -> bool:
        """Return whether anything of an array or group lies here, such as `score/el2n`."""
        wanted = is_name(name.partition("/")[2])
        return wanted and not sync(self.group.store.is_empty(name))

    def _new_array(
        self, name: str, sizes: tuple[int, ...], dtype: str, fill: Any = np.nan
    ) -> zarr.Array[Any]:
        with told_about_disk(self.path), in_turn(self.path):
            shape = (self._stored_shards(), self.rows_per_shard, *sizes)
            unlist(self.group, name)
            array = make_array(self.group, name, shape, dtype, fill)
            write_contents(self.group)
            return array

    def _delete(self, name: str) -> None:
        if not is_name(name.partition("/")[2]):
            return
        with told_about_disk(self.path), in_turn(self.path):
            unlist(self.group, name)
            del self.group[name]
            write_contents(self.group)

    def _has(self, name: str) -> bool:
        return isinstance(self._found(name), zarr.Array)

    def _found(self, name: str) -> Any:
        # Zarr takes "score/" for the group of all scores, and refuses "score/..".
        return self.group.get(name) if is_name(name.partition("/")[2]) else None

    def _stored_shards(self) -> int:
        """Return the rows of stored arrays: shards may have been appended since it was opened."""
        return int(self._array("shard/samples").shape[0])

    def _names(self, kind: str) -> list[str]:
        group = self.group.get(kind)
        return sorted(group.array_keys()) if isinstance(group, zarr.Group) else []

    def _groups(self, kind: str) -> list[str]:
        """Return the names of the groups of a kind that are whole: they have this attribute."""
        group = self.group.get(kind)
        if not isinstance(group, zarr.Group):
            return []
        return sorted(name for name, one in group.groups() if WRITTEN_LAST[kind] in one.attrs)

    def _array(self, name: str) -> zarr.Array[Any]:
        found = self._found(name)
        if not isinstance(found, zarr.Array):
            raise StoreFormatError(f"{self.path} has no array {name}; make it first")
        shards, *rows = found.shape[:2]
        if shards < (self._num_shards or 0) or rows not in ([], [self.rows_per_shard]):
            cause = f"shape {found.shape} does not fit the store's"
            raise damaged(found.store, f"{name}/zarr.json", cause)
        return found

    def _read(self, name: str) -> Any:
        return read_part(self._array(name), slice(self._num_shards))
