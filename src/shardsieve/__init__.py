"""shardsieve: score a little, extrapolate the rest, and skip samples while streaming.

Names are imported when they are first used: a process that only reads bytes never loads torch.
"""

from typing import TYPE_CHECKING

from shardsieve._later import later

if TYPE_CHECKING:
    from shardsieve import extrapolate, scores
    from shardsieve._errors import (
        CorruptShardError,
        MissingDependencyError,
        MissingScoreError,
        ShardsieveError,
        StoreFormatError,
        StoreMismatchError,
        UnreadableSampleError,
    )
    from shardsieve._version import __version__
    from shardsieve.betadraw import keep_beta
    from shardsieve.io.source import measure_storage
    from shardsieve.io.spans import Storage
    from shardsieve.keepset import KeepSet, select
    from shardsieve.loaders.dataset import ShardDataset
    from shardsieve.loaders.prune import prune
    from shardsieve.loaders.sampler import PrunedShardSampler
    from shardsieve.plan import World
    from shardsieve.policy import (
        UCB,
        AnnealedScore,
        EpsilonGreedy,
        InfoBatch,
        RandomDynamic,
        SeTa,
        weighted,
    )
    from shardsieve.selection import (
        keep_moderate,
        keep_random,
        keep_threshold,
        keep_top,
        num_kept,
    )
    from shardsieve.store.append import append_shards
    from shardsieve.store.create import index
    from shardsieve.store.realign import realign
    from shardsieve.store.store import Store, open_store
    from shardsieve.strata import keep_ccs, keep_class_balanced, keep_stratified

_HOMES = {
    "_errors": (
        "CorruptShardError MissingDependencyError MissingScoreError ShardsieveError "
        "StoreFormatError StoreMismatchError UnreadableSampleError"
    ),
    "_version": "__version__",
    "betadraw": "keep_beta",
    "io.source": "measure_storage",
    "io.spans": "Storage",
    "keepset": "KeepSet select",
    "loaders.dataset": "ShardDataset",
    "loaders.prune": "prune",
    "loaders.sampler": "PrunedShardSampler",
    "plan": "World",
    "policy": "UCB AnnealedScore EpsilonGreedy InfoBatch RandomDynamic SeTa weighted",
    "selection": "keep_moderate keep_random keep_threshold keep_top num_kept",
    "store.append": "append_shards",
    "store.create": "index",
    "store.realign": "realign",
    "store.store": "Store open_store",
    "strata": "keep_ccs keep_class_balanced keep_stratified",
}
__all__ = [
    "UCB",
    "AnnealedScore",
    "CorruptShardError",
    "EpsilonGreedy",
    "InfoBatch",
    "KeepSet",
    "MissingDependencyError",
    "MissingScoreError",
    "PrunedShardSampler",
    "RandomDynamic",
    "SeTa",
    "ShardDataset",
    "ShardsieveError",
    "Storage",
    "Store",
    "StoreFormatError",
    "StoreMismatchError",
    "UnreadableSampleError",
    "World",
    "__version__",
    "append_shards",
    "extrapolate",
    "index",
    "keep_beta",
    "keep_ccs",
    "keep_class_balanced",
    "keep_moderate",
    "keep_random",
    "keep_stratified",
    "keep_threshold",
    "keep_top",
    "measure_storage",
    "num_kept",
    "open_store",
    "prune",
    "realign",
    "scores",
    "select",
    "weighted",
]


__getattr__ = later(__name__, _HOMES, ("extrapolate", "scores"))


def __dir__() -> list[str]:
    return list(__all__)
