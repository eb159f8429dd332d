"""Extrapolation from what the seed network says about each sample itself."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, checked_scores
from shardsieve.extrapolate.signals import (
    Signals,
    checked_regressor,
    make_regressor,
    signal_features,
)


class Direct:
    """Regression from a sample's signals (entropy, loss, error norm, margin, ...) to its score.

    The network must not have been trained on the samples of `fit`: what it says of those is
    memorised, and what is learned there is wrong for the rest. So fit on seeds held out of the seed
    run (`shardsieve score --held-out`), with the scores their watching gave, or on signals of a
    network trained on other seeds. Rows whose signals are all NaN are left out of the fit.

    Signals of several epochs' networks, (n, K, s), carry the sample's own dynamics and are worth
    much more than those of the last.

    Attributes:
        regressor: `ridge`, `boosting`, or `auto`: boosting from 1,000 samples on.
        seed: Of the trees.
    """

    def __init__(self, regressor: str = "auto", *, seed: int = 0) -> None:
        self.regressor, self.seed = checked_regressor(regressor), seed
        self._model: Any = None

    def fit(
        self, embeddings: Rows | ArrayLike, scores: ArrayLike, signals: Signals | None = None
    ) -> Self:
        """Learn from held-out seeds.

        Args:
            embeddings: (m, d); only their number is used.
            scores: (m,), finite.
            signals: As in `signal_features`, of these samples.

        Raises:
            ValueError: If shapes disagree, a score is not finite, or all signals are missing.
        """
        count = as_rows(embeddings).shape[0]
        values, features = checked_scores(scores, count), signal_features(signals, count)
        known = rows_with_signals(features)
        self._model = make_regressor(self.regressor, int(known.sum()), self.seed)
        self._model.fit(features[known], values[known])
        return self

    def predict(self, embeddings: Rows | ArrayLike, signals: Signals | None = None) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        Args:
            embeddings: (n, d); only their number is used.
            signals: As given to `fit`, of these samples.

        Raises:
            ValueError: If nothing was fitted, or shapes disagree.
        """
        if self._model is None:
            raise ValueError("Direct must be fitted before it predicts, got no seeds; call fit")
        return predicted(self._model, signal_features(signals, as_rows(embeddings).shape[0]))


def rows_with_signals(features: Floats) -> Any:
    """Return which rows hold a number: bool (n,); ValueError if none does."""
    known = ~np.isnan(features).all(axis=1)
    if not known.any():
        raise ValueError(
            "signals must hold numbers for at least one sample, got none; give those of samples "
            "that the network was not trained on"
        )
    return known


def predicted(model: Any, features: Floats) -> Floats:
    """Return a fitted regressor's predictions, float32 (n,).

    Raises:
        ValueError: If the features are not as many as were fitted.
    """
    if not len(features):
        return np.zeros(0, dtype=np.float32)
    if features.shape[1] != model.n_features_in_:
        raise ValueError(
            f"signals must be those of fit, which made {model.n_features_in_} features, got "
            f"{features.shape[1]}; give the same signals of as many networks"
        )
    return np.asarray(model.predict(features), dtype=np.float32)
