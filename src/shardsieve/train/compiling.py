"""A network that is compiled where that pays, with results that do not depend on the past."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Compiled(nn.Module):
    """Runs full batches of images through `torch.compile`, and smaller ones as they are.

    Left alone, `torch.compile` makes a kernel for any size once it has met a second one. Rounding
    would then depend on which sizes a process met before, and a run that was killed and started
    again would part from an undisturbed one; a policy's last batches, of another size in every
    epoch, would be compiled again and again. Here every resolution is compiled once.
    """

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        """Compile nothing yet.

        Args:
            network: Whose weights these stay.
            batch_size: Of the batches to compile for.
        """
        super().__init__()
        self.network, self.batch_size = network, batch_size
        # In a list, for the same weights must not be found twice.
        self._fast: list[Any] = [torch.compile(network, dynamic=False)]

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of images (n, c, h, w)."""
        fast = len(images) == self.batch_size
        logits: Tensor = self._fast[0](images) if fast else self.network(images)
        return logits


class Uncompiled(nn.Module):
    """Runs a network that was compiled as it is, in the precision that a launch prepared it for.

    Accelerate casts where it is asked to prepare a module, which is the compiled one: an attack,
    which moves images by gradients of many passes, would be made in another precision.
    """

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.network, self._accelerator = network, accelerator

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of images (n, c, h, w), as float32."""
        with self._accelerator.autocast():
            logits: Tensor = self.network(images)
        return logits.float()
