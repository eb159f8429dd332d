"""Scores that count or average events over presentations."""

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.scores.inputs import Floats, classes, finite


def forgetting(correct: ArrayLike, never_learned: str = "hardest") -> Floats:
    """Return how often a sample went from right to wrong between successive presentations.

    Toneva et al., ICLR 2019, arXiv 1812.05159.

    Args:
        correct: bool (T, n).
        never_learned: `hardest` gives a never-learned sample the number of presentations T, as in
            the paper; `easiest` gives 0, as much later code does.

    >>> forgetting([[1, 0], [0, 0], [1, 0]]).tolist()
    [1.0, 3.0]
    """
    if never_learned not in ("hardest", "easiest"):
        raise ValueError(f"never_learned must be 'hardest' or 'easiest', got {never_learned!r}")
    right = finite("correct", correct, (2,)) > 0.5
    events: Floats = (right[:-1] & ~right[1:]).sum(axis=0).astype(np.float64)
    if never_learned == "hardest":
        events[~right.any(axis=0)] = len(right)
    return events


def aum(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the area under the margin: mean over epochs of Z[y] - max of the other logits.

    Pleiss et al., NeurIPS 2020. Low means hard or mislabelled.

    Args:
        logits: (T, n, C), C >= 2.
        labels: (n,), in `[0, C)`.
    """
    z = finite("logits", logits, (3,))
    y = classes(labels, z.shape[1], z.shape[2])
    if z.shape[2] < 2:
        raise ValueError(f"logits must have at least 2 classes, got {z.shape[2]}")
    rows = np.arange(len(y))
    own = z[:, rows, y]
    others = z.copy()
    others[:, rows, y] = -np.inf
    mean: Floats = (own - others.max(axis=-1)).mean(axis=0)
    return mean
