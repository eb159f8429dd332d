"""Make a store from an FFCV file: equal blocks of rows are its virtual shards."""

from typing import Any

import numpy as np

from shardsieve._errors import ANOTHER_STORE, ShardsieveError, StoreMismatchError
from shardsieve.io.clients import is_remote
from shardsieve.io.source import cheap_fingerprint
from shardsieve.shards.beton import SUFFIXES, Beton, read_beton
from shardsieve.store.indexed import IndexedShard
from shardsieve.store.store import Store

BLOCK_ROWS = 4096
"""Rows of a virtual shard; a multiple of 64, so that a sample id is the FFCV row."""


def is_beton(shards: list[str]) -> bool:
    """Say whether these shards are one FFCV file.

    Raises:
        ShardsieveError: If an FFCV file is named beside other shards, or is not local.
    """
    found = [s for s in shards if s.endswith(SUFFIXES)]
    if found and len(shards) > 1:
        raise ShardsieveError(
            f"a store holds one .beton, got {len(shards)} shards with {found[0]}; "
            "make a store for each"
        )
    if found and is_remote(found[0]):
        raise ShardsieveError(f"a .beton must be a local file, got {found[0]}; download it")
    return bool(found)


def beton_blocks(path: str, label_field: str | None) -> tuple[list[IndexedShard], dict[str, Any]]:
    """Return the index entries of a file's virtual shards, and the store's extra attributes."""
    fingerprint = cheap_fingerprint(path)
    beton = read_beton(path)
    labels, keys, ranges = beton.labels(known_field(beton, label_field)), beton.keys(), beton.ranges
    blocks = []
    for first in range(0, len(beton), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        blocks.append(
            IndexedShard(
                keys=keys[rows],
                offset=ranges[rows, 0],
                length=ranges[rows, 1],
                label=labels[rows],
                suffixes=list(beton.names),
                nbytes=int(ranges[rows, 1].sum()),
                fingerprint=fingerprint,
            )
        )
    return blocks, {"kind": "ffcv", "page_size": beton.page_size, "nbytes": beton.nbytes}


def check_beton(store: Store) -> list[str]:
    """Read the tables again and compare every block with the index.

    Returns:
        Their cheap fingerprints, from before that.

    Raises:
        StoreMismatchError: If a block differs, naming its rows.
    """
    url, member = store.places[0], store.group.attrs.get("label_member")
    blocks, _ = beton_blocks(url, None if member is None else str(member))
    want = [*zip(store.tables(), store.labels_by_shard(), strict=True)]
    got = [(block.table, block.label) for block in blocks]
    for number, (table, labels) in enumerate(want):
        same = number < len(got) and got[number][0] == table
        if not (same and np.array_equal(got[number][1], labels)):
            first = number * store.rows_per_shard
            raise StoreMismatchError(
                f"{url} holds other samples than the index of {store.path}, or labels, "
                f"from row {first} on; {ANOTHER_STORE}"
            )
    if len(got) > len(want):
        raise StoreMismatchError(f"{url} has more rows than {store.path}; {ANOTHER_STORE}")
    return [block.fingerprint for block in blocks]


def known_field(beton: Beton, member: str | None) -> str | None:
    """Take tar's default member name for "not given", unless a field has that name."""
    return None if member == "cls" and member not in beton.names else member


def label_field_of(store: Store, beton: Beton) -> str | None:
    """Return the field that a store's labels were named to come from; None if nobody named one."""
    member = store.group.attrs.get("label_member")
    return None if member is None else known_field(beton, str(member))
