"""Accuracy over a store, every sample counted once."""

import torch
from accelerate import Accelerator
from torch import nn

from shardsieve.keepset import KeepSet
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import normalised
from shardsieve.train.loading import make_loader


def evaluate(
    model: nn.Module, store: Store, keep: KeepSet, config: TrainConfig, accelerator: Accelerator
) -> float:
    """Return the accuracy in `[0, 1]` over a keep set, every sample counted once."""
    loader = accelerator.prepare(make_loader(store, keep, config, in_order=True)[0])
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        for batch in loader:
            images = normalised(batch.images, config.normalise)
            right += (model(images).argmax(dim=1) == batch.labels).sum()
    return int(accelerator.reduce(right, "sum")) / len(keep)
