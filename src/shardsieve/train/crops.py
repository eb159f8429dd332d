"""Random resized crops in loader workers, a function of seed, epoch and sample id alone."""

import math
from typing import NamedTuple

import torch
from PIL import Image

from shardsieve.loaders.shared import shared
from shardsieve.order import hash_key

_ATTEMPTS = 10
_CROP = 0x4352


class Crop(NamedTuple):
    """A box in pixels and whether it is mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool


class RandomCrops:
    """Where each sample is cropped: Szegedy et al. 2015 in the form of torchvision.

    An area between 8 % and all of the image, sides in a ratio between 3:4 and 4:3, the largest
    allowed box in the centre when ten draws do not fit, and half of the crops mirrored. Workers
    that run already see `set_epoch`: the epoch lies in shared memory.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._epoch = shared(torch.zeros(1, dtype=torch.int64))

    @property
    def epoch(self) -> int:
        """The epoch that is being cropped."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Crop otherwise in every epoch."""
        self._epoch[0] = epoch

    def crop(self, sample_id: int, width: int, height: int) -> Crop:
        """Return the crop of an image of this size in this epoch."""
        epoch = self.epoch

        def draw(number: int) -> float:
            return hash_key(self.seed, _CROP, epoch, sample_id, number) / 2**64

        mirrored = draw(0) < 0.5
        for attempt in range(_ATTEMPTS):
            first = 1 + 4 * attempt
            area = width * height * (0.08 + 0.92 * draw(first))
            ratio = math.exp(math.log(3 / 4) + draw(first + 1) * math.log(16 / 9))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left = math.floor(draw(first + 2) * (width - wide + 1))
                top = math.floor(draw(first + 3) * (height - high + 1))
                return Crop(left, top, left + wide, top + high, mirrored)
        wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - wide) // 2, (height - high) // 2
        return Crop(left, top, left + wide, top + high, mirrored)


def cropped(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Return the crop scaled to a square; a JPEG is decoded no larger than that needs."""
    width, height = image.size
    scale, drafted = size / min(crop.right - crop.left, crop.bottom - crop.top), None
    if image.format == "JPEG" and scale < 1:
        drafted = image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    # A side that the decoder does not divide evenly is rounded up: the image ends within a pixel.
    wide, high = drafted[1][2:] if drafted else (width, height)
    across, down = wide / width, high / height
    box = (crop.left * across, crop.top * down, crop.right * across, crop.bottom * down)
    made = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else made
