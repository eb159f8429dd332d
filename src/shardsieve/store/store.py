"""The open store: ids, byte ranges, labels, embeddings, scores and keep sets by shard."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import (
    ANOTHER_STORE,
    StoreFormatError,
    StoreMismatchError,
)
from shardsieve.io.clients import is_remote
from shardsieve.io.source import cheap_fingerprint, cheap_fingerprints, same_fingerprint
from shardsieve.scores.inputs import integers
from shardsieve.shards.fingerprint import NO_SAMPLES
from shardsieve.store.alone import in_turn
from shardsieve.store.copies import copies_in
from shardsieve.store.damage import damaged, read_part
from shardsieve.store.layout import (
    FORMAT_VERSION,
    LOST_LABEL,
    holds_store,
    key_of,
    opened_group,
    place_of,
    told_about_disk,
    unpad,
    used_slots,
)
from shardsieve.store.scores import StoredScores
from shardsieve.store.tables import SampleTables

_COUNTS = {"rows_per_shard": int, "num_shards": int}
_ATTRIBUTES = {"kind": str, "fingerprint": str, "members": list, "classes": list, **_COUNTS}
_KEYS_AT_ONCE = _RANGES_AT_ONCE = _LABELS_AT_ONCE = 128  # shards


class Store(StoredScores, SampleTables):
    """A data set's index, embeddings and scores.

    A *sample id* is `shard * rows_per_shard + position`, int64, and never changes. Any number of
    processes may write different shards at once: a chunk belongs to one shard.

    Attributes:
        path: Where it lies: a `Path`, or the URL of objects.
        kind: `webdataset` or `ffcv`.
        rows_per_shard: L, the id stride.
        urls: Shards in id order.
        places: Where they are read: the same, or copies of them.
        samples: int64 (S,), samples per shard.
        fingerprint: Digest of the shard index.
        members: Suffixes that samples have, such as `jpg` and `cls`.
        classes: Names of the classes by label, where the shards say names and not numbers.
        sample_scores: Values float32 (n,) by row, of every score that a sampler selects by: what
            samples carry as `__score__` where the data set itself was told of no score.
    """

    def __init__(self, path: str | Path, group: zarr.Group) -> None:
        place = place_of(path)
        self.path = place if isinstance(place, str) else place.absolute()
        self.group = group
        self.kind = str(group.attrs["kind"])
        self.rows_per_shard = int(group.attrs["rows_per_shard"])  # type: ignore[arg-type]
        self.fingerprint = str(group.attrs["fingerprint"])
        self.members: tuple[str, ...] = tuple(map(str, group.attrs["members"]))  # type: ignore[arg-type]
        self.classes: tuple[str, ...] = tuple(map(str, group.attrs.get("classes", ())))  # type: ignore[arg-type]
        # While shards are being appended the arrays are longer than the store.
        self._num_shards: Any = group.attrs.get("num_shards")
        self.urls: list[str] = [str(u) for u in self._read("shard/url")]
        self._need_chunks("shard/url", np.array([bool(url) for url in self.urls]))
        self._num_shards = len(self.urls)
        self.places, self._marks = self.urls, list[str]()
        self.samples: NDArray[np.int64] = self._read("shard/samples")
        some = (self.samples > 0) & (self.samples <= self.rows_per_shard)
        if not some.all():  # a lost chunk reads as 0, and so does a shard without samples
            some |= (self.samples == 0) & np.array([table == NO_SAMPLES for table in self.tables()])
        self._need_chunks("shard/samples", some)
        self.sample_scores: dict[str, NDArray[np.float32]] = {}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} samples in {self.num_shards} shards)"

    def rows(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the place of each id among `ids()`: int64, same shape.

        Raises:
            ValueError: If an id belongs to no sample, naming the first.
        """
        wanted = integers("ids", ids, cure="give ids, of a mask store.ids()[mask]")
        shard, position = np.divmod(wanted, self.rows_per_shard)
        inside = (shard >= 0) & (shard < self.num_shards)
        inside &= position < self.samples[np.where(inside, shard, 0)]
        if not inside.all():
            raise ValueError(f"ids must name samples of {self.path}, got {wanted[~inside][0]}")
        return (np.cumsum(self.samples) - self.samples)[shard] + position

    @cached_property
    def ranges(self) -> NDArray[np.int64]:
        """Byte ranges as int64 (S, L, 2): offset and length; 16 bytes per slot.

        Samples of a `.beton` that lie wholly in its tables have (-1, 0).
        """
        columns = [self._array(f"sample/{name}") for name in ("offset", "length")]
        found = np.empty((self.num_shards, self.rows_per_shard, 2), dtype=np.int64)
        for first in range(0, self.num_shards, _RANGES_AT_ONCE):
            part = slice(first, min(first + _RANGES_AT_ONCE, self.num_shards))
            for number, column in enumerate(columns):
                found[part, :, number] = read_part(column, part)
            self._need_ranges(found[part], first)
        return found

    def _need_ranges(self, ranges: NDArray[np.int64], first: int) -> None:
        """Refuse ranges, of shards from the first on, that have lost a chunk."""
        samples = self.samples[first : first + len(ranges)]
        free, inside = ~used_slots(samples, self.rows_per_shard), self.kind == "ffcv"
        somewhere, some = ranges[..., 0] >= 0, ranges[..., 1] > 0
        placed = (somewhere | free | (inside & ~some)).all(axis=1)
        sized = (some | free | (inside & ~somewhere)).all(axis=1)
        self._need_chunks("sample/offset", np.asarray(placed), first=first)
        self._need_chunks("sample/length", np.asarray(sized), first=first)

    def keys(self, shard: int) -> list[str]:
        """Return the keys of one shard's samples, in position order.

        Raises:
            ValueError: If there is no such shard.
        """
        if not 0 <= shard < self.num_shards:
            raise ValueError(f"shard must lie in [0, {self.num_shards}), got {shard}")
        (names,) = self._keys_between(shard, shard + 1)
        return names

    def keys_by_shard(self) -> Iterator[list[str]]:
        """Yield `keys` of every shard; those of many are read at once."""
        for first in range(0, self.num_shards, _KEYS_AT_ONCE):
            yield from self._keys_between(first, min(first + _KEYS_AT_ONCE, self.num_shards))

    def _keys_between(self, first: int, end: int) -> list[list[str]]:
        table = read_part(self._array("sample/key"), slice(first, end))
        samples = self.samples[first:end].tolist()
        found = [
            [key_of(str(key)) for key in row[:n]] for row, n in zip(table, samples, strict=True)
        ]
        self._need_chunks("sample/key", np.array([all(names) for names in found]), first=first)
        return found

    def labels(self, *, need_all: bool = True) -> NDArray[np.int64]:
        """Return the label of every sample in id order, int64 (n,); -1 where it is missing.

        Args:
            need_all: Refuse a store that has lost labels; else -2 stands in their places.

        Raises:
            StoreFormatError: If it has.
        """
        return self._labels_between(0, self.num_shards, need_all=need_all)

    def labels_by_shard(self) -> Iterator[NDArray[np.int64]]:
        """Yield `labels()` shard by shard; those of many are read at once."""
        for first in range(0, self.num_shards, _LABELS_AT_ONCE):
            end = min(first + _LABELS_AT_ONCE, self.num_shards)
            labels = self._labels_between(first, end)
            yield from np.split(labels, np.cumsum(self.samples[first:end])[:-1])

    def _labels_between(self, first: int, end: int, *, need_all: bool = True) -> NDArray[np.int64]:
        table = read_part(self._array("sample/label"), slice(first, end))
        samples = self.samples[first:end]
        if need_all:
            known = (table != LOST_LABEL).any(axis=1)
            self._need_chunks("sample/label", known | (samples == 0), first=first)
        return unpad(table, samples).astype(np.int64)

    def nbytes(self) -> int:
        """Return the bytes of all shards."""
        return int(self._read("shard/nbytes").sum())

    # Checks ---------------------------------------------------------------------------------

    def tables(self) -> list[str]:
        """Return the exact fingerprint of every shard's sample table."""
        return [str(table) for table in self._read("shard/table")]

    def shard_fingerprints(self) -> list[str]:
        """Return the cheap fingerprint of every shard when it was indexed."""
        return [str(found) for found in self._read("shard/fingerprint")]

    def read_copies(self, folder: str | Path | None = None) -> None:
        """Read copies of the shards from now on; see `open_store`."""
        found = copies_in(folder, self.urls, self.shard_fingerprints())
        if found is not None:
            self.places, self._marks = found

    @property
    def reads_copies(self) -> bool:
        """Whether copies are read in place of the shards."""
        return self.places != self.urls

    def move_to_places(self) -> None:
        """Take what is read for the shards themselves, also when the store is opened again."""
        with told_about_disk(self.path), in_turn(self.path):
            self._array("shard/url")[: len(self.places)] = np.array(self.places, dtype=object)
        self.urls, self._marks = self.places, []

    def marks(self) -> list[str]:
        """Return the cheap fingerprint that each of `places` must have."""
        return self._marks or self.shard_fingerprints()

    def check_shards(self) -> None:
        """Compare every shard, or its copy, with its cheap fingerprint (size and time of change).

        Raises:
            StoreMismatchError: If a shard is not the one that was indexed, saying how it differs.
        """
        found = cheap_fingerprints(self.places)
        for url, want, got in zip(self.places, self.marks(), found, strict=True):
            if same_fingerprint(want, got) or same_fingerprint(want, got := cheap_fingerprint(url)):
                continue
            raise StoreMismatchError(
                f"shard {url} is not the one that {self.path} was made from "
                f"({want} then, {got} now); run `shardsieve check`, or index again "
                "into another store"
            )

    def renew_fingerprints(self, found: Sequence[str]) -> int:
        """Take shards that were compared exactly for those of the index.

        Args:
            found: Their cheap fingerprints, from before they were compared.

        Returns:
            How many of them were others than those at indexing.
        """
        held = zip(self.shard_fingerprints(), found, strict=True)
        changed = sum(not same_fingerprint(one, other) for one, other in held)
        if changed:
            with told_about_disk(self.path), in_turn(self.path):
                self._array("shard/fingerprint")[: len(found)] = np.array(found, dtype=object)
        return changed

    # Inside ---------------------------------------------------------------------------------

    def _need_chunks(self, name: str, whole: NDArray[np.bool_], *, first: int = 0) -> None:
        """Refuse an array that has lost a chunk: Zarr reads its fill value there."""
        if not whole.all():
            url = self.urls[first + int(np.argmin(whole))]
            raise StoreFormatError(
                f"{self.path} has lost what {name} held of shard {url}; {ANOTHER_STORE}"
            )


def refuse_path(store: object) -> None:
    """Raise TypeError for the place of a store, or anything else, where an open one belongs."""
    if isinstance(store, (str, Path)):
        raise TypeError(f"store must be open, got its path; pass open_store({str(store)!r})")
    if not isinstance(store, Store):
        raise TypeError(f"store must be what open_store or index returns, got {store!r}")


def numbers_in(store: Store, other: Store) -> NDArray[np.int64] | None:
    """Return what `store` calls every class of `other`, and -1 behind; None if by its number.

    Classes that have names are numbered by those that there are: a test split may lack some, and
    those that were appended come behind. One that `store` lacks has the number behind all others.
    """
    if not store.classes or not other.classes:
        return None
    number = {name: place for place, name in enumerate(store.classes)}
    found = [number.get(name, len(number)) for name in other.classes]
    return np.array([*found, -1], dtype=np.int64)


def open_store(
    path: str | Path,
    *,
    mode: str = "r+",
    check_shards: bool = True,
    copies: str | Path | None = None,
) -> Store:
    """Open a store and check that its shards are still those it was made from.

    Args:
        path: Folder of the store, or its `s3://`, `gs://`, `az://`, `hf://`, `http(s)://` URL.
        mode: `r` forbids writing, `r+` allows it.
        check_shards: Compare their sizes and times; False is for who compares their samples.
        copies: A folder, or the URL of one, with a copy of every shard under its name: these are
            read in place of the shards, which may be gone. Their sizes are compared. Left out, it
            is what the variable SHARDSIEVE_COPIES of the environment names, for stores of which
            shards are there.

    Raises:
        StoreFormatError: If there is no store, or a newer version wrote it.
        StoreMismatchError: If a shard has changed, or is no copy.
        ShardsieveError: If a copy is missing.
    """
    path = place_of(path)
    if mode not in ("r", "r+"):
        raise ValueError(f"mode must be r or r+, got {mode!r}; `index` makes stores")
    if not holds_store(path):
        cure = f"make it with `shardsieve index SHARDS --store {path}`"
        if is_remote(path):  # where the commands make none
            cure = "check the URL; `ss.index(SHARDS, URL)` makes one in s3://, gs:// or az://"
        raise StoreFormatError(f"no store at {path}; {cure}")
    group = opened_group(path, mode)
    version = group.attrs.get("format_version")
    if not isinstance(version, int):
        raise StoreFormatError(f"{path} is a Zarr group but no shardsieve store; check the path")
    if version > FORMAT_VERSION:
        raise StoreFormatError(
            f"{path} has format version {version}, this release reads up to {FORMAT_VERSION}; "
            "upgrade shardsieve"
        )
    # Stores of earlier releases do not say how many shards they have, and others no classes.
    held: dict[str, Any] = {"num_shards": 1, "classes": [], **group.attrs}
    lost = [name for name, kind in _ATTRIBUTES.items() if not isinstance(held.get(name), kind)]
    if lost := lost or [name for name in _COUNTS if not 0 < held[name] < 1 << 31]:
        raise damaged(group.store, "zarr.json", f"it does not say {lost[0]}")
    store = Store(path, group)
    if check_shards or copies is not None:
        store.read_copies(copies)
    if check_shards:
        store.check_shards()
    return store
