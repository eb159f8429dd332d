"""Scores from how the prediction of a sample moves over epochs."""

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.scores.inputs import Floats, enough_epochs, probabilities, whole_number
from shardsieve.scores.windows import deviation, mean_and_scatter


def dynamic_uncertainty(
    p_true: ArrayLike,
    window: int = 10,
    *,
    include_last: bool = False,
    population: bool = False,
    skip_epochs: int = 0,
) -> Floats:
    """Return the mean over sliding windows of the standard deviation of `p_true`, float64 (n,).

    He et al., CVPRW 2024, arXiv 2306.05175; high is kept first. The defaults are the paper's.
    Whether the last window counts can flip the ranking of two samples, so note what was used.

    Args:
        p_true: (T, n), probability of the label per epoch, in `[0, 1]`; T > window.
        window: J, epochs per window, at least 2.
        include_last: Average all T-J+1 windows; the paper leaves the last one out.
        population: Divide the squares by J rather than by J - 1.
        skip_epochs: First epochs to leave out; T is counted after them.

    Raises:
        ValueError: If there are too few epochs, or a value is NaN or outside `[0, 1]`.

    >>> dynamic_uncertainty([[0.0], [1.0], [1.0]], window=2).round(4).tolist()
    [0.7071]
    """
    q = probabilities("p_true", p_true, "T n")
    whole_number("window", window, 2)
    whole_number("skip_epochs", skip_epochs, 0)
    q = q[skip_epochs:]
    enough_epochs("p_true", len(q), window, more=True, skipped=skip_epochs)
    num_windows = len(q) - window + include_last
    total = np.zeros(q.shape[1])
    for start in range(num_windows):
        total += deviation(q[start : start + window], population=population)
    return total / num_windows


def dual(p_true: ArrayLike, window: int = 10) -> Floats:
    """Return the mean over all T-J+1 windows of std·(1 - mean) of `p_true`, float64 (n,).

    Cho et al., ICML 2025, arXiv 2502.06905, with the sample standard deviation and without the
    code's factor of 10; high is kept first. The paper records the first 30 (CIFAR) or 60 epochs.

    Args:
        p_true: (T, n), probability of the label per epoch, in `[0, 1]`; T >= window.
        window: J, epochs per window, at least 2.

    Raises:
        ValueError: If there are too few epochs, or a value is NaN or outside `[0, 1]`.

    >>> dual([[0.0], [1.0]], window=2).round(4).tolist()
    [0.3536]
    """
    q = probabilities("p_true", p_true, "T n")
    whole_number("window", window, 2)
    enough_epochs("p_true", len(q), window, more=False)
    num_windows = len(q) - window + 1
    total = np.zeros(q.shape[1])
    for start in range(num_windows):
        mean, scatter = mean_and_scatter(q[start : start + window])
        total += np.sqrt(scatter / (window - 1)) * (1 - mean)
    return total / num_windows


def confidence(p_true: ArrayLike) -> Floats:
    """Return the mean of `p_true` (T, n) over epochs, float64 (n,); low is kept first.

    Swayamdipta et al., EMNLP 2020, arXiv 2009.10795.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.
    """
    mean: Floats = probabilities("p_true", p_true, "T n").mean(axis=0)
    return mean


def variability(p_true: ArrayLike) -> Floats:
    """Return the population standard deviation of `p_true` (T, n) over epochs, float64 (n,).

    Swayamdipta et al., EMNLP 2020, arXiv 2009.10795; high is kept first.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.
    """
    return deviation(probabilities("p_true", p_true, "T n"), population=True)
