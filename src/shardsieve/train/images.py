"""From a sample's bytes to normalised image batches."""

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad

from shardsieve._errors import ShardsieveError, UnreadableSampleError
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.store.store import Store

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm")
LARGEST_GUESS = 224

Sample = dict[str, Any]
Decoded = tuple[Tensor, int, int]


class Batch(NamedTuple):
    """What the training loop takes.

    Attributes:
        images: float32 (n, c, h, w).
        labels: int64 (n,).
        ids: int64 (n,), sample ids.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor


@dataclass(frozen=True)
class ImageDecoder:
    """Turns a raw sample into (image, label, id); picklable, without randomness.

    Attributes:
        size: Side in pixels: scaled so that it fills the square, then cut in the centre. None
            keeps the size.
        channels: 3 for colour, 1 for grey.
        label_member: Suffix of the member that holds the label as a decimal number.
    """

    size: int | None = None
    channels: int = 3
    label_member: str = "cls"

    def __call__(self, sample: Sample) -> Decoded:
        """Return (float32 (c, h, w), label, id). A missing image or label is a ValueError."""
        pixels, label, sample_id = self.raw(sample)
        return normalised(pixels), label, sample_id

    def raw(self, sample: Sample) -> Decoded:
        """Return the same with uint8 pixels."""
        text = sample.get(self.label_member)
        if text is None:
            raise ValueError(f"a sample must have a {self.label_member} member, got none")
        image = image_of(sample).convert("RGB" if self.channels == 3 else "L")
        if self.size is not None and image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8)
        pixels = pixels.reshape(*pixels.shape[:2], self.channels).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)), int(text), int(sample["__id__"])


def collate(samples: list[Decoded]) -> Batch:
    """Return the batch of decoded samples."""
    if not samples:
        raise UnreadableSampleError("no sample of a whole batch can be read; check the shards")
    images, labels, ids = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(ids, dtype=torch.int64))


def normalised(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as float32 with mean 0.5 and standard deviation 0.25 taken out."""
    return pixels.float().div_(63.75).sub_(2.0)


def augment(images: Tensor, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """Return images (n, c, h, w), each cropped at random from itself padded by h // 8.

    Args:
        images: On any device.
        generator: A CPU generator; decides every crop and flip.
        flip: Mirror half of them; wrong for digits and text.
    """
    count, channels, height, width = images.shape
    border = height // 8
    shift = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator)
    rows, columns = shift[0] + torch.arange(height), shift[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    device = images.device
    rows, columns = rows[:, None, :, None].to(device), columns[:, None, None, :].to(device)
    sample = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return pad(images, (border,) * 4)[sample, channel, rows, columns]


def fixed_size(store: Store) -> tuple[int, int]:
    """Return (side in pixels, channels) guessed from the first sample; the side is at most 224.

    Raises:
        ShardsieveError: If the first sample holds no image.
    """
    sample = ShardDataset(store)[int(store.ids()[0])]
    try:
        image = image_of(sample)
    except (ValueError, OSError) as error:
        raise ShardsieveError(f"cannot guess the image size: {error}; give it") from error
    channels = 1 if image.mode in {"1", "L", "I;16"} else 3
    return min(max(image.size), LARGEST_GUESS), channels


def image_of(sample: Sample) -> Image.Image:
    """Return the image of a raw sample, not yet decoded; ValueError if it has none."""
    for member in IMAGE_MEMBERS:
        if member in sample:
            return Image.open(io.BytesIO(sample[member]))
    members = ", ".join(name for name in sample if not name.startswith("__"))
    raise ValueError(f"a sample must have one of {', '.join(IMAGE_MEMBERS)}, got {members}")
