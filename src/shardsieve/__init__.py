"""shardsieve: score a little, extrapolate the rest, and skip samples while streaming."""

from shardsieve import extrapolate, scores
from shardsieve._errors import (
    CorruptShardError,
    MissingScoreError,
    ShardsieveError,
    StoreFormatError,
    StoreMismatchError,
    UnreadableSampleError,
)
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
from shardsieve.selection import keep_moderate, keep_random, keep_stratified, keep_top, num_kept
from shardsieve.store.create import index
from shardsieve.store.realign import realign
from shardsieve.store.store import Store, open_store

__all__ = [
    "UCB",
    "AnnealedScore",
    "CorruptShardError",
    "EpsilonGreedy",
    "InfoBatch",
    "KeepSet",
    "MissingScoreError",
    "PrunedShardSampler",
    "RandomDynamic",
    "SeTa",
    "ShardDataset",
    "ShardsieveError",
    "Store",
    "StoreFormatError",
    "StoreMismatchError",
    "UnreadableSampleError",
    "World",
    "extrapolate",
    "index",
    "keep_moderate",
    "keep_random",
    "keep_stratified",
    "keep_top",
    "num_kept",
    "open_store",
    "prune",
    "realign",
    "scores",
    "select",
    "weighted",
]
