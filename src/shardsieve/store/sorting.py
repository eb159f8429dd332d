"""Whether shards are sorted by class: then few of them shuffled together hold few classes."""

import logging

import numpy as np
from numpy.typing import NDArray

from shardsieve.store.store import Store

_LOG = logging.getLogger("shardsieve")
# Shards filled in a random order stay within a hundredth or two of 1; from 1.1 on accuracy is lost
# (benchmarks/class_sorted.py).
_SORTED = 1.05
_USUAL_WINDOW = 16  # of samplers and trainings
_WARNING = (
    "the shards of %s are sorted by class: %d of them shuffled together hold too few classes to "
    'train on; give shuffle="global" to PrunedShardSampler or prune (`score` and `train` shuffle '
    "everything together by themselves)"
)


def warn_if_sorted(store: Store) -> None:
    """Warn where a store's tars are sorted by class."""
    if is_sorted_by_class(store, store.labels(), _USUAL_WINDOW):
        _LOG.warning(_WARNING, store.path, _USUAL_WINDOW)


def is_sorted_by_class(store: Store, labels: NDArray[np.int64], window: int) -> bool:
    """Return whether so many shards, of a `.beton` pages, mix classes badly.

    Args:
        store: Any.
        labels: int64 (n,), in the order of its ids; -1 counts as a class of its own.
        window: Shards or pages shuffled together, at least 1.
    """
    return likeness(labels, _groups(store), window) > _SORTED


def likeness(labels: NDArray[np.int64], groups: NDArray[np.int64], window: int) -> float:
    """Return how much likelier two samples of a window are of one class than any two samples.

    A window is of so many groups drawn at random. 1 says that it mixes classes as the whole does,
    C that it holds a single one of C equal classes.

    Args:
        labels: int64 (n,), any numbers.
        groups: int64 (n,), the shard or page of each, from 0 on.
        window: At least 1.

    >>> by_class = np.arange(1000) // 100  # ten groups of a class each
    >>> [round(likeness(by_class, by_class, window), 1) for window in (1, 2, 10)]
    [10.1, 5.0, 1.0]
    """
    _, classes = np.unique(labels, return_inverse=True)
    both = groups * (int(classes.max(initial=0)) + 1) + classes
    alike, alike_inside = _pairs(np.bincount(classes)), _pairs(np.unique_counts(both).counts)
    pairs, pairs_inside = _pairs(np.array([len(labels)])), _pairs(np.bincount(groups))
    # A window that holds one group holds another one with this probability.
    other = min(1.0, (window - 1) / max(len(np.unique(groups)) - 1, 1))
    alike_met = alike_inside + other * (alike - alike_inside)
    pairs_met = pairs_inside + other * (pairs - pairs_inside)
    return alike_met / pairs_met * pairs / alike if alike and pairs_met else 1.0


def page_of_rows(store: Store) -> NDArray[np.int64]:
    """Return the page of every row of an FFCV store, int64 (n,); -1 for rows without bytes."""
    offsets = store.ranges[..., 0].reshape(-1)[: len(store)]
    pages: NDArray[np.int64] = offsets // int(store.group.attrs["page_size"])  # type: ignore[arg-type]
    return pages


def _groups(store: Store) -> NDArray[np.int64]:
    if store.kind == "ffcv":
        return np.unique_inverse(page_of_rows(store)).inverse_indices
    return np.repeat(np.arange(store.num_shards), store.samples)


def _pairs(sizes: NDArray[np.int64]) -> float:
    """Return how many pairs lie within groups of these sizes."""
    each = sizes.astype(np.float64)
    return float((each * (each - 1)).sum() / 2)
