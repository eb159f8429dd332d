"""`ShardDataset`: map-style access to samples by id, reading just their byte ranges."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from shardsieve._errors import CorruptShardError, ShardsieveError, UnreadableSampleError
from shardsieve.io.local import LocalReader
from shardsieve.loaders.shared import SharedIds
from shardsieve.plan import PADDING
from shardsieve.shards.tar import parse_sample
from shardsieve.store.store import Store

Sample = dict[str, Any]

_LOG = logging.getLogger("shardsieve")
_SKIPPED = object()


class ShardDataset(Dataset[Any]):
    """Samples of a store by sample id.

    Without `decode` a sample is webdataset's raw dictionary (`__key__`, `__url__`, and bytes by
    suffix) with `__id__`, `__weight__` and, when `score` is given, `__score__`. With it, the sample
    is what `decode(dictionary)` returns.

    `__getitems__` reads a batch in file order, shard by shard, and returns it in the asked order;
    `PADDING` ids are left out, and with `on_error="skip"` samples that cannot be read.
    """

    def __init__(
        self,
        store: Store,
        decode: Callable[[Sample], Any] | None = None,
        *,
        score: str | None = None,
        on_error: str = "raise",
        max_unreadable: int = 100,
    ) -> None:
        """Open nothing yet: files are opened where they are read.

        Args:
            store: An open store.
            decode: Turns a raw dictionary into a sample.
            score: Name of a stored score for `__score__`.
            on_error: `raise`, or `skip` samples that cannot be read or decoded, with a warning.
            max_unreadable: Most samples to skip, over all workers of this loader.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self.store, self.decode = store, decode
        self._ranges = store.ranges
        self._keys: dict[int, list[str]] = {}
        self._scores = store.score(score) if score else None
        self.reader = LocalReader()
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
        wanted = np.asarray([i for i in ids if i != PADDING], dtype=np.int64)
        shards, positions = np.divmod(wanted, self.store.rows_per_shard)
        order = np.lexsort((positions, shards))
        samples: list[Any] = [None] * len(wanted)
        for row in order.tolist():
            try:
                samples[row] = self._read(int(shards[row]), int(positions[row]))
            except (UnreadableSampleError, CorruptShardError) as error:
                self._skip(int(wanted[row]), error)
                samples[row] = _SKIPPED
        return [sample for sample in samples if sample is not _SKIPPED]

    def _skip(self, sample_id: int, error: ShardsieveError) -> None:
        if self._skipped.most == 0:
            raise error
        if not self._skipped.add(sample_id):
            raise UnreadableSampleError(
                f"more than {self._skipped.most} samples cannot be read, the last one: {error}"
            ) from error
        _LOG.warning("skipped: %s", error)

    def _read(self, shard: int, position: int) -> Any:
        url, sample_id = self.store.urls[shard], shard * self.store.rows_per_shard + position
        offset, length = self._ranges[shard, position].tolist()
        if length <= 0:
            raise IndexError(f"sample id must name a sample of {self.store.path}, got {sample_id}")
        if shard not in self._keys:
            self._keys[shard] = self.store.keys(shard)
        raw = self.reader.read(url, offset, length)
        sample = parse_sample(raw, self._keys[shard][position], url)
        sample["__id__"], sample["__weight__"] = sample_id, 1.0
        if self.store.epoch_weights is not None:
            row = int(self.store.rows([sample_id])[0])
            sample["__weight__"] = float(self.store.epoch_weights[row])
        if self._scores is not None:
            sample["__score__"] = float(self._scores[self.store.rows([sample_id])[0]])
        return self._decoded(sample) if self.decode else sample

    def _decoded(self, sample: Sample) -> Any:
        assert self.decode is not None
        try:
            return self.decode(sample)
        except Exception as error:
            raise UnreadableSampleError(
                f"cannot decode sample {sample['__key__']} of shard {sample['__url__']}: {error}"
            ) from error
