"""How well predicted scores agree with measured ones, and how far to trust that figure."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.doubts import doubt as doubt
from shardsieve.extrapolate.calibration import Spread, spread
from shardsieve.extrapolate.correlations import (
    check_keeps,
    checked_pair,
    keep_agreement,
    pearson,
    spearman,
)
from shardsieve.extrapolate.protocol import Extrapolator, Rows, checked_labels, checked_seeds
from shardsieve.extrapolate.resampling import Interval, intervals
from shardsieve.order import permutation
from shardsieve.scores.embedded import rows_by_value
from shardsieve.selection import keep_top, num_kept

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Quality:
    """Agreement of predictions with measured scores of the same samples.

    A random prediction has correlations near 0 and an agreement near the keep fraction itself. A
    second measurement shows how well the score repeats: two runs correlate at some r below 1 as
    well, as each has accidents of its own, and a prediction that has none of them correlates with
    either at the root of r (Spearman 1904). The figures are about the scores compared with: over
    the seeds, those of the seed run, not of a full run.

    Attributes:
        pearson: Correlation of the values, in `[-1, 1]`; 0 when either side is constant.
        spearman: Correlation of the ranks, ties averaged, in `[-1, 1]`; 0 likewise.
        agreement: Keep fraction, as a string for JSON's sake -> share, in `[0, 1]`, of the measured
            top keep set that the predicted one holds; equal scores as if drawn.
        num_held_out: Samples compared.
        intervals: `pearson`, `spearman` and each keep fraction -> 95 % bootstrap interval.
        spread: How widely both lie.
        classes: One row per label, as `by_class` returns them; empty without labels.
    """

    pearson: float
    spearman: float
    agreement: dict[str, float]
    num_held_out: int
    intervals: dict[str, Interval]
    spread: Spread
    classes: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        figures = asdict(self)
        return figures | {"intervals": {name: list(ends) for name, ends in self.intervals.items()}}


def measure(
    true: ArrayLike,
    predicted: ArrayLike,
    fractions: tuple[float, ...] | None = None,
    *,
    labels: ArrayLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """Return how well predicted scores (n,) agree with measured ones (n,).

    Args:
        true: Measured, finite.
        predicted: Of the same samples, finite.
        fractions: Keep fractions to compare at, in `(0, 1]`, each keeping at least one sample;
            None takes those of `FRACTIONS` that do.
        labels: Integers (n,), for a breakdown by class.
        progress: As in `intervals`, which take the longest.
    """
    want, got = checked_pair(true, predicted)
    asked = _fractions(len(want), fractions)
    return Quality(
        pearson=pearson(want, got),
        spearman=spearman(want, got),
        agreement={str(f): keep_agreement(want, got, f) for f in asked},
        num_held_out=len(want),
        intervals=intervals(want, got, asked, progress=progress),
        spread=spread(want, got),
        classes=[] if labels is None else by_class(want, got, labels),
    )


def by_class(
    true: ArrayLike, predicted: ArrayLike, labels: ArrayLike, keep_fraction: float = 0.5
) -> list[dict[str, Any]]:
    """Return one row per label: samples, Spearman, mean scores, and shares of the keep sets.

    `kept` and `kept_predicted` are the shares of the class that the measured and the predicted top
    keep set of all samples hold: a class whose shares differ is over- or undervalued.

    Args:
        true: (n,), finite.
        predicted: (n,), finite.
        labels: (n,), integers; a negative one means unknown and makes a row of its own.
        keep_fraction: In `(0, 1]`, keeping at least one of n.
    """
    want, got = checked_pair(true, predicted)
    classes = checked_labels(labels, len(want))
    kept, kept_predicted = (
        np.isin(np.arange(len(want)), keep_top(values, keep_fraction)) for values in (want, got)
    )
    return [
        {
            "class": int(classes[inside[0]]),
            "samples": len(inside),
            "spearman": spearman(want[inside], got[inside]),
            "measured_mean": float(want[inside].mean()),
            "predicted_mean": float(got[inside].mean()),
            "kept": float(kept[inside].mean()),
            "kept_predicted": float(kept_predicted[inside].mean()),
        }
        for inside in rows_by_value(classes)
    ]


def cross_validate(
    make_extrapolator: Callable[[], Extrapolator],
    embeddings: Rows | ArrayLike,
    scores: ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    fractions: tuple[float, ...] | None = None,
    labels: ArrayLike | None = None,
) -> Quality:
    """Return the held-out quality over the seeds; see `out_of_fold`.

    The predictions of all folds are pooled and then measured.

    Args:
        make_extrapolator: Gives a fresh extrapolator for each fold.
        embeddings: (m, d), finite.
        scores: (m,), finite.
        folds: In `[2, m]`.
        seed: Decides the folds.
        fractions: Keep fractions to compare at; as in `measure`.
        labels: Integers (m,), for a breakdown by class.

    Raises:
        ValueError: If there are fewer seeds than folds, or the inputs are not as above.
    """
    points, values = checked_seeds(embeddings, scores, halves=True)
    _check_folds(folds, len(values))
    asked = _fractions(len(values), fractions)  # before the work, not after it
    predicted = out_of_fold(make_extrapolator, points, values, folds=folds, seed=seed)
    return measure(values, predicted, asked, labels=labels)


def out_of_fold(
    make_extrapolator: Callable[[], Extrapolator],
    embeddings: Rows | ArrayLike,
    scores: ArrayLike,
    *,
    folds: int = 5,
    seed: int = 0,
    tried: NDArray[np.bool_] | None = None,
    beside: Mapping[str, NDArray[Any]] | None = None,
    predict_beside: Mapping[str, NDArray[Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Return a prediction for each seed, made from the other folds: float32 (m,).

    The folds depend on the number of tried seeds, `folds` and `seed` alone, on every machine and in
    every release.

    Args:
        make_extrapolator: Gives a fresh extrapolator for each fold.
        embeddings: (m, d), finite.
        scores: (m,), finite.
        folds: In `[2, number of tried seeds]`.
        seed: Decides the folds.
        tried: bool (m,): the seeds to predict. The others are always fitted on and stay NaN. None
            tries all.
        beside: What `fit` and `predict` take besides, (m, ...) each, by name.
        predict_beside: What `predict` takes besides where that is not `beside`.
        progress: Called with (folds done, folds).

    Raises:
        ValueError: If there are fewer seeds to try than folds, or the inputs are not as above.
    """
    points, values = checked_seeds(embeddings, scores, halves=True)
    places = np.arange(len(values)) if tried is None else np.flatnonzero(tried)
    _check_folds(folds, len(places))
    fold = np.full(len(values), -1)
    fold[places[permutation(len(places), seed, folds)]] = np.arange(len(places)) % folds
    predicted = np.full(len(values), np.nan, dtype=np.float32)
    asked = beside if predict_beside is None else predict_beside
    for one in range(folds):
        if progress:
            progress(one, folds)
        model: Any = make_extrapolator()
        fitted, out = fold != one, fold == one
        model.fit(_single(points[fitted]), values[fitted], **cut(beside, fitted))
        predicted[out] = model.predict(_single(points[out]), **cut(asked, out))
    if progress:
        progress(folds, folds)
    return predicted


def _single(points: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(points, dtype=np.float32)


def _check_folds(folds: int, num_seeds: int) -> None:
    if not 2 <= folds <= num_seeds:
        raise ValueError(
            f"folds must lie in [2, {num_seeds}] for {num_seeds} seeds, got {folds}; "
            "score more seeds or ask for fewer folds"
        )


def cut(beside: Mapping[str, NDArray[Any]] | None, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return these rows of everything, by name."""
    return {name: array[rows] for name, array in (beside or {}).items()}


def _fractions(num_samples: int, fractions: tuple[float, ...] | None) -> tuple[float, ...]:
    if fractions is None:
        return tuple(f for f in FRACTIONS if num_kept(num_samples, f))
    for fraction in fractions:
        check_keeps(num_samples, fraction)
    return fractions
