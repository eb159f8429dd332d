"""Checks that every scorer makes once, at its entrance."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def finite(name: str, values: ArrayLike, ndim: tuple[int, ...]) -> Floats:
    """Return the values as float64 of an allowed number of dimensions, all of them finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in ndim:
        wanted = " or ".join(map(str, ndim))
        raise ValueError(f"{name} must have {wanted} dimensions, got shape {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"{name} must be finite, got {array[tuple(bad[0])]} at {tuple(bad[0].tolist())}; "
            "record every seed sample in every epoch"
        )
    return array


def classes(labels: ArrayLike, n: int, num_classes: int) -> NDArray[np.int64]:
    """Return the labels as int64 (n,), each in `[0, num_classes)`."""
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), got {array.shape}")
    bad = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(bad):
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {array[bad[0]]} for sample {bad[0]}"
        )
    return array


def longer_than(name: str, epochs: int, window: int, least: int) -> None:
    """Refuse recordings that are too short for a window, or a window without a spread."""
    if window < 2:
        raise ValueError(f"window must be at least 2, got {window}")
    if epochs < least:
        raise ValueError(
            f"{name} must have at least {least} epochs for window={window}, got {epochs}; "
            "train longer or pass a smaller window"
        )
