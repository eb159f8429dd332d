"""GraNd over all parameters of a network, by per-sample gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from shardsieve.scores.inputs import Floats, whole_number

Loss = Callable[[Tensor, Tensor], Tensor]


def grand(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Loss = nn.functional.cross_entropy,
    chunk: int = 32,
) -> Floats:
    """Return the norm of the loss's gradient in all trainable parameters, float64 (n,).

    GraNd: Paul, Ganguli, Dziugaite, NeurIPS 2021, arXiv 2107.07075; high is kept first. The paper
    takes the mean of the norms over 10 networks at initialisation. The model is evaluated in eval
    mode, so that one sample's gradient depends on no other, and left in the mode it was in.

    Args:
        model: Maps (n, ...) to logits (n, C).
        inputs: (n, ...), on the model's device.
        labels: int64 (n,).
        loss: Maps logits (1, C) and a label (1,) to a scalar.
        chunk: Samples whose gradients are held at once: chunk times the model's size.

    Raises:
        ValueError: If lengths differ or chunk is below 1.

    >>> model = nn.Linear(2, 2)
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> grand(model, torch.tensor([[1.0, 0.0]]), torch.tensor([0])).round(4).tolist()
    [1.0]
    """
    whole_number("chunk", chunk, 1)
    if len(inputs) != len(labels):
        raise ValueError(f"labels must have length {len(inputs)}, got {len(labels)}; one a sample")
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= {name: buffer.detach() for name, buffer in model.named_buffers()}

    def cost(weights: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**weights, **frozen}, (one[None],))
        return loss(logits, label[None])

    norms = np.empty(len(inputs))
    with evaluated(model):
        for start in range(0, len(inputs), chunk):
            part = slice(start, start + chunk)
            gradients = vmap(grad(cost), in_dims=(None, 0, 0))(
                parameters, inputs[part], labels[part]
            )
            squares = sum(g.flatten(1).double().square().sum(dim=1) for g in gradients.values())
            norms[part] = torch.as_tensor(squares).sqrt().cpu().numpy()
    return norms


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, every module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
