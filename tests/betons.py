"""Small .beton files written by FFCV itself, with contents that depend on the row alone."""

import warnings
from pathlib import Path

import numpy as np

PAGE = 1 << 21
SIDE = 96  # 27 kB an image: 75 to a page of 2 MiB


def image(row, side=SIDE):
    """The image of one row."""
    return np.random.default_rng(row).integers(0, 255, (side, side, 3), dtype=np.uint8)


class Rows:
    """An indexed data set of images and labels; the label names the row."""

    def __init__(self, n, side=SIDE):
        self.n, self.side = n, side

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return image(row, self.side), row


def write_beton(path: Path, n=400, side=SIDE, data=None, fields=None):
    """Write n rows with FFCV's own writer."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = fields or {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = DatasetWriter(str(path), fields, page_size=PAGE, num_workers=1)
        writer.from_indexed_dataset(data or Rows(n, side))
    return path
