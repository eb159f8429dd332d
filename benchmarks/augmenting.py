"""Images that one loader worker decodes and augments per processor second.

    python benchmarks/augmenting.py --images FOLDER [--samples 400] [--rounds 5]

FOLDER's photographs, decoded by `ImageDecoder` at sizes of progressive training: cut in the centre,
and with every `augment` that works in workers. `simplejpeg` is `resized` by that decoder; the
record says of how many crops its pixels were those of Pillow. Alternating in one run, one thread.
Writes `records/augmenting.json`.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating, photographs, rates, write_record
from PIL import Image, features
from simplejpeg import decode_jpeg, decode_jpeg_header

from shardsieve.train.crops import RandomCrops
from shardsieve.train.images import ImageDecoder
from shardsieve.train.transforms import transform_of

SIZES = (160, 224)
AUGMENTS = ("resized", "trivial", "rand")

Decode = Callable[[dict[str, Any]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = [
        {"jpg": image, "cls": b"7", "__id__": number}
        for number, image in enumerate(photographs(options.images, options.samples))
    ]
    rows, same = [], 0
    for size in SIZES:
        decoders = decoders_of(size)
        pairs = ((decoders["resized"](one), decoders["simplejpeg"](one)) for one in samples)
        same += sum(torch.equal(ours[0], theirs) for ours, theirs in pairs)
        readers = {name: partial(through, one, samples) for name, one in decoders.items()}
        taken = alternating(readers, options.rounds, len(samples))
        rows.append({"size": size, **rates(taken, len(samples))})
    about = {"samples": len(samples), "rounds": options.rounds}
    about["mean bytes"] = round(float(np.mean([len(one["jpg"]) for one in samples])))
    about |= {"crops compared": len(SIZES) * len(samples), "of the same pixels": same}
    about |= {one: version(one) for one in ("pillow", "simplejpeg", "torchvision")}
    about["libjpeg-turbo of pillow"] = features.version("libjpeg_turbo")
    write_record("augmenting", about, "images per processor second", rows)


def decoders_of(size: int) -> dict[str, Decode]:
    crops = RandomCrops(0)
    decoders: dict[str, Decode] = {"centre": ImageDecoder(size)}
    for name in AUGMENTS:
        decoders[name] = ImageDecoder(size, crops=crops, transform=transform_of(name, 0))
    decoders["simplejpeg"] = partial(by_simplejpeg, crops, size)
    return decoders


def through(decode: Decode, samples: list[dict[str, Any]]) -> int:
    return sum(1 for sample in samples if decode(sample) is not None)


def by_simplejpeg(crops: RandomCrops, size: int, sample: dict[str, Any]) -> torch.Tensor:
    """Return what `resized` makes of a sample, decoded at the scale that Pillow's draft takes."""
    high, wide = decode_jpeg_header(sample["jpg"])[:2]
    crop = crops.crop(sample["__id__"], wide, high)
    scale = size / min(crop.right - crop.left, crop.bottom - crop.top)
    fit = min(wide // np.ceil(wide * scale), high // np.ceil(high * scale)) if scale < 1 else 1
    part = max(one for one in (1, 2, 4, 8) if one <= fit)
    least = {"min_height": -(-high // part), "min_width": -(-wide // part)} if part > 1 else {}
    image = Image.fromarray(decode_jpeg(sample["jpg"], **least))
    across, down = image.size[0] / wide, image.size[1] / high
    box = (crop.left * across, crop.top * down, crop.right * across, crop.bottom * down)
    made = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if crop.mirrored:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(made).transpose(2, 0, 1)))


if __name__ == "__main__":
    main()
