"""An FFCV decoder of bounded memory, which tells what it could not decode.

FFCV's own ones keep room for an image of the greatest width and height in the file in every place
of every batch, and leave the pixels of an earlier image where a JPEG is damaged.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.libffcv import imdecode, memcpy, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler

MOST_ROOM = 4 << 30
"""Bytes of all images that wait to be scaled."""


class SquareDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Cuts the centre square of an image and scales it to `side`, as CenterCropRGBImageDecoder.

    Images of that size stay as they are. Those that cannot be decoded, or not without a warning,
    or are larger than there is room for, are left black.
    """

    def __init__(self, side: int, images: int) -> None:
        """Keep the arguments.

        Args:
            side: Pixels.
            images: How many are held at once: a batch, by the batches that FFCV is ahead.
        """
        super().__init__()
        self._side, self._images = side, images

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, tuple[Any, ...]]:
        """Ask for the squares, and for room for whole JPEGs."""
        shape, pixels = (self._side, self._side, 3), np.dtype("u1")
        sizes = 3 * self.metadata["width"].astype(np.int64) * self.metadata["height"]
        largest = int(sizes[self.metadata["mode"] == IMAGE_MODES["jpg"]].max(initial=1))
        room = min(largest, max(MOST_ROOM // self._images, 1))
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=pixels)
        return state, (AllocationQuery(shape, pixels), AllocationQuery((room,), pixels))

    def generate_code(self) -> Callable[..., Any]:
        """Return what FFCV compiles."""
        side, jpg, read = self._side, IMAGE_MODES["jpg"], self.memory_read
        over, decoded = Compiler.get_iterator(), Compiler.compile(imdecode)
        copy, scaled = Compiler.compile(memcpy), Compiler.compile(resize_crop)

        def decode(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            squares, room = memory
            for place in over(len(batch_indices)):
                field = metadata[batch_indices[place]]
                data, square = read(field["data_ptr"], storage_state), squares[place]
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                size = np.int64(height) * np.int64(width) * 3
                fits = height == side and width == side
                is_jpg = field["mode"] == jpg
                whole = square.reshape(-1) if fits else room[place]
                good = True
                if is_jpg and size <= len(whole):
                    how = (height, width, height, width, 0, 0, 1, 1, False, False)
                    good = decoded(data, whole, *how) == 0
                elif is_jpg or len(data) != size:
                    good = False
                elif fits:
                    copy(data, square)
                if not good:
                    square[:] = 0
                elif not fits:
                    pixels = whole[:size] if is_jpg else data
                    least = min(height, width)
                    top, left = (height - least) // 2, (width - least) // 2
                    image = pixels.reshape(height, width, 3)
                    scaled(image, top, top + least, left, left + least, square)
            return squares[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
