"""Bootstrap intervals of correlations and keep-set agreement."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.correlations import (
    Doubles,
    check_keeps,
    checked_pair,
    kept_shares,
)
from shardsieve.order import random_bits
from shardsieve.scores.inputs import whole_number
from shardsieve.selection import num_kept

RESAMPLES = 200
_SALT, _TAIL = 0xB007, 2.5

Interval = tuple[float, float]
Counts = NDArray[np.int64]


def intervals(
    true: ArrayLike,
    predicted: ArrayLike,
    fractions: tuple[float, ...],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Interval]:
    """Return 95 % percentile intervals over samples drawn anew with replacement.

    They tell how far the figures would move with other samples, given these predictions; what
    another training of the seed run would change is not in them. Of few samples, and for Pearson's
    correlation where few values lie far from all others, they hold the truth less often.

    Args:
        true: (n,), finite.
        predicted: (n,), finite.
        fractions: Keep fractions, in `(0, 1]`, each keeping at least one of n.
        resamples: Draws, at least 1.
        seed: Decides the draws, on every machine and in every release.
        progress: Called with (draws done, draws in all).

    Returns:
        `pearson`, `spearman` and each fraction as a string -> (low, high).
    """
    whole_number("resamples", resamples, 1)
    want, got = checked_pair(true, predicted)
    for fraction in fractions:
        check_keeps(len(want), fraction)
    sides = _Side(want), _Side(got)
    rows = []
    for draw in range(resamples):
        rows.append(_figures(sides, resampled(len(want), seed, draw), fractions))
        if progress:
            progress(len(rows), resamples)
    low, high = np.percentile(np.array(rows), [_TAIL, 100 - _TAIL], axis=0)
    names = ["pearson", "spearman", *map(str, fractions)]
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return dict(zip(names, pairs, strict=True))


def resampled(num_samples: int, seed: int, draw: int) -> Counts:
    """Return how often each sample is drawn when n are drawn with replacement: int64 (n,)."""
    rows = random_bits(num_samples, seed, _SALT, draw) % np.uint64(num_samples)
    return np.bincount(rows.astype(np.int64), minlength=num_samples).astype(np.int64)


class _Side:
    """One score, sorted once for all draws."""

    def __init__(self, values: Doubles) -> None:
        self.values = values
        distinct, self.inverse = np.unique(values, return_inverse=True)
        self.levels = len(distinct)

    def ranks(self, copies: Counts) -> Doubles:
        """Return mean ranks of the drawn samples."""
        counts = np.bincount(self.inverse, weights=copies, minlength=self.levels)
        return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[self.inverse], dtype=np.float64)


def _figures(
    sides: tuple[_Side, _Side], copies: Counts, fractions: tuple[float, ...]
) -> list[float]:
    a, b = sides
    row = [
        _weighted_pearson(a.values, b.values, copies),
        _weighted_pearson(a.ranks(copies), b.ranks(copies), copies),
    ]
    for fraction in fractions:
        count = num_kept(len(copies), fraction)
        kept, other = (kept_shares(side.inverse, copies, count) for side in sides)
        row.append(float(copies @ (kept * other)) / count)
    return row


def _weighted_pearson(x: Doubles, y: Doubles, copies: Counts) -> float:
    x, y = (_centred(values, copies) for values in (x, y))
    scale = np.sqrt((copies @ np.square(x)) * (copies @ np.square(y)))
    return float(np.clip((copies * x) @ y / scale, -1, 1)) if scale > 0 else 0.0


def _centred(values: Doubles, copies: Counts) -> Doubles:
    drawn = values[copies > 0]
    if (drawn == drawn[0]).all():
        return np.zeros_like(values)
    # Squares of 1e200 leave float64.
    scaled = values / np.abs(drawn).max()
    return np.asarray(scaled - (copies @ scaled) / copies.sum())
