"""`ShardDataset`: map-style access to samples by id, reading just their byte ranges."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from shardsieve._errors import CorruptShardError, ShardsieveError, UnreadableSampleError
from shardsieve.io.clients import is_remote
from shardsieve.io.local import too_short, unreadable
from shardsieve.io.source import reader_of
from shardsieve.io.spans import Storage
from shardsieve.loaders.asking import caller_of, planned_samples
from shardsieve.loaders.batches import BatchPlan, plan_batch
from shardsieve.loaders.ledger import Ledger
from shardsieve.loaders.planned import PlannedId
from shardsieve.loaders.shared import SharedIds
from shardsieve.plan import PADDING
from shardsieve.scores.inputs import integers, whole_number
from shardsieve.shards.beton import read_beton
from shardsieve.shards.beton_fields import BetonFields
from shardsieve.shards.fields import fill_plain, members_of, parse_sample, plain_fields
from shardsieve.store.create_beton import label_field_of
from shardsieve.store.store import Store, refuse_path

Sample = dict[str, Any]

_LOG = logging.getLogger("shardsieve")
_LEAVE_OUT = "mend it, or leave such samples out: --max-unreadable, or on_error='skip'"

# What a sample carries where nothing says otherwise.
_PLAIN = {"__weight__": 1.0, "__score__": float("nan")}


class ShardDataset(Dataset[Any]):
    """Samples of a store by sample id.

    Without `decode` a sample is webdataset's raw dictionary (`__key__`, `__url__`, of a local tar
    `__local_path__`, and bytes by suffix) with `__id__`, `__weight__` (1 unless a policy or keep
    set says otherwise) and `__score__` (NaN unless `score` or a `PrunedShardSampler` names one).
    With it, the sample is what `decode(dictionary)` returns.

    `__getitems__` reads a batch in file order, shard by shard, and returns it in the asked order;
    `PADDING` ids are left out, and with `on_error="skip"` samples that cannot be read.

    Attributes:
        ledger: What all workers of this loader read.
        with_raw: Whether raw samples carry their part of the shard as `__raw__`.
    """

    with_raw: bool = False

    def __init__(
        self,
        store: Store,
        decode: Callable[[Sample], Any] | None = None,
        *,
        score: str | None = None,
        on_error: str = "raise",
        max_unreadable: int = 100,
        labels: ArrayLike | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Open nothing yet: files are opened where they are read.

        Args:
            store: An open store.
            decode: Turns a raw dictionary into a sample, which is anything but None.
            score: Name of a stored score for `__score__`; the sampler's, if left out.
            on_error: `raise`, or `skip` samples that cannot be read or decoded, with a warning.
            max_unreadable: Most samples to skip, over all workers of this loader.
            labels: int64 (n,), aligned with `store.ids()`, such as `store.pseudo_labels(NAME)`, for
                `__label__`; None adds none.
            storage: What reading costs where the shards lie; by their kind when left out.
        """
        refuse_path(store)
        whole_number("max_unreadable", max_unreadable, 0)
        if decode is not None and not callable(decode):
            raise TypeError(f"decode must be a function of a raw dictionary, got {decode!r}")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if storage is not None and not isinstance(storage, Storage):
            raise TypeError(
                f"storage must be a Storage(latency, bandwidth, in_flight), got {storage!r}; leave "
                "it out for what the shards lie on"
            )
        labels = None if labels is None else integers("labels", labels)
        if labels is not None and labels.shape != (len(store),):
            raise ValueError(f"labels must have shape ({len(store)},), got {labels.shape}")
        self.store, self.decode = store, decode
        self._ranges = store.ranges
        # Of a store among objects all at once, and here: every worker would ask in every epoch.
        known = store.keys_by_shard() if is_remote(store.path) else ()
        self._keys = dict(enumerate(map(_encoded, known)))
        self._members = members_of(dict.fromkeys(store.members))
        self._beton: BetonFields | None = None
        self._suffixes = {suffix.encode(): suffix for suffix in store.members}
        self._columns: dict[str, NDArray[Any]] = {}
        self._columns |= {"__score__": store.score(score)} if score is not None else {}
        self._columns |= {"__label__": labels} if labels is not None else {}
        self.reader = reader_of(store.places, storage, marks=store.marks())
        self.ledger = Ledger()
        self._skipped = SharedIds(max_unreadable if on_error == "skip" else 0)

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"ShardDataset({self.store!r})"

    @property
    def unreadable(self) -> list[int]:
        """Ids of the samples skipped so far, over all workers of this loader, ascending."""
        return self._skipped.ids()

    @property
    def total_dataset_length(self) -> int:
        """What `gather_for_metrics` trims by: what the asking loader's sampler gives."""
        planned = planned_samples(caller_of())
        return len(self) if planned is None else planned

    def __iter__(self) -> Iterator[Any]:
        """Yield every sample, by ascending id: ids have gaps, at which Python would stop."""
        return map(self.__getitem__, self.store.ids().tolist())

    def __getitem__(self, sample_id: int | list[int]) -> Any:
        """Return a sample; the samples of a list, as a loader asks whose sampler gives batches."""
        if isinstance(sample_id, list):
            return self.__getitems__(sample_id)
        if sample_id == PADDING:
            raise IndexError(f"{PADDING} fills up batches and stands for no sample")
        return self.__getitems__([sample_id])[0]

    def __getitems__(self, ids: Sequence[int]) -> list[Any]:
        """Return the samples of these ids, in this order.

        Raises:
            CorruptShardError: If a shard is not what was indexed.
            IndexError: If an id belongs to no sample.
            ValueError: If an id is no integer.
            UnreadableSampleError: If `decode` fails, naming shard and key; with `on_error="skip"`
                once more than `max_unreadable` samples cannot be read.
        """
        wanted = [one for one in ids if one != PADDING]
        samples = self.aligned(wanted)
        self.look_ahead(getattr(ids[0], "ahead", None) if len(ids) else None)
        if self.decode is not None:
            samples = [self._decoded(sample) for sample in samples]
        samples = [sample for sample in samples if sample is not None]
        # A batch of nothing would end this rank's loop while the others wait for it.
        return samples or [self._stand_in(one) for one in wanted[:1]]

    def aligned(self, ids: Sequence[int]) -> list[Any]:
        """Return the raw samples of these ids, in this order; None for one that is skipped."""
        plan = plan_batch(self.store, self._ranges, integers("sample ids", ids))
        self._prefetch(plan)
        samples: list[Any] = [None] * len(ids)
        for shard, begin, end in plan.runs:
            while begin < end:
                begin = self._fill(samples, plan, shard, begin, end)
        self.ledger.add(self.reader.counts.take())
        self._add_columns(samples, ids)
        for row, one in enumerate(ids):
            if type(one) is PlannedId and samples[row] is not None:
                samples[row]["__weight__"] = one.weight
        return samples

    def look_ahead(self, ids: NDArray[np.int64] | None) -> None:
        """Begin to read a batch that will be asked for next, if there is one."""
        if ids is not None:
            self._prefetch(plan_batch(self.store, self._ranges, ids[ids != PADDING]))

    def _prefetch(self, plan: BatchPlan) -> None:
        urls, ranges = self.store.places, plan.ranges
        try:
            self.reader.prefetch((urls[s], ranges[begin:end]) for s, begin, end in plan.runs)
        except CorruptShardError as error:
            # Reading says which sample it was.
            _LOG.debug("not read ahead: %s", error)

    def _fill(self, samples: list[Any], plan: BatchPlan, shard: int, begin: int, end: int) -> int:
        """Put the samples of one shard into their rows; return where to go on.

        That is the end, or behind a sample that was skipped.
        """
        part, url = slice(begin, end), self.store.places[shard]
        keys = self._keys_of(shard)[plan.places[part]].tolist()
        beton = self._beton_fields() if self.store.kind == "ffcv" else None
        # A copy of a dictionary with all names in it is made faster than one that grows.
        blank = self._blank(url)
        try:
            ranges = plan.ranges[part]
            raws = self.reader.read_many(url, ranges)
            for row, sample_id, key, where, raw in zip(
                plan.rows[part], plan.ids[part], keys, ranges, raws, strict=True
            ):
                sample = blank.copy()
                sample["__key__"] = key.decode("utf-8", "surrogateescape")
                if beton is not None:
                    sample |= _whole(beton, sample_id, raw, url, where)
                elif not fill_plain(sample, raw, key, self._members):
                    sample = self._parsed(raw, sample["__key__"], url, where)
                    blank = self._blank(url)
                sample["__id__"] = sample_id
                if self.with_raw:
                    sample["__raw__"] = raw
                samples[row] = sample
        except (CorruptShardError, OSError) as error:
            # What came before it is right; what comes after is read on its own.
            begin = next(at for at in range(begin, end) if samples[plan.rows[at]] is None)
            key, where = keys[begin - part.start], plan.ranges[begin]
            self._skip(plan.ids[begin], _named(error, url, key, where))
            return begin + 1
        return end

    def _blank(self, url: str) -> Sample:
        fields = [] if self.store.kind == "ffcv" else [suffix for suffix, _ in self._members]
        return {
            "__key__": "",
            **self._whence(url),
            **dict.fromkeys(fields),
            "__id__": -1,
            **_PLAIN,
        }

    def _parsed(self, raw: bytes, key: str, url: str, where: tuple[int, int]) -> Sample:
        """Return a sample that is not laid out like the last one, and learn its layout."""
        if len(raw) < where[1]:
            raise too_short(url, sum(where))
        fields = plain_fields(raw, key, self._suffixes)
        if fields is None:
            return {**parse_sample(raw, key, url), **self._whence(url), **_PLAIN}
        self._members = members_of(fields)
        return {"__key__": key, **self._whence(url), **fields, **_PLAIN}

    def _whence(self, url: str) -> dict[str, str]:
        if self.store.kind == "ffcv" or is_remote(url):
            return {"__url__": url}
        return {"__url__": url, "__local_path__": url}

    def _beton_fields(self) -> BetonFields:
        """Return what cuts an FFCV file's samples; its tables are read once per process."""
        if self._beton is None:
            beton = read_beton(self.store.places[0])
            self._beton = BetonFields(beton, label=label_field_of(self.store, beton), raw="ppm")
        return self._beton

    def _keys_of(self, shard: int) -> NDArray[np.bytes_]:
        """Return a shard's keys, encoded: bytes need no object each while they wait."""
        if shard not in self._keys:
            self._keys[shard] = _encoded(self.store.keys(shard))
        return self._keys[shard]

    def _add_columns(self, samples: list[Any], ids: Sequence[int]) -> None:
        """Add score and label to raw samples."""
        columns, scores = self._columns, self._scores_of_sampler(ids)
        if scores is not None:
            columns = {"__score__": scores, **columns}
        if not columns:
            return
        rows = self.store.rows(ids)
        for name, values in columns.items():
            for sample, value in zip(samples, values[rows].tolist(), strict=True):
                if sample is not None:
                    sample[name] = value

    def _scores_of_sampler(self, ids: Sequence[int]) -> NDArray[np.float32] | None:
        """Return the score that a batch names, or else the only one that a sampler selects by."""
        known = self.store.sample_scores
        named = next((one.score for one in ids if type(one) is PlannedId and one.score), None)
        if named is None and len(known) == 1:
            (named,) = known
        return None if named is None else known.get(named)

    def _stand_in(self, sample_id: int) -> Any:
        """Return, with weight 0, the next sample that can be read."""
        row, ids = int(self.store.rows([sample_id])[0]), self.store.ids()
        for other in np.roll(ids, -row - 1)[: self._skipped.most].tolist():
            sample = self._decoded(*self.aligned([PlannedId(other, weight=0.0)]))
            if sample is not None:
                return sample
        raise UnreadableSampleError(
            f"none of a whole batch can be read, nor any sample that comes after {sample_id}; "
            "check the shards"
        )

    def _skip(self, sample_id: int, error: ShardsieveError) -> None:
        if self._skipped.most == 0:
            raise error
        met_before = sample_id in self.unreadable
        if not self._skipped.add(sample_id):
            raise UnreadableSampleError(
                f"more than {self._skipped.most} samples cannot be read, the last one: {error}; "
                "mend the shards, or raise max_unreadable"
            ) from error
        if not met_before:
            _LOG.warning("skipped: %s", error)

    def _decoded(self, sample: Any) -> Any:
        if sample is None or self.decode is None:
            return sample
        try:
            made = self.decode(sample)
            if made is None:
                raise ValueError("decode returned None, which is no sample")
            return made
        except Exception as error:  # noqa: BLE001  # raised again, or counted
            # The words of a KeyError are the key alone.
            cause = repr(error) if isinstance(error, KeyError) else error
            cure = "" if self._skipped.most else "; " + _LEAVE_OUT
            found = UnreadableSampleError(
                f"cannot decode sample {sample['__key__']} of shard {sample['__url__']}: "
                f"{cause}{cure}"
            )
            found.__cause__ = error
            self._skip(int(sample["__id__"]), found)
            return None


def _encoded(keys: list[str]) -> NDArray[np.bytes_]:
    return np.array([key.encode("utf-8", "surrogateescape") for key in keys])


def _whole(
    beton: BetonFields, row: int, raw: bytes, url: str, where: tuple[int, int]
) -> dict[str, bytes]:
    if len(raw) < where[1]:
        raise too_short(url, sum(where))
    return beton(row, raw, where[0])


def _named(
    error: CorruptShardError | OSError, url: str, key: bytes, where: tuple[int, int]
) -> CorruptShardError:
    """Return the error with the sample's key and range."""
    text = key.decode("utf-8", "replace")
    cause = unreadable(url, error) if isinstance(error, OSError) else error
    named = CorruptShardError(f"{cause} (sample {text}, bytes {where[0]}-{sum(where)})")
    named.__cause__ = error
    return named
