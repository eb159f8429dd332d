"""A network to train, tried before the work starts."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from shardsieve._errors import ShardsieveError
from shardsieve.scores.gradients import evaluated
from shardsieve.train.config import TrainConfig
from shardsieve.train.nets import MODELS, answer_to_black, load_model


def fresh_model(config: TrainConfig, num_classes: int, accelerator: Accelerator) -> nn.Module:
    """Return the model of a run, with the first weights of its seed.

    Anybody's own is moved to the device and tried on black images of every size that it will be
    given; a built-in one is known.

    Args:
        config: Settings; the size must be known.
        num_classes: Logits that it must give for an image.
        accelerator: From `make_accelerator`.

    Raises:
        ShardsieveError: As `load_model`, or if the network cannot take the images, or answers
            with something else than that many logits.
    """
    set_seed(config.seed)
    model = load_model(config.model, num_classes, config.channels or 3)
    if config.model not in MODELS:
        _try(model.to(accelerator.device), config, num_classes, accelerator)
    return model


def _try(model: nn.Module, config: TrainConfig, num_classes: int, accelerator: Accelerator) -> None:
    sides = {config.size or 1, *(pixels for _, pixels in config.resolutions)}
    with torch.random.fork_rng([]), torch.no_grad(), evaluated(model), accelerator.autocast():
        for side in sorted(sides):
            shape = (config.channels or 3, side, side)
            answer: object = answer_to_black(model, shape, accelerator.device)
            if isinstance(answer, Tensor) and answer.shape == (2, num_classes):
                continue
            got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise ShardsieveError(
                f"model {config.model!r} must give {num_classes} logits for an image, got {got} "
                "of two; let its factory take num_classes and return a network with so many outputs"
            )
