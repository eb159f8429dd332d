"""Zarr's store of objects, at home in every process: errors are one line with the cause."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Self

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from shardsieve.io.clients import forked_after_use, group_client
from shardsieve.io.objects import (
    create,
    fetch_whole,
    names_below,
    replace,
    told_about_objects,
    version_of,
)
from shardsieve.io.source import AT_ONCE
from shardsieve.store.damage import need_metadata

ROOT = "zarr.json"


class Objects(ObjectStore[Any]):
    """The objects below a URL.

    A process that was forked after its parent had used obstore reads through its helper, and
    cannot write.

    Attributes:
        url: Where they lie.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        super().__init__(group_client(url), read_only=read_only)
        self.url = url
        self._root: Any = None
        self._knows_conditions = True

    def with_read_only(self, read_only: bool = False) -> Self:
        """Return the same objects, to be read only or not."""
        return type(self)(self.url, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object's bytes, None if there is none of that name."""
        if not forked_after_use():
            with told_about_objects(f"read {self.url}/{key}"):
                found = await super().get(key, prototype, byte_range)
        else:
            assert byte_range is None  # chunks are read whole
            data = await asyncio.to_thread(fetch_whole, f"{self.url}/{key}")
            found = None if data is None else prototype.buffer.from_bytes(data)
        need_metadata(self, key, found)
        return found

    async def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        with told_about_objects(f"read {self.url}/{key}"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object; see `root_unchanged`."""
        with told_about_objects(f"write {self.url}/{key}"):
            if key == ROOT and self._root:
                if await replace(self.store, key, value.to_bytes(), self._root):
                    return
                self._knows_conditions = False
            await super().set(key, value)

    @contextmanager
    def root_unchanged(self) -> Iterator[None]:
        """Write the root's `zarr.json` only in place of the one that is there now.

        Else a `ShardsieveError` is raised: see `was_changed`. A host that knows no conditions
        writes it all the same.
        """
        if self._knows_conditions:
            self._root = version_of(f"{self.url}/{ROOT}")
        try:
            yield
        finally:
            self._root = None

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object if there is none of that name.

        It is looked for as well: a host that knows no conditions, and passes over this one, would
        write an empty group over the store's root.
        """
        if await self.exists(key):
            return
        with told_about_objects(f"write {self.url}/{key}"):
            if self._knows_conditions and await create(self.store, key, value.to_bytes()):
                return
            self._knows_conditions = False
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        with told_about_objects(f"delete {self.url}/{key}"):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete what lies below a name.

        Whatever a kill leaves is still a member of its group, of which Zarr does not warn: a
        `zarr.json` goes after all that lies beside it.
        """
        names = [name async for name in self.list_prefix(f"{prefix}/")]
        contents = [name for name in names if name.rpartition("/")[2] == "zarr.json"]
        contents.sort(key=lambda name: -name.count("/"))
        rest = sorted(set(names).difference(contents))
        for at in range(0, len(rest), AT_ONCE):
            await asyncio.gather(*map(self.delete, rest[at : at + AT_ONCE]))
        for name in contents:
            await self.delete(name)

    async def list(self) -> AsyncGenerator[str, None]:  # type: ignore[override]
        """Yield the names of all objects."""
        with told_about_objects(f"list {self.url}"):
            async for name in super().list():
                yield name

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:  # type: ignore[override]
        """Yield the names of the objects that begin so."""
        with told_about_objects(f"list {self.url}/{prefix}"):
            async for name in super().list_prefix(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:  # type: ignore[override]
        """Yield the names right below one."""
        place = f"{self.url}/{prefix}".rstrip("/")
        for name in await asyncio.to_thread(names_below, place):
            yield name
