"""Scores from the predictions of one moment."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, class_ids, finite, probabilities, two_classes
from shardsieve.scores.windows import mean_of


def el2n(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the norm of the error vector, ‖P - onehot(y)‖₂, in `[0, √2]`, float64 (n,).

    Paul, Ganguli, Dziugaite, NeurIPS 2021, arXiv 2107.07075; high is kept first. Over runs it is
    the mean of the norms, not the norm of the mean. The paper uses 10 runs at epoch 20.

    Args:
        probs: (n, C) in `[0, 1]`, or (R, n, C) for R runs or epochs.
        labels: (n,), integers in `[0, C)`.

    Raises:
        ValueError: If shapes or labels do not fit, or a probability is NaN or outside `[0, 1]`.

    >>> el2n([[1.0, 0.0]], [1]).round(4).tolist()
    [1.4142]
    """
    p = probabilities("probs", probs, "n C", "R n C")
    y = class_ids(labels, *p.shape[-2:])
    return _over_runs(_error_norms(p, y))


def grand_last_layer(
    probs: ArrayLike, labels: ArrayLike, features: ArrayLike, bias: bool = True
) -> Floats:
    """Return the norm of the cross-entropy's gradient in the last linear layer, float64 (n,).

    ‖P - onehot(y)‖·√(‖h‖² + 1): the GraNd of Paul et al., NeurIPS 2021, arXiv 2107.07075,
    cut down to one layer, without a backward pass; high is kept first. Over runs it is the mean
    of the norms. The paper uses 10 runs, before their first step.

    Args:
        probs: (n, C) in `[0, 1]`, or (R, n, C) for R runs or epochs.
        labels: (n,), integers in `[0, C)`.
        features: (n, D) or (R, n, D), the last layer's input h; finite.
        bias: Whether that layer has a bias; without one the 1 is left out.

    Raises:
        ValueError: If shapes or labels do not fit, or a value is NaN or out of range.

    >>> grand_last_layer([[0.5, 0.5]], [0], [[1.0, 0.0]]).round(4).tolist()
    [1.0]
    """
    p = probabilities("probs", probs, "n C", "R n C")
    y = class_ids(labels, *p.shape[-2:])
    h = finite("features", features, "n D", "R n D")
    if h.shape[:-1] != p.shape[:-1]:
        wanted = ", ".join(map(str, p.shape[:-1]))
        raise ValueError(
            f"features must have shape ({wanted}, D), as probs has, got {h.shape}; "
            "record both in the same pass"
        )
    return _over_runs(_error_norms(p, y) * np.sqrt((h**2).sum(axis=-1) + bool(bias)))


def entropy(probs: ArrayLike) -> Floats:
    """Return -Σ P·log P in nats, in `[0, log C]`, with 0·log 0 = 0, float64 (n,).

    High, the most uncertain, is kept first: Coleman et al., ICLR 2020, arXiv 1906.11829.

    Args:
        probs: (n, C), in `[0, 1]`.

    Raises:
        ValueError: If a probability is NaN or outside `[0, 1]`.

    >>> entropy([[1.0, 0.0], [0.5, 0.5]]).round(4).tolist()
    [0.0, 0.6931]
    """
    p = probabilities("probs", probs, "n C")
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    # 0 minus the sum, as the negative of a sum of 0 would print as -0.0.
    nats: Floats = 0.0 - (p * logs).sum(axis=-1)
    return nats


def margin(probs: ArrayLike) -> Floats:
    """Return the largest minus the second largest probability, in `[0, 1]`, float64 (n,).

    Low, the most uncertain, is kept first: Scheffer, Decomain, Wrobel, IDA 2001.

    Args:
        probs: (n, C), in `[0, 1]`; C >= 2.

    Raises:
        ValueError: If there is one class, or a probability is NaN or outside `[0, 1]`.

    >>> margin([[0.5, 0.25, 0.25]]).tolist()
    [0.25]
    """
    p = probabilities("probs", probs, "n C")
    two_classes("probs", p.shape[1])
    top = np.partition(p, -2, axis=-1)
    difference: Floats = top[:, -1] - top[:, -2]
    return difference


def least_confidence(probs: ArrayLike) -> Floats:
    """Return 1 - max P, in `[0, 1 - 1/C]`, float64 (n,).

    High, the most uncertain, is kept first: Coleman et al., ICLR 2020, arXiv 1906.11829.

    Args:
        probs: (n, C), in `[0, 1]`.

    Raises:
        ValueError: If a probability is NaN or outside `[0, 1]`.

    >>> least_confidence([[0.5, 0.25, 0.25]]).tolist()
    [0.5]
    """
    short: Floats = 1 - probabilities("probs", probs, "n C").max(axis=1)
    return short


def cross_entropy(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the loss -log P[y] in nats, float64 (n,); high is kept first.

    A probability of 0 counts as the smallest normal float64, so that the loss stays finite
    at about 708.4.

    Args:
        probs: (n, C), in `[0, 1]`.
        labels: (n,), integers in `[0, C)`.

    Raises:
        ValueError: If shapes or labels do not fit, or a probability is NaN or outside `[0, 1]`.

    >>> cross_entropy([[0.5, 0.5]], [0]).round(4).tolist()
    [0.6931]
    """
    p = probabilities("probs", probs, "n C")
    y = class_ids(labels, *p.shape)
    own = p[np.arange(len(y)), y]
    nats: Floats = 0.0 - np.log(np.maximum(own, np.finfo(np.float64).tiny))
    return nats


def _error_norms(probs: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return ‖P - onehot(y)‖₂ along the last axis."""
    errors = probs.copy()
    errors[..., np.arange(len(labels)), labels] -= 1
    norms: Floats = np.linalg.norm(errors, axis=-1)
    return norms


def _over_runs(norms: Floats) -> Floats:
    return norms if norms.ndim == 1 else mean_of(norms)
