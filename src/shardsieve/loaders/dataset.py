"""`ShardDataset`: map-style access to samples by id, reading just their byte ranges."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from shardsieve._errors import CorruptShardError, ShardsieveError, UnreadableSampleError
from shardsieve.io.source import reader_of
from shardsieve.io.spans import Storage
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.planned import PlannedId
from shardsieve.loaders.shared import SharedIds
from shardsieve.plan import PADDING
from shardsieve.shards.tar import parse_sample, plain_fields
from shardsieve.store.store import Store

Sample = dict[str, Any]

_LOG = logging.getLogger("shardsieve")


class ShardDataset(Dataset[Any]):
    """Samples of a store by sample id.

    Without `decode` a sample is webdataset's raw dictionary (`__key__`, `__url__`, and bytes by
    suffix) with `__id__`, `__weight__` and, when `score` is given, `__score__`. With it, the sample
    is what `decode(dictionary)` returns.

    `__getitems__` reads a batch in file order, shard by shard, and returns it in the asked order;
    `PADDING` ids are left out, and with `on_error="skip"` samples that cannot be read.

    Attributes:
        ledger: What all workers of this loader read.
    """

    def __init__(
        self,
        store: Store,
        decode: Callable[[Sample], Any] | None = None,
        *,
        score: str | None = None,
        on_error: str = "raise",
        max_unreadable: int = 100,
        storage: Storage | None = None,
    ) -> None:
        """Open nothing yet: files are opened where they are read.

        Args:
            store: An open store.
            decode: Turns a raw dictionary into a sample.
            score: Name of a stored score for `__score__`.
            on_error: `raise`, or `skip` samples that cannot be read or decoded, with a warning.
            max_unreadable: Most samples to skip, over all workers of this loader.
            storage: What reading costs where the shards lie; by their kind when left out.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.store, self.decode = store, decode
        self._ranges = store.ranges
        self._keys: dict[int, list[str]] = {}
        self._suffixes = {suffix.encode(): suffix for suffix in store.members}
        self._scores = store.score(score) if score else None
        self.reader = reader_of(store.urls, storage)
        self.ledger = Ledger()
        self._skipped = SharedIds(max_unreadable if on_error == "skip" else 0)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def unreadable(self) -> list[int]:
        """Ids of the samples skipped so far, over all workers of this loader, ascending."""
        return self._skipped.ids()

    @property
    def total_dataset_length(self) -> int:
        """What Accelerate's `gather_for_metrics` trims by: the samples that the sampler gives."""
        planned = self.store.epoch_samples
        return len(self) if planned is None else planned

    def __getitem__(self, sample_id: int) -> Any:
        return self.__getitems__([sample_id])[0]

    def __getitems__(self, ids: Sequence[int]) -> list[Any]:
        """Return the samples of these ids, in this order.

        Raises:
            CorruptShardError: If a shard is not what was indexed.
            UnreadableSampleError: If `decode` fails, naming shard and key; with `on_error="skip"`
                once more than `max_unreadable` samples cannot be read.
        """
        samples = self.aligned([one for one in ids if one != PADDING])
        self.look_ahead(getattr(ids[0], "ahead", None) if len(ids) else None)
        if self.decode is not None:
            samples = [self._decoded(sample) for sample in samples]
        return [sample for sample in samples if sample is not None]

    def aligned(self, ids: Sequence[int]) -> list[Any]:
        """Return the raw samples of these ids, in this order; None for one that is skipped."""
        plan = self._planned(np.array(ids, dtype=np.int64))
        self._prefetch(plan)
        samples: list[Any] = [None] * len(ids)
        for shard, rows in plan.runs:
            self._fill(samples, shard, rows, plan.places, plan.ranges)
        self.ledger.add(self.reader.counts.take())
        self._add_ours(samples, plan.ids)
        _mark_repeated(samples, ids)
        return samples

    def look_ahead(self, ids: NDArray[np.int64] | None) -> None:
        """Begin to read a batch that will be asked for next, if there is one."""
        if ids is not None:
            self._prefetch(self._planned(ids[ids != PADDING]))

    def _planned(self, wanted: NDArray[np.int64]) -> "_Plan":
        shards, positions = np.divmod(wanted, self.store.rows_per_shard)
        ranges = self._ranges_of(wanted, shards, positions)
        return _Plan(wanted, ranges, positions.tolist(), list(_runs(shards, positions)))

    def _prefetch(self, plan: "_Plan") -> None:
        urls, ranges = self.store.urls, plan.ranges
        try:
            self.reader.prefetch((urls[s], [ranges[row] for row in rows]) for s, rows in plan.runs)
        except CorruptShardError as error:
            # Reading says which sample it was.
            _LOG.debug("not read ahead: %s", error)

    def _ranges_of(
        self, wanted: NDArray[np.int64], shards: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> list[tuple[int, int]]:
        known = (shards >= 0) & (shards < self.store.num_shards)
        ranges = self._ranges[np.where(known, shards, 0), positions]
        known &= ranges[:, 1] > 0
        if not known.all():
            raise IndexError(
                f"sample id must name a sample of {self.store.path}, got {wanted[~known][0]}"
            )
        return list(map(tuple, ranges.tolist()))

    def _fill(
        self,
        samples: list[Any],
        shard: int,
        rows: list[int],
        places: list[int],
        ranges: list[tuple[int, int]],
    ) -> None:
        """Put the samples of one shard into their rows."""
        url = self.store.urls[shard]
        if shard not in self._keys:
            self._keys[shard] = self.store.keys(shard)
        keys, suffixes = self._keys[shard], self._suffixes
        try:
            raws = self.reader.read_many(url, [ranges[row] for row in rows])
            for row, raw in zip(rows, raws, strict=True):
                key = keys[places[row]]
                fields = plain_fields(raw, key, suffixes)
                if fields is None:
                    samples[row] = parse_sample(raw, key, url)
                else:
                    samples[row] = {"__key__": key, "__url__": url, **fields}
        except CorruptShardError as error:
            if len(rows) == 1:
                self._skip(shard * self.store.rows_per_shard + places[rows[0]], error)
                return
            for row in rows:
                self._fill(samples, shard, [row], places, ranges)

    def _add_ours(self, samples: list[Any], wanted: NDArray[np.int64]) -> None:
        """Add id, weight and score to raw samples."""
        weights, scores = [1.0] * len(wanted), None
        if self._scores is not None or self.store.epoch_weights is not None:
            rows = self.store.rows(wanted)
            if self.store.epoch_weights is not None:
                weights = self.store.epoch_weights.numpy()[rows].tolist()
            if self._scores is not None:
                scores = self._scores[rows].tolist()
        for row, (sample, sample_id) in enumerate(zip(samples, wanted.tolist(), strict=True)):
            if sample is None:
                continue
            sample["__id__"], sample["__weight__"] = sample_id, weights[row]
            if scores is not None:
                sample["__score__"] = scores[row]

    def _skip(self, sample_id: int, error: ShardsieveError) -> None:
        if self._skipped.most == 0:
            raise error
        if not self._skipped.add(sample_id):
            raise UnreadableSampleError(
                f"more than {self._skipped.most} samples cannot be read, the last one: {error}"
            ) from error
        _LOG.warning("skipped: %s", error)

    def _decoded(self, sample: Any) -> Any:
        if sample is None or self.decode is None:
            return sample
        try:
            return self.decode(sample)
        except Exception as error:  # noqa: BLE001  # raised again, or counted
            found = UnreadableSampleError(
                f"cannot decode sample {sample['__key__']} of shard {sample['__url__']}: {error}"
            )
            found.__cause__ = error
            self._skip(int(sample["__id__"]), found)
            return None


class _Plan(NamedTuple):
    """The reads of one batch.

    Attributes:
        ids: int64 (b,), as asked.
        ranges: (offset, length) of each.
        places: Position within its shard of each.
        runs: (shard, rows of the batch in file order).
    """

    ids: NDArray[np.int64]
    ranges: list[tuple[int, int]]
    places: list[int]
    runs: list[tuple[int, list[int]]]


def _mark_repeated(samples: list[Any], ids: Sequence[int]) -> None:
    """Give weight 0 to samples that only fill up a batch."""
    for row, one in enumerate(ids):
        if type(one) is PlannedId and one.repeated and samples[row] is not None:
            samples[row]["__weight__"] = 0.0


def _runs(
    shards: NDArray[np.int64], positions: NDArray[np.int64]
) -> Iterator[tuple[int, list[int]]]:
    """Yield (shard, rows in file order) for every shard that the batch touches."""
    order = np.lexsort((positions, shards))
    ordered = shards[order]
    cuts = np.flatnonzero(np.diff(ordered)) + 1
    for rows in np.split(order, cuts):
        if len(rows):
            yield int(shards[rows[0]]), rows.tolist()
