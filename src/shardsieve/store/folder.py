"""Zarr's store of files, without what killed processes left of files they were writing."""

from collections.abc import AsyncIterator

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from shardsieve._errors import StoreFormatError
from shardsieve.store.damage import need_metadata


class Folder(LocalStore):
    """The files below a folder.

    Zarr writes a file under another name first, and a folder before its `zarr.json`. What a kill
    leaves of these is no member of the group it lies in; Zarr would warn of it at every listing.
    """

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a file's bytes, None if there is none of that name.

        Raises:
            StoreFormatError: If it cannot be read, or is a damaged `zarr.json`.
        """
        try:
            found = await super().get(key, prototype, byte_range)
        except OSError as error:
            raise StoreFormatError(
                f"cannot read {self.root / key}: {error.strerror or error}; see that you may read "
                "it, and that its disk works"
            ) from error
        need_metadata(self, key, found)
        return found

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below a group."""
        async for name in super().list_dir(prefix):
            path = self.root / prefix / name
            begun = path.is_dir() and not (path / "zarr.json").is_file()
            if not name.endswith(".partial") and not begun:
                yield name
