"""From per-sample losses to the loss of a batch."""

from typing import Any

import torch
from torch import Tensor


def weighted(losses: Tensor, batch: Any) -> Tensor:
    """Return the mean of weight times loss over a batch: what to call `backward` on.

    Args:
        losses: (b,), per sample (`reduction="none"`); those of fewer than 32 bits are weighted in
            float32.
        batch: What the loader gave: a dictionary with `__weight__`, a list of such samples, an
            object with `weights`, or the weights (b,) themselves.

    Raises:
        ValueError: If the losses are no tensor, or the batch does not carry one weight per loss.

    >>> weighted(torch.tensor([1.0, 2.0]), {"__weight__": torch.tensor([2.0, 1.0])})
    tensor(2.)
    """
    if not isinstance(losses, Tensor):
        raise ValueError(
            f"losses must be a tensor of one value per sample, got {type(losses).__name__}"
        )
    try:
        precision = torch.promote_types(losses.dtype, torch.float32)
        weights = torch.as_tensor(_weights(batch), dtype=precision)
        weights = weights.to(losses.device, non_blocking=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"batch must carry one weight per sample, got a {type(batch).__name__} without; let "
            "`collate_fn` hand on `__weight__`, or give the weights themselves"
        ) from error
    if losses.ndim != 1 or weights.shape != losses.shape:
        raise ValueError(
            f"losses must have one value per weight, got {tuple(losses.shape)} for "
            f"{tuple(weights.shape)}; use reduction='none'"
        )
    return (weights * losses).mean()


def _weights(batch: Any) -> Any:
    if isinstance(batch, dict):
        return batch["__weight__"]
    if isinstance(batch, list) and batch and isinstance(batch[0], dict):
        return [sample["__weight__"] for sample in batch]
    return getattr(batch, "weights", batch)
