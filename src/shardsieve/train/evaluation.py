"""Accuracy over a store, every sample counted once."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from shardsieve._errors import MissingDependencyError
from shardsieve.keepset import KeepSet
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import normalised
from shardsieve.train.launch import let_go
from shardsieve.train.loading import make_loader


def evaluate(
    model: nn.Module,
    store: Store,
    keep: KeepSet,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    matched: bool = False,
    numbers: NDArray[np.int64] | None = None,
) -> float:
    """Return the share of samples that are told right, in `[0, 1]`, every sample counted once.

    Args:
        model: On the device; gives P logits.
        store: Its classes are the labels of its index. A sample without one is not counted.
        keep: Samples to look at.
        config: Of the images.
        accelerator: The ranks share the samples.
        matched: What the model says are pseudo-classes; see `matched_accuracy`.
        numbers: What the model calls the store's classes, where it is not by their labels, and -1
            behind.
    """
    loader = accelerator.prepare(make_loader(store, keep, config, in_order=True)[0])
    model.eval()
    said, true, outputs = list[Tensor](), list[Tensor](), 0
    try:
        with torch.inference_mode(), accelerator.autocast():
            for batch in loader:
                logits = model(normalised(batch.images, config.normalise))
                outputs = logits.shape[1]
                said.append(logits.argmax(dim=1))
                # Without weight is what fills a batch up: it is counted where it belongs.
                true.append(batch.labels.where(batch.weights > 0, -1))
    finally:
        let_go(accelerator, loader)
    taken, labels = torch.cat(said), torch.cat(true)
    if numbers is not None:
        labels = torch.from_numpy(numbers).to(labels.device)[labels]
    known = max(int((store.labels()[store.rows(keep.ids())] >= 0).sum()), 1)
    if not matched:
        return int(accelerator.reduce((taken == labels).sum(), "sum")) / known
    # Of P by C counts: too many to be held for thousands of classes where nothing is matched.
    classes = int(store.labels().max(initial=0)) + 1
    pairs = (taken * classes + labels)[labels >= 0]
    table = torch.bincount(pairs, minlength=outputs * classes).reshape(outputs, classes)
    return matched_accuracy(accelerator.reduce(table, "sum").cpu(), known)


def matched_accuracy(table: Tensor, samples: int) -> float:
    """Return the share of samples told right when pseudo-classes stand for classes.

    Each stands for one class at most: those that give the highest accuracy (Kuhn 1955), which is
    how clusterings are compared.

    Args:
        table: int64 (P, C): how many samples are taken for a pseudo-class, by their class.
        samples: Looked at that have a label.

    >>> matched_accuracy(torch.tensor([[0, 5], [4, 1]]), 10)
    0.9
    """
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
