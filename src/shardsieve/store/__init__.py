"""The Zarr store beside the shards: row s of every array belongs to shard s."""

from shardsieve.store.store import Store, open_store

__all__ = ["Store", "open_store"]
