"""Scores from how the prediction of a sample moves over epochs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.scores.inputs import Floats, enough_epochs, one_of, probabilities, whole_number
from shardsieve.scores.windows import deviation, dual_window, mean_of

# Samples or more whose frequencies are made at a time: complex numbers of all of them would take
# twice the memory of the signal.
_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class Variant:
    """One published form of Dynamic Uncertainty; all of them go by that name.

    Attributes:
        include_last: Average all T-J+1 windows; the paper leaves the last one out.
        population: Divide the squares by J rather than by J - 1.
        skip_epochs: First epochs to leave out.
        scale: Factor on the score; decides no ranking.
    """

    include_last: bool = False
    population: bool = False
    skip_epochs: int = 0
    scale: float = 1.0


DYNAMIC_UNCERTAINTY: Mapping[str, Variant] = MappingProxyType(
    {
        "paper": Variant(),
        "official": Variant(scale=10.0),
        "dual": Variant(include_last=True, scale=10.0),
        "schmidt": Variant(include_last=True, population=True, skip_epochs=2),
        "schmidt_unsupervised": Variant(population=True),
    }
)


def dynamic_uncertainty(
    p_true: ArrayLike,
    window: int = 10,
    *,
    variant: str = "paper",
    include_last: bool | None = None,
    population: bool | None = None,
    skip_epochs: int | None = None,
) -> Floats:
    """Return the mean over sliding windows of the standard deviation of `p_true`, float64 (n,).

    He et al., CVPRW 2024, arXiv 2306.05175; high is kept first. The defaults are the paper's.
    Whether the last window counts can flip the ranking of two samples, so note what was used.

    Args:
        p_true: (T, n), probability of the label per epoch, in `[0, 1]`; T > window, or
            T >= window with `include_last`.
        window: J, epochs per window, at least 2.
        variant: A name of `DYNAMIC_UNCERTAINTY`: `paper`; `official`, the authors' code (BAAI);
            `dual`, in the code of DUAL; `schmidt` and `schmidt_unsupervised`, in the code of Score
            Extrapolation. It sets the three options that follow, and a factor of 1 or 10.
        include_last: Average all T-J+1 windows; the paper leaves the last one out.
        population: Divide the squares by J rather than by J - 1.
        skip_epochs: First epochs to leave out; T is counted after them.

    Raises:
        ValueError: If there are too few epochs, or a value is NaN or outside `[0, 1]`.

    >>> dynamic_uncertainty([[0.0], [1.0], [1.0]], window=2).round(4).tolist()
    [0.7071]
    >>> dynamic_uncertainty([[0.0], [1.0], [1.0]], window=2, variant="dual").round(4).tolist()
    [3.5355]
    """
    one_of("variant", variant, DYNAMIC_UNCERTAINTY)
    named = DYNAMIC_UNCERTAINTY[variant]
    include_last = named.include_last if include_last is None else include_last
    population = named.population if population is None else population
    skip_epochs = named.skip_epochs if skip_epochs is None else skip_epochs
    q = probabilities("p_true", p_true, "T n")
    whole_number("window", window, 2)
    whole_number("skip_epochs", skip_epochs, 0)
    q = q[skip_epochs:]
    enough_epochs("p_true", len(q), window, more=not include_last, skipped=skip_epochs)
    num_windows = len(q) - window + include_last
    total = np.zeros(q.shape[1])
    for start in range(num_windows):
        total += deviation(q[start : start + window], population=population)
    return named.scale * (total / num_windows)


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
        total += dual_window(q[start : start + window])
    return total / num_windows


def confidence(p_true: ArrayLike) -> Floats:
    """Return the mean of `p_true` (T, n) over epochs, in `[0, 1]`, float64 (n,); low is kept first.

    Dataset cartography: Swayamdipta et al., EMNLP 2020, arXiv 2009.10795. It repeats better from
    run to run than scores of spread do.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.

    >>> confidence([[0.25, 1.0], [0.75, 1.0]]).tolist()
    [0.5, 1.0]
    """
    return mean_of(probabilities("p_true", p_true, "T n"))


def threshold_closeness(p_true: ArrayLike) -> Floats:
    """Return p (1 - p), p the mean of `p_true` (T, n) over epochs: in `[0, 0.25]`, float64 (n,).

    Active Bias: Chang, Learned-Miller, McCallum, NeurIPS 2017, arXiv 1704.07433; high is kept
    first, as of Dynamic Uncertainty, which it is nearest to early in a run.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.

    >>> threshold_closeness([[0.25, 1.0], [0.75, 1.0]]).tolist()
    [0.25, 0.0]
    """
    mean = confidence(p_true)
    return mean * (1.0 - mean)


def variability(p_true: ArrayLike) -> Floats:
    """Return the population standard deviation of `p_true` (T, n) over epochs, float64 (n,).

    Dataset cartography: Swayamdipta et al., EMNLP 2020, arXiv 2009.10795; high is kept first.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.

    >>> variability([[0.25, 1.0], [0.75, 1.0]]).tolist()
    [0.25, 0.0]
    """
    return deviation(probabilities("p_true", p_true, "T n"), population=True)


def frequency(p_true: ArrayLike) -> Floats:
    """Return the sum of the absolute Fourier coefficients of `p_true` but the mean's, float64 (n,).

    Nieth et al., arXiv 2406.13283: Σ over the T-1 frequencies other than 0 of |FFT over epochs|,
    made for adversarial training; high is kept first.

    Args:
        p_true: (T, n), probability of the label per epoch, in `[0, 1]`.

    Raises:
        ValueError: If a value is NaN or outside `[0, 1]`.

    >>> frequency([[0.0], [1.0], [0.0], [1.0]]).tolist()
    [2.0]
    """
    q = probabilities("p_true", p_true, "T n")
    parts = np.array_split(q, max(1, q.shape[1] // _AT_ONCE), axis=1)
    return np.concatenate([np.abs(np.fft.fft(part, axis=0)[1:]).sum(axis=0) for part in parts])
