"""The keep set of a store: which samples survive, packed to one bit per slot."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.selection import (
    keep_moderate,
    keep_random,
    keep_stratified,
    keep_top,
    num_kept,
)
from shardsieve.store.store import Store

RULES = ("top", "random", "stratified", "moderate", "threshold")


@dataclass(frozen=True)
class KeepSet:
    """Kept samples of a data set.

    Attributes:
        bits: uint8 (S, ceil(L / 8)), bit p of row s says whether that sample is kept.
        rows_per_shard: L.
        fingerprint: The shard index that the ids belong to.
    """

    bits: NDArray[np.uint8]
    rows_per_shard: int
    fingerprint: str

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Kept samples per shard, int64 (S,)."""
        per_row: NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return per_row

    def __len__(self) -> int:
        return int(self.counts.sum())

    def positions(self, shard: int) -> NDArray[np.int64]:
        """Return the kept positions of one shard, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits[shard])).astype(np.int64)

    def ids(self) -> NDArray[np.int64]:
        """Return the kept sample ids, ascending: int64 (kept,)."""
        shard, position = np.nonzero(np.unpackbits(self.bits, axis=1))
        return (shard * self.rows_per_shard + position).astype(np.int64)

    def ids_at(self, shard: NDArray[np.int64], ordinal: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of these kept samples, counted within their shards: int64, same shape."""
        position = np.empty_like(ordinal)
        for one in np.unique(shard):
            rows = shard == one
            position[rows] = self.positions(int(one))[ordinal[rows]]
        return shard * self.rows_per_shard + position

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the kept ids."""
        return hashlib.blake2b(self.bits.tobytes(), digest_size=8).hexdigest()

    def nbytes(self, store: Store) -> int:
        """Return the bytes of the kept samples in the shards, headers and padding included."""
        shard, position = np.divmod(self.ids(), self.rows_per_shard)
        return int(store.ranges[shard, position, 1].sum())

    @classmethod
    def from_ids(cls, store: Store, ids: NDArray[np.int64]) -> "KeepSet":
        """Return the keep set of these ids of a store."""
        store.rows(ids)
        mask = np.zeros((store.num_shards, store.rows_per_shard), dtype=bool)
        mask[np.divmod(np.asarray(ids, dtype=np.int64), store.rows_per_shard)] = True
        return cls(np.packbits(mask, axis=1), store.rows_per_shard, store.fingerprint)


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
) -> KeepSet:
    """Return the keep set that a rule chooses.

    Args:
        store: An open store.
        keep_fraction: In `(0, 1]`; not used by `threshold`.
        score: Name of a stored score; not used by `random` and `moderate`.
        rule: `top`; `random`; `stratified` (class-balanced top); `moderate` (Moderate-DS, needs
            embeddings and labels); `threshold` (scores at or above `threshold`).
        seed: For `random`.
        threshold: For `threshold`.
        drop_missing: Treat samples without a score as the lowest instead of refusing; none of
            them is ever kept.
        embedding: For `moderate`; may be left out when the store has just one.

    Raises:
        MissingScoreError: If a score is absent or NaN for any sample, or labels are missing.
        ValueError: If an argument is out of range.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if rule == "threshold":
        rows = _above(_scores(store, score, drop_missing), threshold)
    else:
        if keep_fraction is None:
            raise ValueError(f"keep_fraction must be given for rule {rule!r}, got None")
        num_kept(len(store), keep_fraction)
        if rule == "random" or (score is None and keep_fraction == 1):
            rows = keep_random(len(store), keep_fraction, seed=seed)
        elif rule == "moderate":
            rows = keep_moderate(_embedding(store, embedding), store.labels(), keep_fraction)
        elif rule == "stratified":
            rows = keep_stratified(
                _scores(store, score, drop_missing), store.labels(), keep_fraction
            )
        else:
            rows = keep_top(_scores(store, score, drop_missing), keep_fraction)
    if drop_missing and score is not None:
        _refuse_unscored(store, score, rows)
    return KeepSet.from_ids(store, store.ids()[rows])


def _scores(store: Store, name: str | None, drop_missing: bool) -> NDArray[np.float32]:
    if name is None:
        known = ", ".join(store.scores) or "none yet"
        raise MissingScoreError(f"score must name a stored score ({known}), got None")
    values = store.score(name)
    missing = np.flatnonzero(~np.isfinite(values))
    if len(missing) and drop_missing:
        return np.where(np.isfinite(values), values, np.finfo(np.float32).min)
    if len(missing):
        raise MissingScoreError(
            f"score {name!r} must be finite, got {values[missing[0]]} for sample id "
            f"{store.ids()[missing[0]]} ({len(missing)} of {len(values)} are not scored); "
            "run `shardsieve extrapolate` first, or drop them with drop_missing"
        )
    return values


def _refuse_unscored(store: Store, name: str, rows: NDArray[np.int64]) -> None:
    scored = np.isfinite(store.score(name))
    if not scored[rows].all():
        raise MissingScoreError(
            f"keep_fraction must not ask for more than the {int(scored.sum())} samples with a "
            f"score {name!r}, got {len(rows)}; keep less or extrapolate first"
        )


def _above(values: NDArray[np.float32], threshold: float | None) -> NDArray[np.int64]:
    if threshold is None:
        raise ValueError("threshold must be given for rule 'threshold', got None")
    return np.flatnonzero(values >= threshold)


def _embedding(store: Store, name: str | None) -> NDArray[np.float16]:
    names = store.embeddings
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        known = ", ".join(names) or "none yet; run `shardsieve embed`"
        raise MissingScoreError(f"embedding must be one of those stored ({known}), got {name!r}")
    return store.embedding(name)
