"""The errors that a user can cause, and whose message is the one line that the CLI shows."""

# What becomes of the scores in a store whose shards, or part of whose index, are others now.
ANOTHER_STORE = (
    "index into another store: `shardsieve realign` carries scores over where keys and nine "
    "labels in ten are the same, else score again"
)


class ShardsieveError(Exception):
    """Base of every error that tells the user what to change. The CLI exits with status 2."""


class CorruptShardError(ShardsieveError):
    """A shard cannot be read as it should: empty, truncated, compressed or not a tar."""


class StoreMismatchError(ShardsieveError, ValueError):
    """Two artefacts that must belong together do not: shards, store, keep set, run directory."""


class StoreFormatError(ShardsieveError):
    """A store is missing, incomplete, or written by a newer version."""


class MissingScoreError(ShardsieveError, ValueError):
    """A score that selection needs is absent or not a number."""


class UnreadableSampleError(ShardsieveError):
    """A sample of a shard cannot be decoded, or more of them than the limit allows."""


class MissingDependencyError(ShardsieveError, ImportError):
    """An optional library is not installed."""
