"""Scores from how the prediction of a sample moves over epochs."""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from shardsieve.scores.inputs import Floats, finite, longer_than

_TINY = 1e-8


def dynamic_uncertainty(
    p_true: ArrayLike, window: int = 10, *, include_last: bool = False
) -> Floats:
    """Return the mean over sliding windows of the sample standard deviation of `p_true`.

    He et al., CVPRW 2024, arXiv 2306.05175. Windows start at epochs 0..T-J-1: the last one is left
    out, as published, unless `include_last`.

    Args:
        p_true: (T, n), probability of the label per epoch, T > window.
        window: J, epochs per window.
        include_last: Use all T-J+1 windows.

    >>> dynamic_uncertainty([[0.0], [1.0], [1.0]], window=2)
    array([0.70710678])
    """
    q = finite("p_true", p_true, (2,))
    longer_than("p_true", len(q), window, window + (not include_last))
    spread = _windows(q, window).std(axis=-1, ddof=1)
    return _mean(spread if include_last else spread[:-1])


def dual(p_true: ArrayLike, window: int = 10) -> Floats:
    """Return the mean over all windows of std·(1 - mean) of `p_true`.

    Cho et al., ICML 2025, arXiv 2502.06905, without the code's factor of 10.

    Args:
        p_true: (T, n), T >= window.
        window: J.
    """
    q = finite("p_true", p_true, (2,))
    longer_than("p_true", len(q), window, window)
    windows = _windows(q, window)
    return _mean(windows.std(axis=-1, ddof=1) * (1 - windows.mean(axis=-1)))


def divergence(p_next: ArrayLike, p_before: ArrayLike) -> Floats:
    """Return Σ_c |P'[c]·(log P'[c] - log P[c])| of two epochs: TDDS' d_t, float64 (n,).

    Args:
        p_next: (n, C), probabilities of the later epoch.
        p_before: (n, C), of the earlier one.
    """
    after, before = finite("p_next", p_next, (2,)), finite("p_before", p_before, (2,))
    moved: Floats = np.abs(after * (np.log(after + _TINY) - np.log(before + _TINY))).sum(axis=-1)
    return moved


def tdds(probs: ArrayLike, window: int = 10, decay: float = 0.9) -> Floats:
    """Return TDDS: a moving average of how much the epoch-to-epoch divergence fluctuates.

    Zhang et al., CVPR 2024, arXiv 2311.13613, as in the official code.

    Args:
        probs: (T, n, C), T >= window.
        window: J epochs, so J-1 divergences.
        decay: Weight of the newest window, in `(0, 1]`.
    """
    p = finite("probs", probs, (3,))
    longer_than("probs", len(p), window, window)
    moved = np.stack([divergence(b, a) for a, b in pairwise(p)])
    return tdds_from_divergence(moved, window, decay)


def tdds_from_divergence(moved: ArrayLike, window: int = 10, decay: float = 0.9) -> Floats:
    """Return TDDS from recorded divergences d_t, shape (T-1, n)."""
    if not 0 < decay <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}")
    d = finite("divergence", moved, (2,))
    longer_than("probs", len(d) + 1, window, window)
    views = _windows(d, window - 1)
    fluctuation = np.linalg.norm(views - views.mean(axis=-1, keepdims=True), axis=-1)
    ages = np.arange(len(fluctuation))[::-1]
    weighted: Floats = (decay * (1 - decay) ** ages) @ fluctuation
    return weighted


def confidence(p_true: ArrayLike) -> Floats:
    """Return the mean of `p_true` (T, n) over epochs (Swayamdipta et al., EMNLP 2020)."""
    return _mean(finite("p_true", p_true, (2,)))


def variability(p_true: ArrayLike) -> Floats:
    """Return the population standard deviation of `p_true` (T, n) over epochs (ibid.)."""
    spread: Floats = finite("p_true", p_true, (2,)).std(axis=0)
    return spread


def _windows(values: Floats, window: int) -> Floats:
    return sliding_window_view(values, window, axis=0)


def _mean(values: Floats) -> Floats:
    mean: Floats = values.mean(axis=0)
    return mean
