"""Turn a source of labelled images into WebDataset tar shards."""

from shardsieve.pack.sources import Split, find_splits
from shardsieve.pack.writer import PackedSplit, pack

__all__ = ["PackedSplit", "Split", "find_splits", "pack"]
