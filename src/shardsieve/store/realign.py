"""Carry scores from one layout of a data set to another, by key."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import StoreMismatchError
from shardsieve.store.store import Store, numbers_in, refuse_path

_MOST_RELABELLED = 0.1


def realign(
    store_from: Store, store_to: Store, *, scores: str | Sequence[str] | None = None
) -> list[str]:
    """Copy scores to the store of other shards of the same samples, and return their names.

    Args:
        store_from: Holds the scores; may hold samples that the other lacks.
        store_to: Gets them.
        scores: A name or several; by default all. The score that a predicted one was predicted from
            goes along where `store_to` lacks it, as it says which rows were measured.

    Raises:
        StoreMismatchError: If a key is ambiguous in either store, one of `store_to` is missing in
            `store_from`, or more than a tenth of the labels that both have differ; nothing is
                written then.
        MissingScoreError: If there is no score of a given name.
    """
    refuse_path(store_from)
    refuse_path(store_to)
    scores = [scores] if isinstance(scores, str) else scores
    names = list(store_from.scores if scores is None else scores)
    names += [name for name in _sources(store_from, names) if not store_to.has_score(name)]
    values = {name: store_from.score(name) for name in names}
    rows = _rows_by_key(store_from, store_to)
    _refuse_other_samples(store_from, store_to, rows)
    for name in names:
        made = {**store_from.provenance(name), "realigned_from": store_from.fingerprint}
        store_to.put_score(name, values[name][rows], provenance=made)
    return names


def _sources(store: Store, names: list[str]) -> list[str]:
    found = [store.provenance(name).get("source") for name in names if store.has_score(name)]
    return sorted({s for s in found if s is not None and s not in names and store.has_score(s)})


def _rows_by_key(store_from: Store, store_to: Store) -> NDArray[np.int64]:
    """Return the row in `store_from` of every sample of `store_to`."""
    places, wanted = _places(store_from), _places(store_to)
    missing = [key for key in wanted if key not in places]
    if missing:
        raise StoreMismatchError(
            f"{len(missing)} keys of {store_to.path} are not in {store_from.path}, the first is "
            f"{missing[0]!r}; scores go to the same samples only"
        )
    return np.array([places[key] for key in wanted], dtype=np.int64)


def _refuse_other_samples(store_from: Store, store_to: Store, rows: NDArray[np.int64]) -> None:
    """Refuse keys that name other samples: some labels may have been mended, not most of them."""
    old, new = store_from.labels(need_all=False)[rows], store_to.labels()
    known = (old >= 0) & (new >= 0)
    old, new, numbers = old[known], new[known], numbers_in(store_to, store_from)
    if numbers is not None:
        old = numbers[old]
    other, count = int((old != new).sum()), len(old)
    if other > _MOST_RELABELLED * count:
        raise StoreMismatchError(
            f"{other} of {count} labels of {store_to.path} are others than those of "
            f"the same keys in {store_from.path}; keys that number the samples name others once "
            "they were packed anew: score them again"
        )


def _places(store: Store) -> dict[str, int]:
    places: dict[str, int] = {}
    for keys in store.keys_by_shard():
        for key in keys:
            if key in places:
                raise StoreMismatchError(
                    f"keys of {store.path} must be unique to carry scores, got {key!r} twice; "
                    "give every sample its own name"
                )
            places[key] = len(places)
    return places
