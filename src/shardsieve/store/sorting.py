"""Whether shards are sorted by class: then few of them shuffled together hold few classes."""

import logging
from collections import Counter
from collections.abc import Iterable

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
    if likeness(store.labels_by_shard(), _USUAL_WINDOW) > _SORTED:
        _LOG.warning(_WARNING, store.path, _USUAL_WINDOW)


def is_sorted_by_class(store: Store, labels: NDArray[np.int64], window: int) -> bool:
    """Return whether so many shards, of a `.beton` pages, mix classes badly.

    Args:
        store: Any.
        labels: int64 (n,), in the order of its ids; -1 counts as a class of its own.
        window: Shards or pages shuffled together, at least 1.
    """
    if store.kind == "ffcv":
        pages = page_of_rows(store)
        by_page = np.argsort(pages, kind="stable")
        labels, ends = labels[by_page], np.flatnonzero(np.diff(pages[by_page])) + 1
    else:
        ends = np.cumsum(store.samples)[:-1]
    return likeness(np.split(labels, ends), window) > _SORTED


def likeness(groups: Iterable[NDArray[np.int64]], window: int) -> float:
    """Return how much likelier two samples of a window are of one class than any two samples.

    A window is of so many groups drawn at random. 1 says that it mixes classes as the whole does,
    C that it holds a single one of C equal classes.

    Args:
        groups: Labels of each shard or page, any numbers.
        window: At least 1.

    >>> by_class = [np.full(100, label) for label in range(10)]
    >>> [round(likeness(by_class, window), 1) for window in (1, 2, 10)]
    [10.1, 5.0, 1.0]
    """
    sizes, of_class, alike_inside = list[int](), Counter[int](), 0
    for labels in groups:
        classes, counts = np.unique(labels, return_counts=True)
        of_class.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
        alike_inside += _pairs(counts.tolist())
        sizes.append(len(labels))
    alike, pairs, pairs_inside = _pairs(of_class.values()), _pairs([sum(sizes)]), _pairs(sizes)
    # A window that holds one group holds another one with this probability.
    other = min(1.0, (window - 1) / max(sum(map(bool, sizes)) - 1, 1))
    alike_met = alike_inside + other * (alike - alike_inside)
    pairs_met = pairs_inside + other * (pairs - pairs_inside)
    return alike_met / pairs_met * pairs / alike if alike and pairs_met else 1.0


def page_of_rows(store: Store) -> NDArray[np.int64]:
    """Return the page of every row of an FFCV store, int64 (n,); -1 for rows without bytes."""
    offsets = store.ranges[..., 0].reshape(-1)[: len(store)]
    pages: NDArray[np.int64] = offsets // int(store.group.attrs["page_size"])  # type: ignore[arg-type]
    return pages


def _pairs(sizes: Iterable[int]) -> int:
    """Return how many pairs lie within groups of these sizes."""
    return sum(size * (size - 1) // 2 for size in sizes)
