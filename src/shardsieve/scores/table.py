"""Which end of each score is kept first."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

ORIENTATION: Mapping[str, str] = {
    "dynamic_uncertainty": "high",
    "tdds": "high",
    "el2n": "high",
    "grand_last_layer": "high",
    "forgetting": "high",
    "aum": "low",
    "entropy": "high",
    "margin": "low",
    "dual": "high",
    "cross_entropy": "high",
    "confidence": "low",
    "variability": "high",
}


def oriented(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return a score turned so that higher is kept first.

    >>> oriented("margin", [0.2, 0.9]).tolist()
    [-0.2, -0.9]
    """
    if name not in ORIENTATION:
        raise ValueError(f"name must be one of {', '.join(ORIENTATION)}, got {name!r}")
    array = np.asarray(values, dtype=np.float64)
    return array if ORIENTATION[name] == "high" else -array
