"""From a sample's bytes to normalised image batches."""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import get_worker_info

from shardsieve._errors import ShardsieveError, UnreadableSampleError
from shardsieve.loaders.dataset import ShardDataset
from shardsieve.loaders.shared import shared
from shardsieve.shards.pixels import IMAGE_SUFFIXES, in_8_bits, is_image
from shardsieve.store.store import Store
from shardsieve.train.crops import RandomCrops, cropped
from shardsieve.train.transforms import RandomTransform

LARGEST_GUESS = 224

Sample = dict[str, Any]
Decoded = tuple[Tensor, int, int, float]

# Mean and standard deviation of pixels in [0, 1], by channel.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,), (0.25,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Batch(NamedTuple):
    """What the training loop takes.

    Attributes:
        images: uint8 (n, c, h, w), not yet normalised.
        labels: int64 (n,).
        ids: int64 (n,), sample ids.
        weights: float32 (n,), loss weights of this epoch.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ImageDecoder:
    """Turns a raw sample into (pixels, label, id, weight); picklable, no randomness of its own.

    Attributes:
        size: Side in pixels: scaled so that it fills the square, then cut in the centre. None
            keeps the size.
        channels: 3 for colour, 1 for grey.
        label_member: Suffix of the member that holds the label as a decimal number, for samples
            without `__label__`.
        crops: Crop at random instead of in the centre; needs a size.
        transform: What is done to a random crop.
    """

    size: int | None = None
    channels: int = 3
    label_member: str = "cls"
    crops: RandomCrops | None = None
    transform: RandomTransform | None = None

    def __call__(self, sample: Sample) -> Decoded:
        """Return (uint8 (c, h, w), label, id, weight). No image or no label is a ValueError."""
        label = sample.get("__label__", sample.get(self.label_member))
        try:
            label = int(label)  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            said = "none" if label is None else repr(label)[:40]
            raise ValueError(
                f"a sample must have a {self.label_member} member with the number of its class, "
                f"got {said}; or say ShardDataset(store, decode, labels=store.labels())"
            ) from error
        sample_id = int(sample["__id__"])
        image, mode = image_of(sample), "RGB" if self.channels == 3 else "L"
        if self.crops is not None and self.size is not None:
            crop = self.crops.crop(sample_id, *image.size)
            # A palette cannot be blended.
            image = image if image.mode in ("RGB", "L") else image.convert(mode)
            image = cropped(image, crop, self.size)
        image = image.convert(mode)
        if self.size is not None and image.size != (self.size, self.size):
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.array(image, dtype=np.uint8)
        pixels = pixels.reshape(*pixels.shape[:2], self.channels).transpose(2, 0, 1)
        image_tensor = torch.from_numpy(np.ascontiguousarray(pixels))
        if self.crops is not None and self.transform is not None:
            image_tensor = self.transform(image_tensor, epoch=self.crops.epoch, sample_id=sample_id)
        return image_tensor, label, sample_id, float(sample.get("__weight__", 1.0))


def collate(samples: list[Decoded]) -> Batch:
    """Return the batch of decoded samples; of a loader's worker, in shared memory."""
    if not samples:
        raise UnreadableSampleError("no sample of a whole batch can be read; check the shards")
    images, labels, ids, weights = zip(*samples, strict=True)
    batch = Batch(
        torch.stack(images),
        torch.tensor(labels),
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float32),
    )
    # In a worker torch would share them in a thread whose errors nobody hears: the loop would wait
    # without end.
    return batch if get_worker_info() is None else Batch(*map(shared, batch))


def normalised(pixels: Tensor, how: str = "half") -> Tensor:
    """Return uint8 pixels (n, c, h, w) as float32 less mean over deviation, on their device.

    Args:
        pixels: Bytes travel to the device at a quarter of the size of floats.
        how: One of `NORMALISATIONS`; `half` is 0.5 and 0.25, `imagenet` ImageNet's, for 3 channels.
    """
    mean, deviation = _on(pixels.device, how)
    return pixels.float().sub_(mean).div_(deviation)


def brightness(device: torch.device, how: str = "half") -> tuple[Tensor, Tensor]:
    """Return what `normalised` makes of black and of white, (c, 1, 1) each; c is 1 for `half`."""
    mean, deviation = _on(device, how)
    return -mean / deviation, (255 - mean) / deviation


@lru_cache
def _on(device: torch.device, how: str) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of byte values; copied to a device once, not in every step."""
    mean, deviation = (
        torch.tensor(x, device=device).reshape(-1, 1, 1) * 255 for x in NORMALISATIONS[how]
    )
    return mean, deviation


def augment(images: Tensor, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """Return images (n, c, h, w), each cropped at random from itself padded by h // 8.

    Args:
        images: On any device.
        generator: A CPU generator; decides every crop and flip.
        flip: Mirror half of them; wrong for digits and text.
    """
    count, _, height, _ = images.shape
    border = height // 8
    # Only draws are sent, some kilobytes: the host need not wait for the device to take them.
    to: Any = {"device": images.device, "non_blocking": True}
    shift = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator).to(**to)
    sample, channel, row, column = (torch.arange(n, device=images.device) for n in images.shape)
    rows, columns = shift[0] + row, shift[1] + column
    if flip:
        mirrored = (torch.rand((count, 1), generator=generator) < 0.5).to(**to)
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows[:, None, :, None], columns[:, None, None, :]
    sample, channel = sample[:, None, None, None], channel[:, None, None]
    return pad(images, (border,) * 4)[sample, channel, rows, columns]


def fixed_size(
    store: Store, size: int | None = None, channels: int | None = None
) -> tuple[int, int]:
    """Return (side in pixels, channels): as given, else guessed from the first sample.

    A guessed side is at most 224. Where both are given the sample is not looked at.

    Raises:
        ShardsieveError: If the first sample holds no image.
    """
    if size is not None and channels is not None:
        return size, channels
    sample = ShardDataset(store)[int(store.ids()[0])]
    try:
        image = image_of(sample)
    except (ValueError, OSError) as error:
        raise ShardsieveError(
            f"cannot guess the image size from sample {sample['__key__']} of shard "
            f"{sample['__url__']}: {error}; give size and channels"
        ) from error
    guessed = 1 if image.mode in {"1", "L"} else 3
    return size or min(max(image.size), LARGEST_GUESS), channels or guessed


def image_of(sample: Sample) -> Image.Image:
    """Return the image of a raw sample; ValueError or OSError if it has none.

    Of several with names of their own, as in a `.beton`, it is `image`, else the first one.
    """
    named = sorted(filter(is_image, sample), key=lambda name: not name.startswith("image."))
    for member in (*IMAGE_SUFFIXES, *named):
        if member in sample:
            return _opened(sample[member])
    members = ", ".join(name for name in sample if not name.startswith("__"))
    raise ValueError(f"a sample must have one of {', '.join(IMAGE_SUFFIXES)}, got {members}")


def _opened(data: bytes) -> Image.Image:
    try:
        return in_8_bits(Image.open(io.BytesIO(data)))
    except UnidentifiedImageError as error:  # whose words name a place in memory
        raise OSError("it is no image that Pillow knows") from error
