"""Images in shards: what their members are called, and pixels of 16 bits per channel."""

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"),
    *("jfif", "jpe", "jp2", "pgm", "pbm", "pnm", "tga"),
)
"""Of what webdataset decodes, what photographs and scans are kept in."""


def is_image(name: str) -> bool:
    """Return whether a member of this name, in lower case, is an image.

    >>> is_image("jpg"), is_image("mask.png"), is_image("png.txt")
    (True, True, False)
    """
    return name.rpartition(".")[2] in IMAGE_SUFFIXES


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits in 8, any other as it is; what is more than 16 bits is white.

    Pillow's own conversions cut every value off at 255: nearly all of such an image would be white.
    Of floating point they know no range either: values in [0, 1] would be black.

    Raises:
        OSError: If the image is of floating point.
    """
    if image.mode == "F":
        raise OSError("its pixels are floating point; write them as 8 or 16 bits per channel")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
