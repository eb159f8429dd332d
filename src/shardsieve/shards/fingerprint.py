"""Exact fingerprints of shards and of a whole index."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def table_fingerprint(keys: Iterable[str], offsets: NDArray, lengths: NDArray) -> str:  # type: ignore[type-arg]
    """Return the digest of a shard's sample table: keys, offsets and lengths."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\n".join(keys).encode("utf-8", "surrogateescape"))
    digest.update(offsets.astype("<i8").tobytes())
    digest.update(lengths.astype("<i8").tobytes())
    return digest.hexdigest()


NO_SAMPLES = table_fingerprint([], np.array([]), np.array([]))


def index_fingerprint(tables: Iterable[str]) -> str:
    """Return the digest of a whole index from its shards' table fingerprints."""
    return hashlib.blake2b(json.dumps(list(tables)).encode(), digest_size=16).hexdigest()
