"""What the index keeps of one shard, whatever its format."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.io.source import absolute
from shardsieve.shards.fingerprint import table_fingerprint


@dataclass(frozen=True)
class IndexedShard:
    """What the index keeps of one shard.

    Attributes:
        label: int32 (n,): number of the class, -1 where there is none, and until `numbered` is
            called -2 - i where it is said by `names[i]`.
        names: Of the shard's classes that are said by name, in the order met.
    """

    keys: list[str]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int32]
    suffixes: list[str]
    nbytes: int
    fingerprint: str
    split: int = 0
    names: list[str] = field(default_factory=list)

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


def class_names_of(shards: Iterable[IndexedShard]) -> list[str]:
    """Return the names of the classes, sorted."""
    return sorted({name for shard in shards for name in shard.names})


def numbered(shards: Iterable[IndexedShard], names: Sequence[str]) -> Iterator[IndexedShard]:
    """Yield shards whose labels are all numbers: the places of their classes among these names.

    A class that is not among them has none, nor have numbers a meaning beside names.
    """
    places = {name: place for place, name in enumerate(names)}
    for shard in shards:
        of_name = np.array([places.get(name, -1) for name in shard.names], np.int32)
        label, said = shard.label.copy(), shard.label < -1
        if names:
            label[~said] = -1
        label[said] = of_name[-2 - shard.label[said]]
        yield replace(shard, label=label, names=[])
