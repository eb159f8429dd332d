"""What the index keeps of one shard, whatever its format."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.io.source import absolute
from shardsieve.shards.fingerprint import table_fingerprint
from shardsieve.store.layout import stored_key


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

    def stored(self, name: str) -> Any:
        """Return what `sample/<name>` of a store holds of it, (samples,)."""
        return list(map(stored_key, self.keys)) if name == "key" else getattr(self, name)

    @property
    def row(self) -> "ShardRow":
        """What is known of it among all shards."""
        hidden = sum(key.endswith("/") for key in self.keys)
        return ShardRow(
            samples=len(self.keys),
            nbytes=self.nbytes,
            fingerprint=self.fingerprint,
            table=self.table,
            suffixes=tuple(self.suffixes),
            split=self.split,
            hidden=hidden,
            # Most shards name the same classes: one string of each.
            names=tuple(map(sys.intern, self.names)),
            has_numbers=bool((self.label >= 0).any()),
        )


@dataclass(frozen=True)
class ShardRow:
    """What is held of every shard at once while a store is written: nothing of its samples.

    Attributes:
        samples: Their number.
        nbytes: Of the shard.
        fingerprint: The cheap one.
        table: The exact one.
        suffixes: Of its members.
        split: Samples that are the rest of an earlier one.
        hidden: Samples that are hidden files: the keys of members whose names begin with a dot in
            a folder end at that folder.
        names: Of its classes that are said by name.
        has_numbers: Whether a class is said by its number.
    """

    samples: int
    nbytes: int
    fingerprint: str
    table: str
    suffixes: tuple[str, ...]
    split: int
    hidden: int
    names: tuple[str, ...]
    has_numbers: bool


def shard_columns(urls: Sequence[str], rows: Sequence[ShardRow]) -> dict[str, NDArray[Any]]:
    """Return what a store holds of its shards, (S,) each, by the names in its group `shard`."""
    return {
        "url": np.array([absolute(url) for url in urls], object),
        "samples": np.array([row.samples for row in rows], np.int64),
        "nbytes": np.array([row.nbytes for row in rows], np.int64),
        "fingerprint": np.array([row.fingerprint for row in rows], object),
        "table": np.array([row.table for row in rows], object),
    }


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
