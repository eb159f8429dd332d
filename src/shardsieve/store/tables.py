"""Arrays of a store beside its index: embeddings, signals and pseudo-labels by shard."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingScoreError, StoreMismatchError
from shardsieve._version import __version__
from shardsieve.scores.inputs import plain
from shardsieve.store.alone import in_turn
from shardsieve.store.arrays import StoreArrays
from shardsieve.store.contents import unlist, write_contents
from shardsieve.store.damage import CHECKED, read_part
from shardsieve.store.layout import (
    checked_name,
    pad,
    read_used,
    stamp,
    told_about_disk,
    unpad,
)
from shardsieve.store.rows import StoredRows


class SampleTables(StoreArrays):
    """What a store holds about its samples besides index and scores; a base of `Store`."""

    # Embeddings -----------------------------------------------------------------------------

    @property
    def embeddings(self) -> list[str]:
        """Names of the stored embeddings."""
        return self._names("embedding")

    def embedding_name(self, name: str | None) -> str:
        """Return the name of a stored embedding; None stands for the only one.

        Raises:
            MissingScoreError: If there is no such embedding, or not just one.
        """
        names = self.embeddings
        if name is None and len(names) == 1:
            return names[0]
        if name is None or name not in names:
            known = ", ".join(names) or "none yet; run `shardsieve embed`"
            raise MissingScoreError(
                f"embedding must be one of those stored ({known}), got {name!r}"
            )
        return name

    def embedding_array(self, name: str, dim: int | None = None) -> zarr.Array[Any]:
        """Return the (S, L, D) float16 array, created when `dim` is given and it is absent."""
        if dim is not None and name not in self.embeddings:
            return self._new_array(f"embedding/{checked_name(name)}", (dim,), "float16")
        return self._array(f"embedding/{name}")

    def embedding(self, name: str) -> NDArray[np.float16]:
        """Return all embeddings in id order: float16 (n, d)."""
        return read_used(self.embedding_array(name), self.samples)

    def embedding_rows(self, name: str) -> StoredRows:
        """Return the embeddings as rows in id order, float16 (n, d), of which no copy is held."""
        return StoredRows(self.embedding_array(name), self.samples)

    def forget_embedding(self, name: str) -> None:
        """Delete an embedding and its signals, if they are there."""
        self._delete(f"signal/{name}")
        self._delete(f"embedding/{name}")

    # Signals --------------------------------------------------------------------------------

    @property
    def signal_tables(self) -> list[str]:
        """Names of the stored signals: what a network says about every sample."""
        return self._names("signal")

    def signal_array(
        self, name: str, networks: int = 0, signals: tuple[str, ...] = ()
    ) -> zarr.Array[Any]:
        """Return the (S, L, K, F) float32 array; created when it is absent and K is given.

        Args:
            name: As of the embedding made in the same pass.
            networks: K, such as one network at several epochs.
            signals: The F names, kept in the attribute `signals`.
        """
        if networks and name not in self.signal_tables:
            self._new_array(f"signal/{name}", (networks, len(signals)), "float32")
        array = self._array(f"signal/{name}")
        if networks and "signals" not in array.attrs:  # new, or killed before they were named
            with told_about_disk(self.path):
                array.attrs["signals"] = list(signals)
        return array

    def signals(self, name: str) -> NDArray[np.float32]:
        """Return all signals in id order: float32 (n, K, F); NaN where there is no label."""
        return read_used(self.signal_array(name), self.samples)

    # Pseudo-labels --------------------------------------------------------------------------

    @property
    def pseudo_label_sets(self) -> list[str]:
        """Names of the stored pseudo-labels; those whose writing was cut short are not listed."""
        names = self._names("pseudo_label")
        return [name for name in names if "date" in self._array(f"pseudo_label/{name}").attrs]

    def put_pseudo_labels(
        self, name: str, labels: ArrayLike, *, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Store one class per sample to train on in place of its label; see `TrainConfig`.

        Args:
            name: As of a score; stored pseudo-labels are replaced by those of the same making only.
            labels: int (n,), aligned with `ids()`, at least 0; -1 where there is none.
            provenance: How they were made, JSON-ready; stored with the date.

        Raises:
            ValueError: If shape or type differ, or a class is below -1 or takes more than 31 bits.
            StoreMismatchError: If the name holds others.
        """
        values = np.asarray(plain(labels))
        if values.shape != (len(self),) or values.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers of shape ({len(self)},), got {values.dtype} "
                f"{values.shape}"
            )
        if len(values) and not -1 <= values.min() <= values.max() < 2**31:
            raise ValueError(
                f"labels must lie in [-1, {2**31}), got {values.min()} to {values.max()}"
            )
        table = pad(values.astype(np.int32), self.samples, self.rows_per_shard, -1)
        with told_about_disk(self.path), in_turn(self.path):
            made = self.refuse_other_pseudo_labels(name, provenance or {})
            array = self._new_array(f"pseudo_label/{name}", (), "int32", -1)
            array[: len(table)] = table
            array.update_attributes({**made, "date": stamp()})
            write_contents(self.group)

    def refuse_other_pseudo_labels(self, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return how pseudo-labels are made, as stored; none of another making hold the name.

        Raises:
            StoreMismatchError: If others do.
        """
        stored: dict[str, Any] = json.loads(json.dumps(dict(made)))
        held = checked_name(name) in self.pseudo_label_sets
        if held and self.pseudo_label_making(name) != stored:
            raise StoreMismatchError(
                f"pseudo-labels {name!r} of {self.path} were made otherwise; choose another name"
            )
        return stored

    def pseudo_labels(self, name: str) -> NDArray[np.int64]:
        """Return stored pseudo-labels in id order, int64 (n,); -1 where there is none.

        Raises:
            MissingScoreError: If there are none of that name, listing those there are.
        """
        if name not in self.pseudo_label_sets:
            known = ", ".join(self.pseudo_label_sets) or "none"
            raise MissingScoreError(
                f"pseudo-labels must be among those in {self.path} ({known}), got {name!r}; run "
                "`shardsieve score --paradigm unsupervised`, or put_pseudo_labels"
            )
        return unpad(self._read(f"pseudo_label/{name}"), self.samples).astype(np.int64)

    def pseudo_label_making(self, name: str) -> dict[str, Any]:
        """Return how pseudo-labels were made, without the date."""
        made = dict(self._array(f"pseudo_label/{name}").attrs)
        made.pop("date", None)
        return made

    def forget_pseudo_labels(self, name: str) -> None:
        """Delete pseudo-labels, if they are there."""
        self._delete(f"pseudo_label/{name}")

    # Keep sets ------------------------------------------------------------------------------

    @property
    def keep_sets(self) -> list[str]:
        """Names of the stored keep sets; those whose writing was cut short are not listed."""
        return self._groups("keep")

    def put_keep_tables(
        self, name: str, tables: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
    ) -> None:
        """Store the tables of a keep set, one row per shard each; see `KeepSet.save`."""
        with told_about_disk(self.path), in_turn(self.path):
            unlist(self.group, f"keep/{checked_name(name)}")
            group = self.group.require_group("keep").create_group(name, overwrite=True)
            for one, table in tables.items():
                chunks = (1, *table.shape[1:]) if table.ndim > 1 else table.shape
                group.create_array(one, data=table, chunks=chunks, compressors=CHECKED)
            group.update_attributes({**about, "version": __version__, "date": stamp()})
            write_contents(self.group)

    def keep_tables(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the tables of a stored keep set; see `KeepSet.load`."""
        group = self.group[f"keep/{name}"]
        assert isinstance(group, zarr.Group)
        return {one: read_part(array) for one, array in group.arrays()}

    def keep_provenance(self, name: str) -> dict[str, Any]:
        """Return how a stored keep set was chosen.

        Raises:
            MissingScoreError: If there is none of that name, listing those there are.
        """
        if name not in self.keep_sets:
            known = ", ".join(self.keep_sets) or "none"
            raise MissingScoreError(
                f"keep_set must be among those in {self.path} ({known}), got {name!r}; run "
                "`shardsieve select --save NAME`, or KeepSet.save"
            )
        return dict(self.group[f"keep/{name}"].attrs)

    def forget_keep_set(self, name: str) -> None:
        """Delete a stored keep set, if it is there."""
        self._delete(f"keep/{name}")

    # Dynamics -------------------------------------------------------------------------------

    @property
    def dynamics(self) -> list[str]:
        """Names of the runs whose training dynamics are stored; see `Recorder`."""
        return self._groups("dynamics")
