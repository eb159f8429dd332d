"""Scores from the predictions of one moment."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, classes, finite


def el2n(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the norm of the error vector, ‖P - onehot(y)‖₂, averaged over runs when given.

    Paul, Ganguli, Dziugaite, NeurIPS 2021, arXiv 2107.07075: a mean of norms over runs.

    Args:
        probs: (n, C), or (R, n, C) for R runs or epochs.
        labels: (n,), in `[0, C)`.

    >>> el2n([[1.0, 0.0]], [1]).round(4)
    array([1.4142])
    """
    p = finite("probs", probs, (2, 3))
    y = classes(labels, p.shape[-2], p.shape[-1])
    norms: Floats = np.linalg.norm(p - np.eye(p.shape[-1])[y], axis=-1)
    return norms if norms.ndim == 1 else norms.mean(axis=0)


def grand_last_layer(
    probs: ArrayLike, labels: ArrayLike, features: ArrayLike, bias: bool = True
) -> Floats:
    """Return the gradient norm of the last layer: ‖P - onehot(y)‖·sqrt(‖h‖² + 1).

    Args:
        probs: (n, C).
        labels: (n,).
        features: (n, D), input of the last layer.
        bias: Whether that layer has a bias; without it the 1 is left out.
    """
    h = finite("features", features, (2,))
    grown: Floats = el2n(probs, labels) * np.sqrt((h**2).sum(axis=1) + bias)
    return grown


def entropy(probs: ArrayLike) -> Floats:
    """Return -Σ P·log P of (n, C) in nats, with 0·log 0 = 0.

    >>> entropy([[1.0, 0.0], [0.5, 0.5]]).round(4).tolist()
    [0.0, 0.6931]
    """
    p = finite("probs", probs, (2,))
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    summed: Floats = np.abs((p * logs).sum(axis=-1))
    return summed


def margin(probs: ArrayLike) -> Floats:
    """Return the largest minus the second largest probability of (n, C), C >= 2."""
    p = finite("probs", probs, (2,))
    if p.shape[1] < 2:
        raise ValueError(f"probs must have at least 2 classes, got {p.shape[1]}")
    top = np.partition(p, -2, axis=-1)
    difference: Floats = top[:, -1] - top[:, -2]
    return difference


def cross_entropy(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """Return -log P[y] of (n, C) in nats; a probability of 0 counts as the least float64."""
    p = finite("probs", probs, (2,))
    y: NDArray[np.int64] = classes(labels, len(p), p.shape[1])
    logs: Floats = -np.log(np.maximum(p[np.arange(len(p)), y], np.finfo(np.float64).tiny))
    return logs
