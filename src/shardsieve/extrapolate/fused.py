"""Extrapolation from neighbours' scores and the sample's own signals together."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.extrapolate.approximate import Chosen, CodedSearch, kind_for
from shardsieve.extrapolate.knn import Finder, chosen_of, finder_for, looked_up, others
from shardsieve.extrapolate.lesson import Lesson, learn, split
from shardsieve.extrapolate.protocol import (
    Floats,
    Ids,
    Rows,
    as_rows,
    blocks,
    checked_labels,
    checked_seeds,
)
from shardsieve.extrapolate.search import ExactSearch
from shardsieve.extrapolate.signals import (
    REGRESSORS,
    Signals,
    check_names,
    make_regressor,
    names_of,
    predicted,
    signal_features,
)
from shardsieve.scores.inputs import one_of, whole_number

_BLOCK = 65_536
_NEAR = 5  # nearest seeds whose distance tells how lonely a sample is


class Fused:
    """Regression from neighbours' scores, agreement with their labels, and the sample's signals.

    As in `Direct`, one regression learns from held-out seeds and, if `trained` seeds are given,
    another from those. Trained seeds, also those whose signals are all NaN, serve as neighbours of
    every sample, but never of themselves. Without any, held-out seeds are neighbours of each other.
    They are searched as `KNN` does with `search="auto"`.

    Attributes:
        k: Neighbours, at least 1.
        regressor: `ridge`, `boosting`, or `auto`: boosting from 1,000 samples on.
        seed: Of the trees, and of the trained seeds learned from where there are over 20,000.
        device: As in `KNN`.
        lesson: Once fitted, what trained seeds taught; None without any.
    """

    def __init__(
        self, k: int = 50, regressor: str = "auto", *, seed: int = 0, device: str = "cpu"
    ) -> None:
        whole_number("k", k, 1)
        one_of("regressor", regressor, REGRESSORS)
        self.k, self.regressor, self.seed, self.device = k, regressor, seed, device
        self.lesson: Lesson | None = None
        self._model: Any = None

    def fit(
        self,
        embeddings: Rows | ArrayLike,
        scores: ArrayLike,
        signals: Signals | None = None,
        *,
        labels: ArrayLike | None = None,
        trained: ArrayLike | None = None,
    ) -> Self:
        """Learn from held-out seeds, and from trained ones what those bear out.

        Args:
            embeddings: (m, d), finite, m at least 2.
            scores: (m,), finite.
            signals: As in `signal_features`; NaN in all of a row's means trained on.
            labels: (m,), integers; a negative one is unknown and agrees with none.
            trained: bool (m,), the seeds that the network was trained on, with scores of that
                training; None: those without signals.

        Raises:
            ValueError: If shapes disagree, a number is not finite, or all signals are missing.
        """
        points, values = checked_seeds(embeddings, scores)
        features = signal_features(signals, len(values))
        held, taught = split(features, trained, self.seed)
        self._names = names_of(signals)
        alone = len(held) == len(values)
        pool = np.arange(len(values)) if alone else np.setdiff1d(np.arange(len(values)), held)
        if len(pool) < 1 + alone:
            raise ValueError(
                f"embeddings must hold at least 2 seeds, got {len(values)}; use Direct"
            )
        classes = checked_labels(labels, len(values))
        self._pool = points[pool], values[pool], None if classes is None else classes[pool]
        self._exact: ExactSearch | None = None
        self._settled: Finder | None = None
        asked = points[np.concatenate([held, taught])]
        finder = self._searching(asked, self.k + 1, len(asked))
        near = np.zeros((len(values), 5 if classes is None else 7), dtype=np.float32)
        for rows, own in ((held, held if alone else None), (taught, np.searchsorted(pool, taught))):
            of_rows = None if classes is None else classes[rows]
            near[rows] = self._near(finder, points[rows], of_rows, own)
        self._model = make_regressor(self.regressor, len(held), self.seed)
        self._model.fit(np.concatenate([features[held], near[held]], axis=1), values[held])
        self.lesson = learn(signals, near, values, trained=taught, held_out=held)
        return self

    def predict(
        self,
        embeddings: Rows | ArrayLike,
        signals: Signals | None = None,
        *,
        labels: ArrayLike | None = None,
    ) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        Args:
            embeddings: (n, d), finite, anything sliceable by rows; read block by block.
            signals: As given to `fit`, of these samples.
            labels: (n,), integers; needed if `fit` had labels, and refused if not.

        Raises:
            ValueError: If nothing was fitted, shapes disagree, or a number is not finite.
        """
        if self._model is None:
            raise ValueError("Fused must be fitted before it predicts, got no seeds; call fit")
        check_names(signals, self._names)
        rows = as_rows(embeddings, self._pool[0].shape[1])
        count = rows.shape[0]
        features, classes = signal_features(signals, count), checked_labels(labels, count)
        if (classes is None) != (self._pool[2] is None):
            raise ValueError(
                "labels must be given to both fit and predict or to neither; give both or neither"
            )
        early = None if self.lesson is None else self.lesson.features(signals, count)
        finder = self._settled or self._searching(rows, self.k, count)
        scores = np.empty(count, dtype=np.float32)
        for start, block in blocks(rows, _BLOCK):
            part = slice(start, start + len(block))
            near = self._near(finder, block, None if classes is None else classes[part])
            own = predicted(self._model, np.concatenate([features[part], near], axis=1))
            if self.lesson is not None and early is not None:
                own = self.lesson.blended(own, np.concatenate([early[part], near], axis=1))
            scores[part] = own
        return scores

    def choose(self, queries: Rows | ArrayLike, num_queries: int | None = None) -> Chosen:
        """Choose the search once for all later predictions, as `KNN.choose` does.

        Args:
            queries: (q, d), finite: such as will be predicted, of which some are looked up.
            num_queries: How many will be predicted; q if left out.
        """
        rows = as_rows(queries, self._pool[0].shape[1])
        self._settled = self._searching(rows, self.k, num_queries or rows.shape[0])
        return chosen_of(self._settled)

    def _searching(self, queries: Rows, k: int, num_queries: int) -> Finder:
        """Return the search for neighbours of so many queries; one by codes serves all later."""
        seeds = self._pool[0]
        kind = kind_for("auto", len(seeds), num_queries, seeds.shape[1], self.device)
        if kind != "exact":
            found = finder_for(seeds, queries, k, kind=kind, device=self.device)
            if isinstance(found, CodedSearch):
                self._settled = found
                return found
            self._exact = found
        self._exact = self._exact or ExactSearch(seeds, self.device)
        return self._exact

    def _near(
        self, finder: Finder, points: Floats, classes: Ids | None, own: Ids | None = None
    ) -> Floats:
        """Return features of the neighbourhood, (n, 5 or 7), leaving out each row's own place."""
        _, values, seed_classes = self._pool
        ids, distances = looked_up(finder, as_rows(points), self.k + (own is not None))
        if own is not None:
            kept, shape = others(ids, own), (len(ids), ids.shape[1] - 1)
            ids, distances = ids[kept].reshape(shape), distances[kept].reshape(shape)
        scores = values[ids].astype(np.float64)
        # Only ratios of weights matter: exp(-d) alone would underflow.
        weights = np.exp(distances[:, :1] - distances)
        columns = [
            scores.mean(axis=1),
            (weights * scores).sum(axis=1) / weights.sum(axis=1),
            scores.std(axis=1),
            distances.mean(axis=1),
            distances[:, :_NEAR].mean(axis=1),
        ]
        if classes is not None and seed_classes is not None:
            same = (seed_classes[ids] == classes[:, None]) & (classes >= 0)[:, None]
            alike = same.sum(axis=1)
            among = (same * scores).sum(axis=1) / np.maximum(alike, 1)
            columns += [same.mean(axis=1), np.where(alike > 0, among, columns[0])]
        return np.stack(columns, axis=1).astype(np.float32)
