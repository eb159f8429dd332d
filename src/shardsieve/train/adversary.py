"""Adversarial training of the seed run: PGD and TRADES."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from shardsieve.scores.gradients import evaluated
from shardsieve.scores.inputs import one_of
from shardsieve.train.config import check_count, make_plain
from shardsieve.train.images import brightness

METHODS = ("trades", "pgd")
PREDICTIONS = ("adversarial", "clean")


@dataclass(frozen=True)
class Adversary:
    """How the seed run is attacked while it trains, and which predictions are recorded.

    The defaults are those of Nieth et al., arXiv 2406.13283, on CIFAR-10.

    Attributes:
        method: `trades` (Zhang et al., ICML 2019, arXiv 1901.08573: cross entropy of the clean
            image plus beta times the divergence of the attacked from the clean prediction) or
            `pgd` (Madry et al., ICLR 2018, arXiv 1706.06083: cross entropy of the attacked image).
        epsilon: Largest change of a pixel, in `(0, 1]` where 1 is the whole range of brightness.
        step: Change of one step, likewise.
        steps: Steps of projected gradient ascent, at least 1.
        beta: Of TRADES, at least 0.
        predictions: Record the predictions for the attacked images (`adversarial`) or for the
            `clean` ones.
    """

    method: str = "trades"
    epsilon: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    beta: float = 5.0
    predictions: str = "adversarial"

    def __post_init__(self) -> None:
        make_plain(self)
        one_of("method", self.method, METHODS)
        one_of("predictions", self.predictions, PREDICTIONS)
        for name in ("epsilon", "step"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must lie in (0, 1], got {getattr(self, name)}; 8/255 is 0.0314"
                )
        check_count("steps", self.steps, 1)
        if not self.beta >= 0 or math.isinf(self.beta):
            raise ValueError(f"beta must be a number of at least 0, got {self.beta}")

    @property
    def passes(self) -> tuple[int, int]:
        """How often a sample is sent forward, and how often backward too, in one epoch.

        >>> Adversary(method="trades", steps=10).passes, Adversary(method="pgd", steps=10).passes
        ((13, 12), (11, 11))
        """
        if self.method == "trades":  # the attack's target, its steps, and both predictions
            return self.steps + 3, self.steps + 2
        return self.steps + 1 + (self.predictions == "clean"), self.steps + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return asdict(self)

    def __call__(
        self,
        model: nn.Module,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        normalise: str = "half",
    ) -> tuple[Tensor, Tensor]:
        """Return the logits to record, and the losses to descend, one per sample.

        Args:
            model: As prepared for training, maybe wrapped for several ranks.
            network: The bare model.
            images: As of `normalised`, (n, c, h, w).
            labels: int64 (n,).
            loss: Maps logits and labels to the losses (n,).
            normalise: As in `normalised`: how the images were.
        """
        attacked = self.attack(network, images, labels, normalise=normalise)
        # The wrapped model comes first: it sends buffers around, which a later pass must not undo.
        adversarial: Tensor = model(attacked)
        if self.method == "pgd":
            clean = adversarial
            if self.predictions == "clean":
                with torch.no_grad(), evaluated(network):
                    clean = network(images)
            return clean if self.predictions == "clean" else adversarial, loss(adversarial, labels)
        clean = network(images)
        apart = kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="none").sum(dim=1)
        recorded = clean if self.predictions == "clean" else adversarial
        return recorded, loss(clean, labels) + self.beta * apart

    def attack(
        self, network: nn.Module, images: Tensor, labels: Tensor, *, normalise: str = "half"
    ) -> Tensor:
        """Return attacked images: each pixel within epsilon and the range of brightness.

        Ascends the divergence from the clean prediction (TRADES, from a small random start) or the
        cross entropy (PGD, from a uniform one), in eval mode; the network's mode and gradients are
        left as they were. The start is drawn from torch's global generator.
        """
        black, white = brightness(images.device, normalise)
        reach, step = self.epsilon * (white - black), self.step * (white - black)

        def within(moved: Tensor) -> Tensor:
            near = torch.minimum(torch.maximum(moved, images - reach), images + reach)
            return torch.minimum(torch.maximum(near, black), white)

        with evaluated(network):
            if self.method == "trades":
                with torch.no_grad():
                    target = network(images).softmax(1)
                start = 0.001 * torch.randn_like(images) * (white - black)
            else:
                start = (2 * torch.rand_like(images) - 1) * reach
            attacked = within(images + start)
            for _ in range(self.steps):
                attacked = attacked.detach().requires_grad_(True)
                with torch.enable_grad():
                    logits = network(attacked)
                    if self.method == "trades":
                        goal = kl_div(logits.log_softmax(1), target, reduction="sum")
                    else:
                        goal = nn.functional.cross_entropy(logits, labels, reduction="sum")
                    (slope,) = torch.autograd.grad(goal, attacked)
                attacked = within(attacked.detach() + step * slope.sign())
        return attacked.detach()
