"""Marks: a few digits that change exactly when what a step reads or makes has changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from shardsieve.store.store import Store
from shardsieve.train import labels
from shardsieve.train.embedding import weights_fingerprint
from shardsieve.train.encoder import load_encoder
from shardsieve.train.runfolder import MODEL

Mark = str | None
"""None where there is nothing."""

# What making the same thing again may change.
_OF_THE_MAKING = ("date", "version", "cost", "seconds", "bytes")


def digest_of(values: Any) -> str:
    """Return the digest of plain values."""
    return _hashed(json.dumps(values, sort_keys=True).encode())


def mark_of_data(store: Store) -> str:
    """Return the mark of shards and labels: of which files they are, not of what they hold."""
    shards = [store.fingerprint, store.shard_fingerprints()]
    return digest_of([*shards, _hashed(store.labels().tobytes())])


def mark_of_values(store: Store, score: str) -> Mark:
    """Return the mark of a stored score's numbers."""
    if not store.has_score(score):
        return None
    return _hashed(store.score(score).tobytes())


def mark_of_pseudo_labels(store: Store, name: str | None) -> Mark:
    """Return the mark of stored pseudo-labels."""
    if name is None or name not in store.pseudo_label_sets:
        return None
    return labels.digest_of(store, name)


def mark_of_score(store: Store, score: str) -> Mark:
    """Return the mark of a stored score's numbers and of what is known about them."""
    if not store.has_score(score):
        return None
    return digest_of([mark_of_values(store, score), _lasting(store.provenance(score))])


def mark_of_embedding(store: Store, name: str) -> Mark:
    """Return the mark of an embedding and its signals: by what network, not every number."""
    if name not in store.embeddings:
        return None
    tables = [store.embedding_array(name)]
    if name in store.signal_tables:
        tables.append(store.signal_array(name))
    return digest_of([name, *([array.attrs.get("weights"), array.shape] for array in tables)])


def mark_of_network(model: str | Path) -> Mark:
    """Return the mark of a run's networks; of a `package.module:factory` its name."""
    path = Path(model)
    if path.suffix != ".pt" and not path.is_dir():
        return str(model)
    if not (path if path.suffix == ".pt" else path / MODEL).is_file():
        return None
    held = load_encoder(str(path))
    weights = weights_fingerprint(held.network, *held.snapshots.values())
    return digest_of([weights, [*held.snapshots], held.size, held.channels, held.normalise])


def mark_of_file(path: Path | None) -> Mark:
    """Return the mark of a file's bytes."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def mark_of_bytes(data: bytes | None) -> Mark:
    """Return the mark that a file of these bytes has; None if there is none."""
    return None if data is None else _hashed(data)


def _lasting(about: Any) -> Any:
    if not isinstance(about, dict):
        return about
    return {name: _lasting(v) for name, v in about.items() if name not in _OF_THE_MAKING}


def _hashed(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
