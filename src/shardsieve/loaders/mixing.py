"""How well an order mixes classes: what matters where shards are sorted by class."""

from dataclasses import dataclass
from math import exp, lgamma

import numpy as np
from numpy.typing import NDArray

from shardsieve.keepset import KeepSet
from shardsieve.loaders.planned import OrderSettings, ids_of_epoch
from shardsieve.store.store import Store

_BATCHES = 64


@dataclass(frozen=True)
class Mixing:
    """Distinct classes in a batch.

    Attributes:
        found: Mean over the first batches of an epoch.
        ideal: Expected in as many samples drawn from the whole keep set.
    """

    found: float
    ideal: float


def mixing(
    store: Store, keep: KeepSet, order: OrderSettings, batch_size: int, *, epoch: int = 0
) -> Mixing:
    """Return how many classes the first 64 batches of an epoch hold, beside the ideal.

    Args:
        store: With labels; a missing one counts as a class of its own.
        keep: A keep set of it, not empty.
        order: Of the epoch.
        batch_size: Samples that are trained on together: over all ranks, the global batch.
        epoch: Which one.
    """
    labels = store.labels()
    wanted, parts, size = min(_BATCHES * batch_size, len(keep)), [], 0
    for ids in ids_of_epoch(store, keep, order, epoch, batch_size):
        parts.append(ids)
        size += len(ids)
        if size >= wanted:
            break
    seen = labels[store.rows(np.concatenate(parts)[:wanted])]
    batches = [seen[i : i + batch_size] for i in range(0, wanted, batch_size)]
    whole = [b for b in batches if len(b) == batch_size] or batches
    found = float(np.mean([len(np.unique(batch)) for batch in whole]))
    _, sizes = np.unique(labels[store.rows(keep.ids())], return_counts=True)
    return Mixing(found, expected_classes(sizes, min(batch_size, len(keep))))


def expected_classes(sizes: NDArray[np.int64], drawn: int) -> float:
    """Return the expected number of classes among samples drawn without replacement.

    Args:
        sizes: Samples per class, int64 (C,).
        drawn: At most their sum.

    >>> round(expected_classes(np.array([2, 2]), 2), 3)  # of six pairs, two are of one class
    1.667
    """
    total = int(sizes.sum())
    absent = 0.0
    for size in sizes.tolist():
        if total - size >= drawn:
            absent += exp(_log_choose(total - size, drawn) - _log_choose(total, drawn))
    return len(sizes) - absent


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
