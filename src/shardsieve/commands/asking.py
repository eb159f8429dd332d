"""The `ask` command: scores by what the networks behind an embedding say of every sample."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.commands.texts import warned
from shardsieve.commands.trust import unembedded
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet
from shardsieve.scores.inputs import one_of
from shardsieve.scores.recorded import RECORDED, SeedScore, about, defined, from_signals, name_of
from shardsieve.store.alone import in_turn
from shardsieve.store.store import Store, open_store
from shardsieve.train.measures import STORED

PREFIX = "asked"

_ASKED = sorted(name for name, row in RECORDED.items() if row.signal in STORED)


def ask_networks(
    path: Path, embedding: str | None, specs: Sequence[str], *, prefix: str = PREFIX
) -> dict[str, Any]:
    """Store scores by the signals that were stored with an embedding.

    A score is of the samples whose signal is known: all that are embedded for the entropy, those
    with a label for the others.

    Args:
        path: Of the store.
        embedding: Name; may be left out when there is just one.
        specs: As in `from_signals`; the networks that embedded stand for epochs.
        prefix: Of the stored names, with `_` behind it.

    Returns:
        The names of the scores, how many samples have all of them, and a `warning` if the networks
        were trained on some samples alone or some are not embedded.

    Raises:
        MissingScoreError: If nothing is stored that could be asked.
        ValueError: As `from_signals`.
        StoreMismatchError: If a name holds another score.
    """
    store = open_store(path)
    embedding = store.embedding_name(embedding)
    if embedding not in store.signal_tables:
        raise MissingScoreError(
            f"embedding {embedding!r} must come with signals, which its network does not give; "
            "run `shardsieve embed` with a seed run's network"
        )
    begin, signals = time.perf_counter(), store.signals(embedding)
    names: Any = store.signal_array(embedding).attrs["signals"]
    whole = np.asarray(np.isfinite(signals).all(axis=1))
    seen = {name: whole[:, at] for at, name in enumerate(names)}
    _need_known(specs, seen, embedding)
    known = {name: signals[seen[name], :, at].T for at, name in enumerate(names)}
    asked = {f"{prefix}_{name_of(spec)}": spec for spec in specs}
    made = {name: _asked(spec, known) for name, spec in asked.items()}
    whose = {name: seen[_signal_of(spec)] for name, spec in asked.items()}
    spent = time.perf_counter() - begin
    said = {name: _said(store, embedding, score) for name, score in made.items()}
    with in_turn(store.path):  # ranks may ask at once
        for name, how in said.items():
            store.check_score(name, how["definition"])
        for name, score in made.items():
            values = np.full(len(store), np.nan)
            values[whose[name]] = score.values
            cost = Cost.timed(spent / len(made)).to_dict()
            store.put_score(name, values, provenance={**said[name], "cost": cost})
    scored = int(np.all([*whose.values()], axis=0).sum())
    result = {"embedding": embedding, "scored": scored, "scores": [*made]}
    unseen = int(np.isnan(signals).all(axis=(1, 2)).sum())
    return result | warned(_doubt(store, embedding), unembedded(unseen, embedding))


def check_asked(specs: Sequence[str], networks: int) -> list[str]:
    """Return the names, without prefix, of the scores that so many networks will be asked for.

    Raises:
        ValueError: If a specification is wrong, or there are too few networks for it.
    """
    nothing = {name: np.zeros((networks, 1)) for name in STORED}
    return [_asked(spec, nothing).name for spec in specs]


def _asked(spec: str, signals: dict[str, Any]) -> SeedScore:
    _ = _signal_of(spec)
    try:
        return from_signals(spec, signals)
    except ValueError as error:
        raise ValueError(
            f"{error} (asking for {spec!r}, where networks stand for epochs)"
        ) from error


def _signal_of(spec: str) -> str:
    """Return the name of the signal that a score comes from."""
    name = spec.partition(":")[0]
    one_of("score", name, _ASKED)
    return RECORDED[name].signal


def _need_known(
    specs: Sequence[str], seen: Mapping[str, NDArray[np.bool_]], embedding: str
) -> None:
    """Check that of every score's signal, if it is stored, something is known."""
    unknown = [spec for spec in specs if not np.any(seen.get(_signal_of(spec), True))]
    if unknown and any(rows.any() for rows in seen.values()):
        raise MissingScoreError(
            f"labels must be known to ask for {', '.join(unknown)}, got none; index again with "
            "their --label-member"
        )
    if unknown:
        raise MissingScoreError(
            f"embedding {embedding!r} must hold samples, got none; run `shardsieve embed` again"
        )


def _said(store: Store, embedding: str, score: SeedScore) -> dict[str, Any]:
    """Return a stored score's provenance: of which networks, by their weights, and their seeds."""
    asked = store.signal_array(embedding)
    whom = {"embedding": embedding, "networks": asked.shape[2]}
    kind = score.name.partition(".")[0]  # without its options
    made: dict[str, Any] = {"definition": defined(kind, {**whom, **score.parameters})}
    known = {"weights": "network", "seeds_digest": "seeds_digest"}
    made |= {ours: asked.attrs[theirs] for theirs, ours in known.items() if theirs in asked.attrs}
    return {**about(score), **made, "embedding": embedding, "measured": True}


def _doubt(store: Store, embedding: str) -> str | None:
    """Return the warning about networks that were trained on some samples alone, None if not."""
    trained: Any = store.signal_array(embedding).attrs.get("seeds_digest")
    ids = store.ids()
    everything = (ids, ids[store.labels() >= 0])
    if trained in (None, *(KeepSet.from_ids(store, those).digest for those in everything)):
        return None
    return (
        f"the networks behind embedding {embedding!r} were trained on some samples and find those "
        "easier than others; train on all of them (--seeds 1), or extrapolate by --method direct"
    )
