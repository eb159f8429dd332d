"""The scores of a store: begun, filled shard by shard, listed when they are whole."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from shardsieve._errors import MissingScoreError, StoreMismatchError
from shardsieve._version import __version__
from shardsieve.scores.inputs import real
from shardsieve.store.alone import in_turn
from shardsieve.store.arrays import StoreArrays
from shardsieve.store.contents import unlist, write_contents
from shardsieve.store.layout import (
    checked_name,
    make_array,
    pad,
    stamp,
    told_about_disk,
    unpad,
)

# What holds of every stored score, of which nothing else is said.
_UNSAID = {"definition": "user", "orientation": "higher is kept first"}
_MOST_LISTED = 12  # scores in an error


class StoredScores(StoreArrays):
    """What a store holds of its scores; a base of `Store`."""

    @property
    def scores(self) -> list[str]:
        """Names of the stored scores; one whose writing was cut short is not among them."""
        return [name for name in self._names("score") if "date" in self.provenance(name)]

    def has_score(self, name: str) -> bool:
        """Return whether a score is stored; see `scores`."""
        return self._has(f"score/{name}") and "date" in self.provenance(name)

    def put_score(
        self, name: str, values: ArrayLike, *, provenance: Mapping[str, Any] | None = None
    ) -> None:
        """Store one score per sample, aligned with `ids()`; NaN means not scored.

        Processes that store one name at once do it one after the other, and the last one's stays;
        in an object store nobody waits.

        Args:
            name: Letters, digits, `_`, `-`, `.`; a stored score of that name is replaced only by
                the same definition.
            values: float (n,), higher is kept first; stored as float32.
            provenance: How it was made; stored with version, date and orientation.

        Raises:
            ValueError: If the shape differs from (n,), or a value is infinite as float32.
            StoreMismatchError: If the name stands for another definition.
        """
        with np.errstate(over="ignore"):  # the check below says so
            scores = np.asarray(real("values", values), dtype=np.float32)
        if scores.shape != (len(self),):
            raise ValueError(f"values must have shape ({len(self)},), got {scores.shape}")
        endless = np.flatnonzero(np.isinf(scores))
        if len(endless):
            raise ValueError(
                f"values must be finite as float32, or NaN where not scored, got an infinity for "
                f"sample id {self.ids()[endless[0]]} ({len(endless)} of {len(scores)})"
            )
        with in_turn(self.path):
            self.begin_score(name, provenance, afresh=True)
            self.write_score(name, scores)
            self.finish_score(name)

    def check_score(self, name: str, definition: str) -> None:
        """Refuse a name that `put_score` would refuse; writes nothing.

        Raises:
            ValueError: If it has other characters.
            StoreMismatchError: If it stands for another definition.
        """
        if self.has_score(checked_name(name)):
            old = self.provenance(name).get("definition")
            if old not in (None, definition):
                raise StoreMismatchError(
                    f"score {name!r} holds the definition {old!r}, got {definition!r}; "
                    "give the new score its own name"
                )

    def begin_score(
        self, name: str, provenance: Mapping[str, Any] | None = None, *, afresh: bool = False
    ) -> None:
        """Make the array of a score to fill shard by shard; see `put_score` and `score_array`.

        What an interrupted filling with the same provenance left is kept unless `afresh`. The
        score is not listed before `finish_score`.
        """
        made = {**_UNSAID, **json.loads(json.dumps(dict(provenance or {})))}
        made.pop("date", None)  # of another score: here it says that the values are all written
        self.check_score(name, made["definition"])
        if not afresh and self._has(f"score/{name}") and self.provenance(name) == made:
            return
        with told_about_disk(self.path), in_turn(self.path):
            unlist(self.group, f"score/{name}")
            shape = (self._stored_shards(), self.rows_per_shard)
            array = make_array(self.group, f"score/{name}", shape, "float32", np.nan)
            array.update_attributes(made)

    def score_array(self, name: str) -> zarr.Array[Any]:
        """Return the (S, L) float32 array of a score, listed or being filled."""
        return self._array(f"score/{name}")

    def unfinished_score(self, name: str) -> NDArray[np.float32]:
        """Return what a score that is being filled holds so far, in id order: float32 (n,)."""
        return unpad(self._read(f"score/{name}"), self.samples)

    def write_score(self, name: str, values: NDArray[np.float32]) -> None:
        """Write all values (n,) of a score that was begun."""
        table = pad(values, self.samples, self.rows_per_shard, np.nan)
        with told_about_disk(self.path):
            self.score_array(name)[: self.num_shards] = table

    def finish_score(self, name: str, **more: Any) -> None:
        """List a score that is filled, with version, date and what else is to be kept with it."""
        with told_about_disk(self.path), in_turn(self.path):
            made = {**more, "version": __version__, "date": stamp()}
            self._array(f"score/{name}").update_attributes(made)
            write_contents(self.group)

    def forget_score(self, name: str) -> None:
        """Delete a score, if it is there."""
        self._delete(f"score/{name}")

    def score(self, name: str) -> NDArray[np.float32]:
        """Return a stored score in id order: float32 (n,), NaN where not scored.

        Raises:
            MissingScoreError: If there is none of that name, naming those there are or the nearest.
        """
        if not self.has_score(name):
            raise self._unknown_score(name)
        return unpad(self._read(f"score/{name}"), self.samples)

    def provenance(self, name: str) -> dict[str, Any]:
        """Return how a score was made.

        Raises:
            MissingScoreError: If there is none of that name, naming those there are or the nearest.
        """
        if not self._has(f"score/{name}"):
            raise self._unknown_score(name)
        return dict(self._array(f"score/{name}").attrs)

    def _unknown_score(self, name: str) -> MissingScoreError:
        known = ", ".join(self.scores) or "none"
        if len(self.scores) > _MOST_LISTED:
            nearest = difflib.get_close_matches(str(name), self.scores, n=3, cutoff=0.0)
            known = f"{len(self.scores)}, such as {', '.join(nearest)}; `shardsieve info` has all"
        return MissingScoreError(
            f"score must be one of those in {self.path} ({known}), got {name!r}; "
            "run `shardsieve score` and `shardsieve extrapolate`, or put_score"
        )
