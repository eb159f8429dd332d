"""The training loop's batches from an FFCV store: FFCV decodes, the loop does not notice."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from shardsieve.loaders.ffcv_images import FfcvImages
from shardsieve.loaders.sampler import PrunedShardSampler
from shardsieve.store.store import Store
from shardsieve.train.config import ON_BATCHES, TrainConfig
from shardsieve.train.images import Batch, ImageDecoder
from shardsieve.train.labels import labels_of, readable
from shardsieve.train.ordering import training_order


class FfcvBatches:
    """Iterates `Batch`es on the process' device; `accelerator.prepare` leaves it as it is.

    Attributes:
        dataset: What was read and what could not be, as a `DataLoader` has it.
    """

    def __init__(self, images: FfcvImages, channels: int) -> None:
        self.dataset, self._channels = images, channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        to: Any = {"device": PartialState().device, "non_blocking": True}
        for batch in self.dataset:
            parts = (*batch, batch.ids, batch.weights)
            images, *others = (part.to(**to) for part in parts)
            yield Batch(images if self._channels == 3 else grey(images), *others)


def ffcv_loader(
    store: Store, config: TrainConfig, *, in_order: bool, **chosen: Any
) -> tuple[FfcvBatches, PrunedShardSampler]:
    """Return the loader of an FFCV store and its sampler.

    Args:
        store: Of one `.beton`.
        config: Its size and channels must be known.
        in_order: Keep the order of the file and augment nothing.
        chosen: The sampler's `keep_set` or `policy`.

    Raises:
        ValueError: As `check_ffcv`.
    """
    if not in_order:
        check_ffcv(config)
    assert config.size is not None
    how: dict[str, Any] = {"seed": config.seed, "batch_size": config.batch_size}
    how |= {"window": 0} if in_order else training_order(store, config)
    sampler = PrunedShardSampler(store, **chosen, **how)
    how = {"max_unreadable": config.max_unreadable, "pseudo_labels": config.pseudo_labels}
    slowly = readable(store, ImageDecoder(config.size, 3), **how)
    how = {"batch_size": config.batch_size, "size": config.size, "threads": config.workers}
    labels = labels_of(store, config.pseudo_labels)
    images = FfcvImages(store, sampler, slowly=slowly, labels=labels, **how)
    return FfcvBatches(images, config.channels or 3), sampler


def check_ffcv(config: TrainConfig) -> None:
    """Refuse settings that crop while decoding: FFCV's crops cannot be drawn again.

    Raises:
        ValueError: If they do.
    """
    if config.augments_in_workers:
        raise ValueError(
            f"augment must be {', '.join(ON_BATCHES)} for a .beton, got {config.augment!r}, whose "
            "crops FFCV cannot draw again after a stop; train on tars for it"
        )


def grey(images: Tensor) -> Tensor:
    """Return colour images uint8 (n, 3, h, w) as grey ones (n, 1, h, w), as Pillow does.

    >>> grey(torch.tensor([200, 100, 50], dtype=torch.uint8).reshape(1, 3, 1, 1)).item()
    124
    """
    red, green, blue = images.to(torch.int32).unbind(dim=1)
    # ITU-R 601-2 luma in 16 bits.
    luma: Tensor = 19595 * red + 38470 * green + 7471 * blue
    return ((luma + 0x8000) >> 16).to(torch.uint8)[:, None]
