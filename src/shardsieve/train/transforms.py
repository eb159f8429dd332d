"""Random transforms of cropped images in loader workers: torchvision's, or anybody's own.

What a sample becomes is a function of seed, epoch and sample id alone, whatever a transform draws
from the global generators.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shardsieve._errors import MissingDependencyError, ShardsieveError
from shardsieve.order import hash_key
from shardsieve.train.config import AUGMENTS
from shardsieve.train.factories import load_factory

Transform = Callable[[Tensor], Tensor]

_TRANSFORM = 0x5452
# TrivialAugmentWide of Müller and Hutter (arXiv 2103.10158) and RandAugment of Cubuk et al.
# (arXiv 1909.13719), both as torchvision's own training of ImageNet uses them.
_TORCHVISION = {"trivial": "TrivialAugmentWide", "rand": "RandAugment"}


@dataclass(frozen=True)
class RandomTransform:
    """Transforms a sample's pixels at random; picklable, whatever the transform is.

    Attributes:
        spec: A value of `augment`: `trivial`, `rand`, or `package.module:factory`.
        seed: Of every draw.
    """

    spec: str
    seed: int

    def __call__(self, pixels: Tensor, *, epoch: int, sample_id: int) -> Tensor:
        """Return uint8 (c, h, w) of the same shape.

        Raises:
            ValueError: If the transform gives something else.
        """
        transform = _made(self.spec)
        with drawing(hash_key(self.seed, _TRANSFORM, epoch, sample_id)):
            made = transform(pixels)
        found = (getattr(made, "dtype", type(made)), tuple(getattr(made, "shape", ())))
        if found != (torch.uint8, tuple(pixels.shape)):
            raise ValueError(
                f"augment {self.spec!r} must turn uint8 {tuple(pixels.shape)} into the same, got "
                f"{found[0]} {found[1]}; leave scaling, cropping and normalising to the settings"
            )
        return made

    def check(self, size: int, channels: int) -> None:
        """Try it on a black image of this size, before any work starts.

        Raises:
            ShardsieveError: If it cannot be made or applied.
            ValueError: If it gives no uint8 image of the same size.
        """
        black = torch.zeros((channels, size, size), dtype=torch.uint8)
        try:
            self(black, epoch=0, sample_id=0)
        except (ShardsieveError, ValueError):
            raise
        except Exception as error:
            raise ShardsieveError(
                f"augment {self.spec!r} cannot be applied to uint8 {tuple(black.shape)}: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error


def transform_of(augment: str, seed: int) -> RandomTransform | None:
    """Return what a setting of `augment` does to a crop; None if that is nothing more."""
    if augment in AUGMENTS and augment not in _TORCHVISION:
        return None
    return RandomTransform(augment, seed)


def check_augment(augment: str) -> str:
    """Return a setting of `augment` that can be used here: what it names is installed.

    Raises:
        MissingDependencyError: If it needs torchvision, which is not there.
        ShardsieveError: If there is no such augmentation.
    """
    if transform_of(augment, 0) is not None:
        _made(augment)
    return augment


@contextmanager
def drawing(key: int) -> Iterator[None]:
    """Let torch, Python and NumPy draw from `key` inside, and go on outside as if nothing was.

    Generators of GPUs are left alone: loader workers must not touch a device.
    """
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.default_generator.manual_seed(key % 2**63)
    random.seed(key)
    np.random.seed(key % 2**32)  # noqa: NPY002  # transforms of others may draw from it
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])  # noqa: NPY002


@lru_cache
def _made(spec: str) -> Transform:
    """Return the transform of this process: a lambda could not be sent to a worker."""
    if spec in _TORCHVISION:
        return _of_torchvision(spec)
    factory = load_factory("augment", spec, AUGMENTS)
    try:
        with drawing(0):
            made: Any = factory()
    except Exception as error:
        raise ShardsieveError(
            f"cannot make augment {spec!r}: {type(error).__name__}: {_first_line(error)}; "
            "it must be called with nothing and return the transform"
        ) from error
    if not callable(made):
        raise ShardsieveError(f"augment {spec!r} must return a transform, got {type(made)}")
    transform: Transform = made
    return transform


def _of_torchvision(spec: str) -> Transform:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # built for another torch, it is a RuntimeError
        raise MissingDependencyError(
            f"augment {spec} needs torchvision, which cannot be imported ({_first_line(error)}): "
            "pip install 'shardsieve[augment]', or augment with resized"
        ) from error
    transform: Transform = getattr(v2, _TORCHVISION[spec])(
        interpolation=v2.InterpolationMode.BILINEAR
    )
    return transform


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]
