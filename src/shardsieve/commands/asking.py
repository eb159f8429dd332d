"""Scores by what the networks behind an embedding say of every sample."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.keepset import KeepSet
from shardsieve.scores.recorded import RECORDED, from_signals
from shardsieve.store.store import Store
from shardsieve.train.measures import STORED

# Their networks stand for epochs.
ASKED = frozenset(name for name, row in RECORDED.items() if row.signal in STORED)


def asked(
    store: Store, embedding: str, spec: str
) -> tuple[NDArray[np.float64], dict[str, Any], str]:
    """Return a score of every sample, its parameters, and its name in `ORIENTATION`.

    Values are float64 (n,), NaN where there is no label.

    Args:
        store: With signals of that name.
        embedding: Made by networks that classify.
        spec: As in `from_signals`; networks stand for epochs.

    Raises:
        MissingScoreError: If there are no signals, or of no sample.
        ValueError: As `from_signals`.
    """
    if embedding not in store.signal_tables:
        raise MissingScoreError(
            f"{spec!r} asks the networks behind embedding {embedding!r}, which classify nothing; "
            "run `shardsieve embed` with a seed run's network, or leave it out of --scores"
        )
    signals, values = store.signals(embedding), np.full(len(store), np.nan)
    seen = np.isfinite(signals).all(axis=(1, 2))
    if not seen.any():
        raise MissingScoreError(
            f"labels must be known for {spec!r}, got none; leave it out of --scores, or index "
            "again with their --label-member"
        )
    names: Any = store.signal_array(embedding).attrs["signals"]
    made = from_signals(spec, {name: signals[seen, :, at].T for at, name in enumerate(names)})
    values[seen] = made.values
    return values, {"networks": signals.shape[1], **made.parameters}, made.scorer


def doubt_of_asked(store: Store, embedding: str, kinds: Iterable[str]) -> str | None:
    """Return the warning about networks that were trained on some samples alone, None if not."""
    if not ASKED.intersection(kinds):
        return None
    trained: Any = store.signal_array(embedding).attrs.get("seeds_digest")
    ids = store.ids()
    everything = (ids, ids[store.labels() >= 0])
    if trained in (None, *(KeepSet.from_ids(store, those).digest for those in everything)):
        return None
    return (
        f"the networks behind embedding {embedding!r} were trained on some samples and find those "
        "easier than others; train on all of them (--seeds 1), or extrapolate by --method direct"
    )
