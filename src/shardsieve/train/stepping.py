"""One optimiser step: forward, weighted loss, backward, update, running average."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from shardsieve.order import hash_key
from shardsieve.policy.weights import weighted
from shardsieve.train.adversary import Adversary
from shardsieve.train.averaging import RunningAverage
from shardsieve.train.compiling import Compiled, Uncompiled
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import Batch, augment, normalised


class Stepper:
    """A model, its SGD optimiser and the running average of its weights.

    All randomness of a batch (dropout, crops, attacks) is drawn from seed, epoch, place and rank.

    Attributes:
        bare: The model as it was given: its weights are the ones that train.
        model: The same prepared for this launch.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        accelerator: Accelerator,
        adversary: Adversary | None = None,
    ) -> None:
        self.config, self.accelerator, self.adversary = config, accelerator, adversary
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.bare = model
        optimizer = torch.optim.SGD(
            model.parameters(),
            config.rate(0),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        self._ema = RunningAverage(model, accelerator.device, config.ema) if config.ema else None
        running = Compiled(model, config.batch_size) if config.compile else model
        self.model, self.optimizer = accelerator.prepare(running, optimizer)
        self._attacked = Uncompiled(model, accelerator) if config.compile else model

    def prepared(self) -> Iterator[Any]:
        """Yield what Accelerate prepared: the optimiser, and the model with what is around it."""
        yield self.optimizer
        yield from self.model.modules()

    @property
    def network(self) -> nn.Module:
        """What is evaluated and saved: the running average, if there is one."""
        return self.bare if self._ema is None else self._ema.module

    def evaluated(self) -> nn.Module:
        """Return the network to evaluate with; every rank must call it."""
        if self._ema is None:
            prepared: nn.Module = self.model
            return prepared
        self._share_statistics(self._ema)
        return self._ema.module

    def batch(
        self, batch: Batch, *, epoch: int, place: int, share: float, last: bool
    ) -> tuple[Tensor, Tensor]:
        """Send a batch forward and backward; return its logits and its losses, one per sample.

        Args:
            batch: On the device.
            epoch: From 0.
            place: Samples of the epoch done before it, over all ranks.
            share: Of the samples of this rank's optimiser step, by the rank's weight among ranks:
                batches of unlike sizes make the step of all their samples at once.
            last: Whether it is the last of them: only then are gradients joined over ranks.
        """
        draw = hash_key(self.config.seed, epoch, place, self.accelerator.process_index) % 2**63
        torch.manual_seed(draw)
        images = self._prepared(batch.images, epoch, draw)
        joined = nullcontext() if last else self.accelerator.no_sync(self.model)
        with joined, _normalised_as_before(self.bare, len(images)):
            logits, losses = self._forward(images, batch.labels)
            self.accelerator.backward(weighted(losses, batch) * share)
        return logits, losses.detach()

    def update(self, progress: float) -> None:
        """Take the step; `progress` is the share of the run that was done before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(progress)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update_parameters(self.bare)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number; one that is not stays so for good."""
        return bool(torch.stack([w.isfinite().all() for w in self.bare.parameters()]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser, average and the scaler of half precision."""
        scaler = self.accelerator.scaler
        return {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict(),
            "ema": self._ema.state_dict() if self._ema is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.bare.load_state_dict(state["model"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = partial(cross_entropy, reduction="none", label_smoothing=self.config.label_smoothing)
        if self.adversary is not None:
            self._share_statistics(self.bare)  # the attack asks it alone
            return self.adversary(
                self.model, self._attacked, images, labels, loss, normalise=self.config.normalise
            )
        logits: Tensor = self.model(images)
        return logits, loss(logits, labels)

    def _share_statistics(self, network: nn.Module) -> None:
        """Give every rank the batch statistics of rank 0: each has its own, and these are saved."""
        if self.accelerator.num_processes > 1:
            for buffer in network.buffers():
                buffer.copy_(broadcast(buffer.clone()))

    def _prepared(self, pixels: Tensor, epoch: int, draw: int) -> Tensor:
        images = normalised(pixels, self.config.normalise)
        if self.config.augment in ("crop", "flip"):
            generator = torch.Generator().manual_seed(draw)
            images = augment(images, generator, flip=self.config.augment == "flip")
        side = self.config.resolution(epoch)
        if side is not None and side != images.shape[-1]:
            images = interpolate(images, (side, side), mode="bilinear", antialias=True)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images


@contextmanager
def _normalised_as_before(model: nn.Module, samples: int) -> Iterator[None]:
    """Let batch normalisation go by its running statistics where it has one value per channel.

    An epoch's last batch may be one sample, and on a map of one pixel torch refuses that. Layers
    with larger maps go by that sample's own statistics, as ever: running ones of the first epochs
    would throw the network off.
    """
    if samples > 1:
        yield
        return
    layers = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.training]
    # Ranks that share their statistics have more samples than this one, and wait for each other.
    layers = [one for one in layers if not isinstance(one, nn.SyncBatchNorm)]
    hooks = [one.register_forward_pre_hook(_settle) for one in layers]
    try:
        yield
    finally:
        for one, hook in zip(layers, hooks, strict=True):
            hook.remove()
            one.train()


def _settle(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    if inputs[0][:, 0].numel() == 1:
        layer.eval()
