"""A running average of a network that no step waits for."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class RunningAverage(AveragedModel):
    """Torch's average of parameters and buffers, without its questions to the device.

    Torch's asks a counter on the device twice in every step whether it is the first one, and so
    waits for all that the device has to do. Here the first step after a start asks.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float) -> None:
        average: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(model, device, multi_avg_fn=average, use_buffers=True)
        self._average, self._has_begun = average, False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of a model on the average's device."""
        if not self._has_begun:
            super().update_parameters(model)
            self._has_begun = True
            return
        ours, theirs = ([*one.parameters(), *one.buffers()] for one in (self.module, model))
        for kind in {values.dtype for values in ours}:
            pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[0].dtype == kind]
            self._average(*map(list, zip(*pairs, strict=True)), self.n_averaged)
        self.n_averaged += 1

    def load_state_dict(self, *state: Any, **how: Any) -> Any:
        """Go on from a state, which may be that of before the first step."""
        self._has_begun = False
        return super().load_state_dict(*state, **how)
