"""Predictions of all samples without a score, made by all ranks and written into the store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shardsieve.commands.filling import blocks_of, fill, sample_of
from shardsieve.commands.memorised import by_unseen_neighbours, memorised, some_of
from shardsieve.commands.methods import ON_SIGNALS, SEARCHING, Mask, Progress, Task, Values
from shardsieve.commands.progress import bar
from shardsieve.extrapolate.calibration import match_quantiles
from shardsieve.store.rows import StoredRows
from shardsieve.store.store import Store

Block = Callable[[int], Values]
"""Gives the known and predicted values of a shard."""


@dataclass(frozen=True)
class Prediction:
    """A score to make.

    Attributes:
        store: Open for writing.
        name: Of the score.
        task: How it is predicted.
        rows: Embeddings of all n samples.
        values: float32 (n,), the seeds' scores, NaN elsewhere.
        readable: bool (n,), samples that have an embedding.
        made: Provenance: `method`, `k`, `seed`, `seed_scores` and `matched_quantiles` say how.
    """

    store: Store
    name: str
    task: Task
    rows: StoredRows
    values: Values
    readable: Mask
    made: dict[str, Any]

    @cached_property
    def seeds(self) -> Mask:
        """Samples that have a score, and an embedding: bool (n,)."""
        return np.isfinite(self.values) & self.readable

    @cached_property
    def rest(self) -> Mask:
        """Samples that get a prediction: bool (n,)."""
        return ~np.isfinite(self.values) & self.readable

    def write(self, accelerator: Any) -> dict[str, Any]:
        """Fill the score, and return what was chosen for it; it is not listed yet.

        Every rank must call it, with the same.
        """
        main = accelerator.is_main_process
        if main:
            # Quantiles are matched over all predictions: half a filling is no use then.
            afresh = self._is_matched or not self._keeps_measured
            self.store.begin_score(self.name, self.made, afresh=afresh)
        accelerator.wait_for_everyone()
        with bar("train the graph network" if self._by_graph else "fit", shown=main) as progress:
            block, chosen = self._fitted(progress)
        shards = range(accelerator.process_index, self.store.num_shards, accelerator.num_processes)
        with bar("extrapolate", shown=main) as progress:
            fill(self.store, self.store.score_array(self.name), shards, block, progress=progress)
        accelerator.wait_for_everyone()
        return {**chosen, **self._compared()} if main else chosen

    # Inside ---------------------------------------------------------------------------------

    @property
    def _by_graph(self) -> bool:
        return bool(self.made["method"] == "gnn")

    @property
    def _by_signals(self) -> bool:
        return self.made["method"] in ON_SIGNALS

    @property
    def _is_matched(self) -> bool:
        return bool(self.made["matched_quantiles"])

    @property
    def _keeps_measured(self) -> bool:
        return bool(self.made["seed_scores"] == "measured")

    def _fitted(self, progress: Progress) -> tuple[Block, dict[str, Any]]:
        """Return what gives a shard's values, and what was chosen on the way."""
        more: dict[str, Any] = {"progress": progress} if self._by_graph else {}
        if self.task.joint:
            return self._at_once(**more), {}
        chosen: dict[str, Any] = {}
        model = self.task.fitted(self.rows, **more)
        if self.made["method"] in SEARCHING and self.rest.any():
            search = model.choose(sample_of(self.rows, self.rest), int(self.rest.sum()))
            chosen["found_by"] = search.to_dict()
        if self._by_signals:
            chosen["from_trained_seeds"] = model.lesson.to_dict() if model.lesson else None
        if not self._by_graph:
            progress(1, 1)
        return blocks_of(self.task, model, self.rows, self.values, self.rest), chosen

    def _at_once(self, **more: Any) -> Block:
        # Predictions of one graph depend on one another.
        known = self.values.copy()
        if self.rest.any():
            known[self.rest] = self.task.predict(self.rows, self.rest, **more)
        return blocks_of(self.task, None, self.rows, known, np.zeros_like(self.rest))

    def _compared(self) -> dict[str, Any]:
        """Match what was written, where that is asked for, and compare trained seeds with it."""
        if self._is_matched:
            found = self.store.unfinished_score(self.name)
            known = self.values[np.isfinite(self.values)]
            found[self.rest] = match_quantiles(found[self.rest], known)
            self.store.write_score(self.name, found)
        if not (self._by_signals and self.rest.any()):
            return {}
        with bar("compare seeds") as progress:
            progress(0, 1)
            compared = self._seeds_beside()
            progress(1, 1)
        return compared

    def _seeds_beside(self) -> dict[str, Any]:
        """Compare trained seeds with unseen samples like them, and score them by those if asked."""
        found, seed = self.store.unfinished_score(self.name), self.made["seed"]
        asked = some_of(self.seeds, seed) if self._keeps_measured else self.seeds
        near = by_unseen_neighbours(self.rows, found, asked, self.rest, k=self.made["k"], seed=seed)
        if not self._keeps_measured:
            found[self.seeds] = match_quantiles(near, found[self.rest])
            self.store.write_score(self.name, found)
        return memorised(self.values[asked], near, self.made, warn=self._keeps_measured)
