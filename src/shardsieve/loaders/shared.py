"""What the worker processes of a loader know together."""

import os
import struct
import weakref
from pathlib import Path

from torch import Tensor

from shardsieve._errors import ShardsieveError
from shardsieve.io.replacing import temporary_folder

ENTRY = struct.Struct("<q")


def shared(tensor: Tensor) -> Tensor:
    """Return a tensor, moved to memory that the processes of a loader share.

    Raises:
        ShardsieveError: If there is no room for it.
    """
    try:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ShardsieveError(
            f"cannot share {tensor.nbytes:,} bytes between processes: {error}; give /dev/shm more "
            "room (docker run --shm-size=8g, or --ipc=host), or read with fewer or no workers"
        ) from error
    return tensor


class SharedIds:
    """A small set of sample ids, filled by the workers of one loader without a lock.

    Every worker appends to one file, made with the first id: an appended entry is never lost nor
    torn, and the order of the file decides which ids still had room. It holds 8 bytes per id and
    worker that met it, and is removed with the set in the process that made it.

    Attributes:
        most: Ids it holds.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        name = f"shardsieve-skipped-{os.getpid()}-{os.urandom(8).hex()}"
        self._file = temporary_folder() / name
        weakref.finalize(self, _remove, self._file, os.getpid())

    def add(self, sample_id: int) -> bool:
        """Put an id in, if it is not there; return whether there was room."""
        if self.most and sample_id not in self._added():
            with self._file.open("ab", buffering=0) as file:
                file.write(ENTRY.pack(sample_id))
        return sample_id in self._added()

    def ids(self) -> list[int]:
        """Return the ids, ascending."""
        return sorted(self._added())

    def _added(self) -> list[int]:
        """Return the ids that had room, in the order in which they came."""
        try:
            entries = self._file.read_bytes()
        except FileNotFoundError:
            return []
        return list(dict.fromkeys(one for (one,) in ENTRY.iter_unpack(entries)))[: self.most]


def _remove(file: Path, owner: int) -> None:
    """Remove the file, but not from a forked worker, where the set goes away earlier."""
    if os.getpid() == owner:
        file.unlink(missing_ok=True)
