"""Accuracy over a store, every sample counted once."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shardsieve._errors import MissingDependencyError
from shardsieve.keepset import KeepSet
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import normalised
from shardsieve.train.loading import make_loader


def evaluate(
    model: nn.Module, store: Store, keep: KeepSet, config: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """Return how many samples of a class were taken for which, every sample counted once.

    Args:
        model: On the device; gives P logits.
        store: Its C classes are the labels of its index. A sample without one is not counted.
        keep: Samples to look at.
        config: Of the images.
        accelerator: The ranks share the samples.

    Returns:
        int64 (P, C) on the CPU: by what the model says and what is true.
    """
    loader = accelerator.prepare(make_loader(store, keep, config, in_order=True)[0])
    model.eval()
    classes = int(store.labels().max(initial=0)) + 1
    table: Any = None
    with torch.inference_mode(), accelerator.autocast():
        for batch in loader:
            logits = model(normalised(batch.images, config.normalise))
            if table is None:
                shape = (logits.shape[1], classes)
                table = torch.zeros(shape, dtype=torch.int64, device=logits.device)
            known = batch.labels >= 0
            pairs = logits.argmax(dim=1)[known] * classes + batch.labels[known]
            table += torch.bincount(pairs, minlength=table.numel()).reshape(table.shape)
    found: Tensor = accelerator.reduce(table, "sum").cpu()
    return found


def accuracy(table: Tensor, samples: int, *, matched: bool = False) -> float:
    """Return the share of samples that were told right, in `[0, 1]`.

    Args:
        table: As of `evaluate`.
        samples: Looked at that have a label.
        matched: What the model says are pseudo-classes, each of which stands for one class at most:
            those that give the highest accuracy (Kuhn 1955), which is how clusterings are compared.

    >>> table = torch.tensor([[0, 5], [4, 1]])
    >>> accuracy(table, 10), accuracy(table, 10, matched=True)
    (0.1, 0.9)
    """
    if not matched:
        return int(table.diagonal().sum()) / samples
    rows, columns = need_matching()(table.numpy(), maximize=True)
    return int(table[rows, columns].sum()) / samples


def need_matching() -> Any:
    """Return scipy's assignment, or raise a MissingDependencyError that says how to get it."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError(
            "evaluating a run on pseudo-labels needs scipy; pip install 'shardsieve[direct]'"
        ) from error
    return linear_sum_assignment
