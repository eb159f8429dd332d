"""A network to train, tried before the work starts."""

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
        for answer in _answers(model.to(accelerator.device), config, accelerator):
            _check(answer, config.model, num_classes, exactly=recorded)
    return model


def _answers(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> list[object]:
    sides = {config.size or 1, *(pixels for _, pixels in config.resolutions)}
    shapes = [(config.channels or 3, side, side) for side in sorted(sides)]
    with torch.random.fork_rng([]), torch.no_grad(), evaluated(model), accelerator.autocast():
        return [answer_to_black(model, shape, accelerator.device) for shape in shapes]


def _check(answer: object, model: str, num_classes: int, *, exactly: bool) -> None:
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else ()
    fits = len(shape) == 2 and shape[0] == 2 and shape[1] >= num_classes
    if not fits or (exactly and shape[1] > num_classes):
        raise ShardsieveError(
            f"model {model!r} must give {num_classes} logits for an image, got "
            f"{shape or type(answer).__name__} of two; let its factory take num_classes and "
            "return a network with so many outputs"
        )
