"""The number of neighbours by cross-validation, from one search per fold."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.correlations import spearman
from shardsieve.extrapolate.knn import KNN
from shardsieve.extrapolate.protocol import Floats, Rows, as_rows
from shardsieve.extrapolate.quality import out_of_fold
from shardsieve.scores.inputs import whole_number

KS = (5, 10, 20, 50, 100, 200)


def choose_k(
    embeddings: Rows | ArrayLike,
    scores: ArrayLike,
    *,
    ks: Sequence[int] = KS,
    make: Callable[[int], KNN] = KNN,
    folds: int = 5,
    seed: int = 0,
) -> tuple[int, dict[int, float]]:
    """Return the k whose held-out predictions rank the seeds best, and Spearman's figure of each.

    Of two that rank alike the larger is taken: its mean is steadier.

    Args:
        embeddings: (m, d), finite.
        scores: (m,), finite.
        ks: To try, at least one, each at least 1; more than the seeds of a fit use them all.
        make: Gives a `KNN` of k neighbours.
        folds: In `[2, m]`.
        seed: Decides the folds, as in `cross_validate`.
    """
    if not len(ks):
        raise ValueError("ks must hold at least 1 number to try, got 0; leave them out")
    for k in ks:
        whole_number("ks", k, 1)
    rows = as_rows(embeddings)
    several = np.empty((len(ks), rows.shape[0]), dtype=np.float32)
    tried: Any = lambda: _Several(make(max(ks)), ks, several)  # noqa: E731
    out_of_fold(
        tried,
        rows,
        scores,
        folds=folds,
        seed=seed,
        beside={"places": np.arange(rows.shape[0])},
    )
    figures = {k: spearman(scores, found) for k, found in zip(ks, several, strict=True)}
    return max(figures, key=lambda k: (figures[k], k)), figures


class _Several:
    """An extrapolator that writes down what every k would have predicted."""

    def __init__(self, model: KNN, ks: Sequence[int], found: Floats) -> None:
        self._model, self._ks, self._found = model, ks, found

    def fit(self, embeddings: Any, scores: ArrayLike, *, places: NDArray[np.int64]) -> Self:
        self._model.fit(embeddings, scores)
        return self

    def predict(self, embeddings: Any, *, places: NDArray[np.int64]) -> Floats:
        self._found[:, places] = self._model.predict_each(embeddings, self._ks)
        return np.asarray(self._found[0, places])
