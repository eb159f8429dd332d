"""What the index keeps of one shard, whatever its format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.io.source import absolute
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
    split: int = 0

    @property
    def table(self) -> str:
        """Exact fingerprint: digest of the sample table."""
        return table_fingerprint(self.keys, self.offset, self.length)


def shard_columns(urls: Sequence[str], shards: Sequence[IndexedShard]) -> dict[str, NDArray[Any]]:
    """Return what a store holds of its shards, (S,) each, by the names in its group `shard`."""
    return {
        "url": np.array([absolute(url) for url in urls], object),
        "samples": np.array([len(shard.keys) for shard in shards], np.int64),
        "nbytes": np.array([shard.nbytes for shard in shards], np.int64),
        "fingerprint": np.array([shard.fingerprint for shard in shards], object),
        "table": np.array([shard.table for shard in shards], object),
    }
