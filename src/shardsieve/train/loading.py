"""The loaders of the training loop: the one place that knows how its batches are read."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from shardsieve.keepset import KeepSet
from shardsieve.loaders.sampler import PrunedShardSampler
from shardsieve.policy.base import Policy
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.crops import RandomCrops
from shardsieve.train.ffcv_batches import FfcvBatches, check_ffcv, ffcv_loader
from shardsieve.train.images import ImageDecoder, collate
from shardsieve.train.labels import readable
from shardsieve.train.ordering import training_order
from shardsieve.train.transforms import transform_of


def make_loader(
    store: Store,
    keep: KeepSet | Policy,
    config: TrainConfig,
    *,
    in_order: bool = False,
) -> tuple[DataLoader[Any] | FfcvBatches, PrunedShardSampler]:
    """Return a loader of `Batch`es and its sampler; FFCV reads a `.beton`.

    Args:
        store: Where the samples are.
        keep: The samples of every epoch, or a policy that chooses them.
        config: Its size and channels must be known.
        in_order: Keep the order of the shards and augment nothing, as for evaluation.

    Raises:
        ShardsieveError, ValueError: As `check_augmenting`.
    """
    if not in_order:
        check_augmenting(store, config)
    chosen: dict[str, Any] = {"keep_set": keep} if isinstance(keep, KeepSet) else {"policy": keep}
    if store.kind == "ffcv":
        return ffcv_loader(store, config, in_order=in_order, **chosen)
    sampler = PrunedShardSampler(
        store,
        **chosen,
        **({"window": 0} if in_order else training_order(store, config)),
        seed=config.seed,
        batch_size=config.batch_size,
    )
    drawn: dict[str, Any] = {}
    if config.augments_in_workers and not in_order:
        drawn["crops"] = RandomCrops(config.seed)
        drawn["transform"] = transform_of(config.augment, config.seed)
    decoder = ImageDecoder(config.size, config.channels or 3, **drawn)
    loader: DataLoader[Any] = DataLoader(
        readable(
            store,
            decoder,
            max_unreadable=config.max_unreadable,
            pseudo_labels=config.pseudo_labels,
        ),
        sampler=sampler,
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
    )
    return loader, sampler


def check_augmenting(store: Store, config: TrainConfig) -> None:
    """Refuse an augmentation that this store or this machine does not allow.

    Args:
        store: Of the training samples.
        config: Where it has a size and channels, the transform is tried.

    Raises:
        ShardsieveError: If what it needs is missing, or cannot be applied to images of this size.
        ValueError: If it is not for a `.beton`, or makes something else than such images.
    """
    if store.kind == "ffcv":
        return check_ffcv(config)
    transform = transform_of(config.augment, config.seed)
    if transform is not None and config.size is not None and config.channels is not None:
        transform.check(config.size, config.channels)
    return None


def set_epoch(loader: Any, sampler: PrunedShardSampler, epoch: int) -> None:
    """Set the epoch of sampler and crops, and of Accelerate's loader, which would set it back."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    sampler.set_epoch(epoch)
    crops = getattr(getattr(loader.dataset, "decode", None), "crops", None)
    if crops is not None:
        crops.set_epoch(epoch)
