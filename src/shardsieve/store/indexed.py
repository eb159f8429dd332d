"""What the index keeps of one shard, whatever its format."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardsieve.shards.fingerprint import table_fingerprint


@dataclass(frozen=True)
class IndexedShard:
    """What the index keeps of one shard."""

    keys: list[str]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int32]
    suffixes: list[str]
    nbytes: int
    fingerprint: str

    @property
    def table(self) -> str:
        """Exact fingerprint: digest of the sample table."""
        return table_fingerprint(self.keys, self.offset, self.length)
