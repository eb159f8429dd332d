"""A network to train, tried before the work starts."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from shardsieve._errors import ShardsieveError
from shardsieve.scores.gradients import evaluated
from shardsieve.train.config import TrainConfig
from shardsieve.train.nets import MODELS, answer_to_black, load_model


def fresh_model(
    config: TrainConfig, num_classes: int, accelerator: Accelerator, *, recorded: bool = False
) -> nn.Module:
    """Return the model of a run, with the first weights of its seed.

    Anybody's own is moved to the device and tried on black images of every size that it will be
    given; a built-in one is known.

    Args:
        config: Settings; the size must be known.
        num_classes: Logits that it must give for an image, or more of them.
        accelerator: From `make_accelerator`.
        recorded: More of them are too many.

    Raises:
        ShardsieveError: As `load_model`, or if the network cannot take the images, or answers
            with something else than those logits.
    """
    set_seed(config.seed)
    model = load_model(config.model, num_classes, config.channels or 3)
    if config.model not in MODELS:
        most = num_classes if recorded else sys.maxsize - 1
        _try(model.to(accelerator.device), config, range(num_classes, most + 1), accelerator)
    return model


def _try(model: nn.Module, config: TrainConfig, logits: range, accelerator: Accelerator) -> None:
    sides = {config.size or 1, *(pixels for _, pixels in config.resolutions)}
    with torch.random.fork_rng([]), torch.no_grad(), evaluated(model), accelerator.autocast():
        for side in sorted(sides):
            image = (config.channels or 3, side, side)
            answer: object = answer_to_black(model, image, accelerator.device)
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else ()
            if len(shape) == 2 and shape[0] == 2 and shape[1] in logits:
                continue
            got = shape or type(answer).__name__
            raise ShardsieveError(
                f"model {config.model!r} must give {logits.start} logits for an image, got {got} "
                "of two; let its factory take num_classes and return a network with so many outputs"
            )
