"""Extrapolation from what the seed network says about each sample itself."""

from typing import Any, Self

from numpy.typing import ArrayLike

from shardsieve.extrapolate.lesson import Lesson, learn, split
from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, checked_scores
from shardsieve.extrapolate.signals import (
    REGRESSORS,
    Signals,
    check_names,
    make_regressor,
    names_of,
    predicted,
    signal_features,
)
from shardsieve.scores.inputs import one_of


class Direct:
    """Regression from a sample's signals (entropy, loss, error norm, margin, ...) to its score.

    What a network says of samples that it was trained on is memorised, and a regression learned
    there may be wrong for the rest. So fit on seeds held out of the seed run (`shardsieve score
    --held-out`), with the scores that watching them gave, or on signals of a network trained on
    other seeds. Rows whose signals are all NaN are left out of the fit. If `trained` seeds are
    given as well, there are two regressions; the held-out seeds choose by what share their
    predictions are averaged (`learn`).

    Signals of several epochs' networks, (n, K, s), carry the sample's own dynamics and are worth
    much more than those of the last.

    Attributes:
        regressor: `ridge`, `boosting`, or `auto`: boosting from 1,000 samples on.
        seed: Of the trees, and of the trained seeds learned from where there are over 20,000.
        lesson: Once fitted, what trained seeds taught; None without any.
    """

    def __init__(self, regressor: str = "auto", *, seed: int = 0) -> None:
        one_of("regressor", regressor, REGRESSORS)
        self.regressor, self.seed = regressor, seed
        self.lesson: Lesson | None = None
        self._model: Any = None

    def fit(
        self,
        embeddings: Rows | ArrayLike,
        scores: ArrayLike,
        signals: Signals | None = None,
        *,
        trained: ArrayLike | None = None,
    ) -> Self:
        """Learn from held-out seeds, and from trained ones what those bear out.

        Args:
            embeddings: (m, d); only their number is used.
            scores: (m,), finite.
            signals: As in `signal_features`, of these samples.
            trained: bool (m,), the seeds that the network was trained on, with scores of that
                training; None: no row with signals.

        Raises:
            ValueError: If shapes disagree, a score is not finite, or all signals are missing.
        """
        count = as_rows(embeddings).shape[0]
        values, features = checked_scores(scores, count), signal_features(signals, count)
        held, taught = split(features, trained, self.seed)
        self._names = names_of(signals)
        self._model = make_regressor(self.regressor, len(held), self.seed)
        self._model.fit(features[held], values[held])
        self.lesson = learn(signals, features[:, :0], values, trained=taught, held_out=held)
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
        check_names(signals, self._names)
        count = as_rows(embeddings).shape[0]
        features = signal_features(signals, count)
        own = predicted(self._model, features)
        if self.lesson is None:
            return own
        return self.lesson.blended(own, self.lesson.features(signals, count))
