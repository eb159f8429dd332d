"""Predictions of a whole store: read and written shard by shard, shared out over ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shardsieve.commands.methods import Mask, Task, Values
from shardsieve.extrapolate.approximate import SAMPLE
from shardsieve.extrapolate.ranks import Ranks
from shardsieve.store.damage import read_part
from shardsieve.store.layout import told_about_disk
from shardsieve.store.rows import StoredRows
from shardsieve.store.store import Store


def ranks_of(accelerator: Any) -> Ranks:
    """Return this process' place among those of an `Accelerator`."""
    place, size = accelerator.process_index, accelerator.num_processes
    return Ranks(place, size, str(accelerator.device))


def readable_rows(rows: StoredRows, num_shards: int) -> Mask:
    """Return which samples have an embedding: bool (n,)."""
    found = [np.isfinite(rows.shard(number)).all(axis=1) for number in range(num_shards)]
    return np.concatenate(found)


def sample_of(rows: StoredRows, wanted: Mask) -> Any:
    """Return embeddings of about a thousand wanted samples, in runs from all over."""
    places = np.flatnonzero(wanted)
    if len(places) > SAMPLE:
        starts = np.linspace(0, len(places) - 16, SAMPLE // 16).astype(np.int64)
        places = places[np.unique(starts[:, None] + np.arange(16))]
    return rows.take(places)


def blocks_of(
    task: Task, model: Any, rows: StoredRows, values: Values, wanted: Mask
) -> Callable[[int], Values]:
    """Return a function of the shard that gives its known and predicted values.

    Args:
        task: What is predicted.
        model: Fitted.
        rows: Embeddings.
        values: (n,), known scores, NaN elsewhere.
        wanted: (n,), samples to predict.
    """

    def block(shard: int) -> Values:
        part = rows.part(shard)
        found = values[part].copy()
        places = part.start + np.flatnonzero(wanted[part])
        if len(places):
            found[places - part.start] = task.predict_at(rows, places, model)
        return found

    return block


def fill(
    store: Store,
    array: Any,
    shards: Sequence[int],
    block: Callable[[int], Values],
    *,
    progress: Callable[[int, int], None],
) -> None:
    """Write the values of these shards; one that holds a number is done already.

    Args:
        store: Open for writing.
        array: (S, L), of the score.
        shards: Whose rows to write.
        block: Gives a shard's values.
        progress: Called with (shards done, shards in all).
    """
    for done, shard in enumerate(shards, start=1):
        count = int(store.samples[shard])
        # A chunk is written in one step: any number in it says that it is whole.
        if np.isnan(read_part(array, (shard, slice(count)))).all():
            values = block(shard)
            with told_about_disk(store.path):
                array[shard, :count] = values
        progress(done, len(shards))
