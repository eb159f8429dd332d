"""What a network learns to tell: labels of the index, or pseudo-labels of the store."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.store.store import Store

_MOST_CLASSES = 10_000_000


def labels_of(store: Store, pseudo_labels: str | None = None) -> NDArray[np.int64]:
    """Return labels, or pseudo-labels of a name, in id order: int64 (n,), -1 where there is none.

    Raises:
        MissingScoreError: If there are no pseudo-labels of that name.
    """
    return store.labels() if pseudo_labels is None else store.pseudo_labels(pseudo_labels)


def readable(
    store: Store,
    decode: Callable[[dict[str, Any]], Any],
    *,
    max_unreadable: int,
    pseudo_labels: str | None,
) -> ShardDataset:
    """Return decoded samples with the labels of the index, or pseudo-labels; -1 where none is.

    Up to so many unreadable ones are skipped.
    """
    on_error = "skip" if max_unreadable else "raise"
    labels = labels_of(store, pseudo_labels)
    how: dict[str, Any] = {"on_error": on_error, "max_unreadable": max_unreadable}
    return ShardDataset(store, decode, labels=labels, **how)


def labels_behind(store: Store, score: str) -> NDArray[np.int64]:
    """Return the labels that a score's seed run learned, in id order: int64 (n,), -1 for none."""
    made = store.provenance(score)
    found = made["dynamics"] if made.get("model") == "turtle" else None
    return labels_of(store, found or made.get("training", {}).get("pseudo_labels"))


def count_classes(
    store: Store, pseudo_labels: str | None = None, *, ids: NDArray[np.int64] | None = None
) -> int:
    """Return the number of classes: the largest label plus one.

    Args:
        store: Open.
        pseudo_labels: As in `labels_of`.
        ids: int64 (m,): the samples that need a pseudo-label; None means all. Labels are needed
            everywhere.

    Raises:
        ShardsieveError: If one of them has none.
    """
    labels = labels_of(store, pseudo_labels)
    if pseudo_labels is not None:
        labels = labels if ids is None else labels[store.rows(ids)]
        cure = f"embed all of them and score under another name than {pseudo_labels!r}"
    else:
        cure = (
            f"{_cure(store)}, or train on pseudo-labels (`score`, `train --paradigm unsupervised`)"
        )
    missing = int((labels < 0).sum())
    if missing:
        kind = "label" if pseudo_labels is None else "pseudo-label"
        raise ShardsieveError(
            f"{missing} of {len(labels)} samples of {store.path} have no {kind}; {cure}"
        )
    classes = int(labels.max(initial=0)) + 1
    if classes > _MOST_CLASSES:
        raise ShardsieveError(
            f"labels must number the classes from 0, got {classes - 1} in {store.path}; no network "
            f"here tells more than {_MOST_CLASSES} apart"
        )
    return classes


def _cure(store: Store) -> str:
    if store.kind == "ffcv":
        return "name the integer field with the class in `shardsieve index --label-member`"
    return (
        "say in `shardsieve index --label-member` where the class stands, such as `txt` for a "
        "member, `json:label` for a field of a JSON member, `/` for the folder or `.tar` for the "
        "name of the tar"
    )


def check_test(test: Store, store: Store, classes: int | None = None) -> None:
    """Refuse a store to evaluate on without labels, or with labels that training cannot learn.

    Args:
        test: Open.
        store: Of the training samples.
        classes: How many the network tells; None for one that tells pseudo-classes.

    Raises:
        ShardsieveError: If it is one.
    """
    largest = int(test.labels().max(initial=-1))
    if largest < 0:
        raise ShardsieveError(
            f"test must have labels, got {test.path} without any; {_cure(test)}, or leave test out"
        )
    foreign = sorted(set(test.classes).difference(store.classes))
    if classes is not None and store.classes and foreign:
        raise ShardsieveError(
            f"test must have the classes of {store.path}, got {foreign[0]!r} in {test.path}; is it "
            "a split of the same data set?"
        )
    if classes is not None and test.classes and not store.classes and len(test.classes) != classes:
        raise ShardsieveError(
            f"test must number its classes as {store.path} does, got names of {len(test.classes)} "
            f"classes in {test.path} for {classes} numbers; index both by the same --label-member"
        )
    if classes is not None and largest >= classes:
        raise ShardsieveError(
            f"test must have labels below {classes}, the classes of the training samples, got "
            f"{largest} in {test.path}; is it a split of the same data set?"
        )


def count_pseudo_classes(store: Store, classes: int | None) -> int:
    """Return how many pseudo-classes to find: `classes`, or as many as there are labels.

    Raises:
        ValueError: If neither says it.
    """
    if classes is None and (store.labels() < 0).any():
        raise ValueError(
            f"classes must be given, as {store.path} has samples without a label, got none; "
            "say how many pseudo-classes to find"
        )
    return count_classes(store) if classes is None else classes


def identity_of(store: Store, pseudo_labels: str | None) -> dict[str, Any]:
    """Return what of the labels belongs to the identity of a run, besides the store."""
    if pseudo_labels is None:
        return {"labels_digest": labels_digest(store)}
    return {"pseudo_labels_digest": digest_of(store, pseudo_labels)}


def labels_digest(store: Store) -> str:
    """Return a few digits that change exactly when the labels of the index do."""
    return _digest(store.labels())


def digest_of(store: Store, pseudo_labels: str) -> str:
    """Return a few digits that change exactly when pseudo-labels do."""
    return _digest(store.pseudo_labels(pseudo_labels))


def _digest(labels: NDArray[np.int64]) -> str:
    return hashlib.blake2b(labels.tobytes(), digest_size=8).hexdigest()
