"""The keep set of a store: which samples survive, packed to one bit per slot."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shardsieve._errors import StoreFormatError, StoreMismatchError
from shardsieve.doubts import doubt_of_score
from shardsieve.rules import Asked, chosen_rows
from shardsieve.scores.inputs import plain, real
from shardsieve.store.alone import in_turn
from shardsieve.store.store import Store, refuse_path

_LOG = logging.getLogger("shardsieve")

_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
# Where a byte has its nth bit: (256, 8), of which the first `bitwise_count` of each row count.
_NTH_BIT = np.argsort(1 - _BYTES, axis=1, kind="stable")


@dataclass(frozen=True, eq=False, repr=False)
class KeepSet:
    """Kept samples of a data set: `len` counts them, and iterating yields their ids, ascending.

    Two keep sets are equal if they keep the same samples of one shard index with the same weights.

    Attributes:
        bits: uint8 (S, ceil(L / 8)), bit p of row s says whether that sample is kept.
        rows_per_shard: L.
        fingerprint: The shard index that the ids belong to.
        weights: float32 (kept,), loss weights aligned with `ids()`; None means ones.
    """

    bits: NDArray[np.uint8]
    rows_per_shard: int
    fingerprint: str
    weights: NDArray[np.float32] | None = None

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Kept samples per shard, int64 (S,)."""
        per_row: NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return per_row

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        return f"KeepSet({len(self)} samples{weighted})"

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids().tolist())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the kept ids: numpy would else take it for one object that is no id."""
        return np.asarray(self.ids(), dtype=dtype)

    def __contains__(self, sample_id: object) -> bool:
        if not isinstance(sample_id, (int, np.integer)):
            return False
        shard, position = divmod(int(sample_id), self.rows_per_shard)
        return 0 <= shard < len(self.bits) and position in self.positions(shard)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeepSet):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, int, str]:
        return self.fingerprint, self.rows_per_shard, self.digest

    def positions(self, shard: int) -> NDArray[np.int64]:
        """Return the kept positions of one shard, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits[shard])).astype(np.int64)

    def ids(self) -> NDArray[np.int64]:
        """Return the kept sample ids, ascending: int64 (kept,)."""
        shard, position = np.nonzero(np.unpackbits(self.bits, axis=1))
        return (shard * self.rows_per_shard + position).astype(np.int64)

    def weights_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Return the weights of these kept ids: float32, same shape; None where all are 1."""
        if self.weights is None:
            return None
        return self.weights[np.searchsorted(self._ids, ids)]

    @cached_property
    def _ids(self) -> NDArray[np.int64]:
        return self.ids()

    def ids_at(self, shard: NDArray[np.int64], ordinal: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of these kept samples, counted within their shards: int64, same shape."""
        used = np.zeros(len(self.bits), dtype=np.bool_)
        used[shard] = True
        bits, width = self.bits[used].ravel(), self.bits.shape[1]
        sizes = np.bitwise_count(bits)
        ends = np.cumsum(sizes, dtype=np.int64)
        # Places among what these shards keep, and the bytes that hold them.
        first = np.concatenate([[0], ends[width - 1 :: width]])
        place = first[np.cumsum(used)[shard] - 1] + ordinal
        byte = np.searchsorted(ends, place, side="right")
        bit = _NTH_BIT[bits[byte], place - ends[byte] + sizes[byte]]
        return np.asarray(shard * self.rows_per_shard + byte % width * 8 + bit)

    def within(self, shards: NDArray[np.bool_]) -> "KeepSet":
        """Return what it keeps of some shards: bool (S,)."""
        weights = self.weights
        if weights is not None:
            weights = weights[np.repeat(shards, self.counts)]
        bits = np.where(shards[:, None], self.bits, np.uint8(0))
        return replace(self, bits=bits, weights=weights)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the kept ids and their weights."""
        found = hashlib.blake2b(self.bits.tobytes(), digest_size=8)
        if self.weights is not None:
            found.update(self.weights.tobytes())
        return found.hexdigest()

    def nbytes(self, store: Store) -> int:
        """Return the bytes of the kept samples in the shards, headers and padding included."""
        shard, position = np.divmod(self.ids(), self.rows_per_shard)
        return int(store.ranges[shard, position, 1].sum())

    @classmethod
    def from_ids(cls, store: Store, ids: ArrayLike, weights: ArrayLike | None = None) -> "KeepSet":
        """Return the keep set of these ids of a store.

        Args:
            store: An open store.
            ids: int (k,), in any order.
            weights: float (k,), a loss weight per id, above 0: samples carry them as `__weight__`.

        Raises:
            ValueError: If an id is in no shard, or with weights one comes twice, or the weights
                are not one per id, finite and above 0.
        """
        store.rows(ids)
        kept = np.asarray(plain(ids), dtype=np.int64)
        mask = np.zeros((store.num_shards, store.rows_per_shard), dtype=bool)
        mask[np.divmod(kept, store.rows_per_shard)] = True
        ordered = None if weights is None else _ordered_weights(kept, weights)
        return cls(np.packbits(mask, axis=1), store.rows_per_shard, store.fingerprint, ordered)

    def save(self, store: Store, name: str, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Keep it in the store; loaders take its name for `keep_set`.

        Args:
            store: Whose samples it keeps, open for writing.
            name: As of a score; a stored keep set is replaced by an equal one only.
            provenance: How it was chosen, JSON-ready; stored with version and date.

        Raises:
            StoreMismatchError: If the name holds another keep set, or it is another store's.
        """
        _refuse_another_store(store, self.fingerprint)
        tables: dict[str, NDArray[Any]] = {"bits": self.bits, "kept": self.counts}
        if self.weights is not None:
            table = np.full((store.num_shards, self.rows_per_shard), np.nan, np.float32)
            table[np.divmod(self.ids(), self.rows_per_shard)] = self.weights
            tables["weight"] = table
        about = {**(provenance or {}), "fingerprint": self.fingerprint}
        with in_turn(store.path):  # nobody else's appears between the look and the writing
            if name in store.keep_sets and KeepSet.load(store, name).digest != self.digest:
                raise StoreMismatchError(
                    f"keep set {name!r} of {store.path} keeps other samples; choose another name, "
                    f"or `shardsieve forget --store {store.path} --keep-set {name}` first"
                )
            store.put_keep_tables(name, tables, about)

    @classmethod
    def load(cls, store: Store, name: str) -> "KeepSet":
        """Return a stored keep set.

        Raises:
            MissingScoreError: If there is none of that name, listing those there are.
            StoreMismatchError: If shards were appended since it was saved.
            StoreFormatError: If part of it is lost.
        """
        about, tables = store.keep_provenance(name), store.keep_tables(name)
        lost = StoreFormatError(
            f"{store.path} has lost part of keep set {name!r}; "
            f"`shardsieve forget --store {store.path} --keep-set {name}`, and save it again"
        )
        if "fingerprint" not in about or not tables.keys() >= {"bits", "kept"}:
            raise lost
        _refuse_another_store(store, str(about["fingerprint"]))
        weights = None
        if "weight" in tables:
            weights = tables["weight"][np.isfinite(tables["weight"])]
        found = cls(tables["bits"], store.rows_per_shard, store.fingerprint, weights)
        whole = weights is None or len(weights) == len(found)
        if not whole or not np.array_equal(found.counts, tables["kept"]):
            raise lost
        return found


def _ordered_weights(ids: NDArray[np.int64], weights: ArrayLike) -> NDArray[np.float32]:
    """Return one weight per id, by ascending id."""
    values = np.asarray(real("weights", weights), dtype=np.float32)
    if values.shape != ids.shape:
        raise ValueError(f"weights must have shape {ids.shape}, as ids, got {values.shape}")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(
            f"weights must be finite and above 0, got {values[bad[0]]} for sample id "
            f"{ids[bad[0]]}; leave out what is not to be trained on"
        )
    unique, first = np.unique(ids, return_index=True)
    if len(unique) < len(ids):
        raise ValueError(f"ids must come once with weights, got {len(ids) - len(unique)} again")
    return values[first]


def _refuse_another_store(store: Store, fingerprint: str) -> None:
    if fingerprint != store.fingerprint:
        raise StoreMismatchError(
            "the keep set was made from another shard index\n"
            f"  keep set: {fingerprint}\n  store:    {store.fingerprint}\n"
            "select again from this store"
        )


def keep_set_of(store: Store, keep_set: KeepSet | str | None = None, **selection: Any) -> KeepSet:
    """Return a keep set that was made before, also an empty one, or select one.

    Args:
        store: An open store.
        keep_set: Of that store, the name of a stored one, or None.
        **selection: The arguments of `select`, for None.

    Raises:
        MissingScoreError: If no keep set of that name is stored.
        StoreMismatchError: If the keep set is another store's.
        TypeError: If both are given, or `keep_set` is neither.
    """
    if keep_set is None:
        return select(store, **selection)
    refuse_selection("keep_set", selection)
    if isinstance(keep_set, str):
        return KeepSet.load(store, keep_set)
    if not isinstance(keep_set, KeepSet):
        raise TypeError(
            "keep_set must be a KeepSet or the name of a stored one, got "
            f"{type(keep_set).__name__}; make one of sample ids: KeepSet.from_ids(store, ids)"
        )
    _refuse_another_store(store, keep_set.fingerprint)
    return keep_set


def refuse_selection(beside: str, selection: dict[str, Any]) -> None:
    """Raise TypeError if arguments of `select` stand beside what selects in their place."""
    usual = {"keep_fraction": 1.0, "score": None, "rule": "top", "keep_set": None}
    given = [name for name in selection if selection[name] != usual.get(name, ...)]
    given = [name for name in given if name not in ("seed", "progress")]  # of the order too
    if given:
        raise TypeError(f"{', '.join(given)} must come without {beside}, got both")


def select(
    store: Store,
    *,
    keep_fraction: float | None = None,
    score: str | None = None,
    rule: str = "top",
    seed: int = 0,
    threshold: float | None = None,
    embedding: str | None = None,
    drop_missing: bool = False,
    class_floor: int = 0,
    hard_cutoff: float | None = None,
    difficulty: str | None = None,
    bins: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KeepSet:
    """Return the keep set that a rule chooses.

    Where the score is a prediction that is not shown to beat chance at the keep fraction, a warning
    says so.

    Args:
        store: An open store.
        keep_fraction: In `(0, 1]`, of all samples; not used by `threshold`.
        score: Name of a stored score; not used by `moderate`, nor by `random` unless
            `drop_missing` asks which samples have one.
        rule: `top`; `random`; `class_balanced` (the top of every class); `ccs` (a draw from every
            range of the score); `stratified`: one of these two, by classes unless `hard_cutoff`
            asks for strata of the score or no sample has a label; `beta` (DUAL's draw, which moves
            to easy samples as less is kept: `keep_beta`); `moderate` (Moderate-DS, needs embeddings
            and labels); `threshold` (scores at or above `threshold`).
        seed: For `random`, `ccs` and `beta`.
        threshold: For `threshold`.
        embedding: For `moderate`; may be left out when the store has just one.
        drop_missing: Leave samples without a score (or embedding) out instead of refusing; none
            of them is ever kept.
        class_floor: For strata of classes: the fewest samples that a class keeps.
        hard_cutoff: For strata of scores: share of the samples, in `[0, 1)`, to drop first as too
            hard; 0 by default.
        difficulty: For strata of scores: name of the stored score that the cut goes by, high is
            hard; `score` itself by default. For `beta` the stored confidence.
        bins: For strata of scores: 50 by default.
        progress: For `moderate`: called with (classes done, classes in all).

    Raises:
        MissingScoreError: If a score is absent or NaN for any sample, or labels are missing.
        ValueError: If an argument is out of range or belongs to another rule.
    """
    keep = selected(
        store,
        rule=rule,
        progress=progress,
        keep_fraction=keep_fraction,
        score=score,
        seed=seed,
        threshold=threshold,
        embedding=embedding,
        drop_missing=drop_missing,
        class_floor=class_floor,
        hard_cutoff=hard_cutoff,
        difficulty=difficulty,
        bins=bins,
    )
    chosen = {"rule": rule, "score": score, "keep_fraction": keep_fraction}
    if doubted := doubt_of(store, chosen):
        _LOG.warning("score %r: %s", score, doubted)
    return keep


def selected(
    store: Store,
    *,
    rule: str = "top",
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> KeepSet:
    """Return what `select` does, without its warning."""
    refuse_path(store)
    rows = chosen_rows(store, rule, Asked(**asked), progress)
    return KeepSet.from_ids(store, store.ids()[rows])


def doubt_of(store: Store, rule: Mapping[str, Any]) -> str | None:
    """Return the warning about the score that a rule goes by, None where there is none.

    Args:
        store: Open.
        rule: Arguments of `select`.
    """
    score, keep_fraction = rule.get("score"), rule.get("keep_fraction")
    if rule.get("rule") == "random":  # of the score it asks no more than which samples have one
        return None
    if score is None or keep_fraction is None or not store.has_score(score):
        return None
    return doubt_of_score(store.provenance(score), keep_fraction)
