"""Whether trained seeds' own scores can stand beside those of samples that were not trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shardsieve.commands.methods import Mask, Values
from shardsieve.extrapolate.correlations import spearman
from shardsieve.extrapolate.knn import KNN
from shardsieve.extrapolate.resampling import intervals
from shardsieve.order import permutation
from shardsieve.scores.inputs import one_of
from shardsieve.store.rows import StoredRows

SEED_SCORES = ("measured", "neighbours")
# Enough for a mean over neighbours; a search among millions would cost more than all the rest.
_UNSEEN = 100_000
# Enough for a correlation to two digits, where the seeds keep their own scores.
_COMPARED = 10_000


def by_unseen_neighbours(
    rows: StoredRows, scores: Values, trained: Mask, unseen: Mask, *, k: int, seed: int
) -> Values:
    """Return the mean score of the nearest unseen samples of every trained seed, float32 (m,).

    Args:
        rows: Embeddings of all n samples; those that are asked for must be finite.
        scores: (n,): with predictions of the unseen samples.
        trained: bool (n,): the m seeds that the network was trained on.
        unseen: bool (n,): at least one.
        k: Neighbours.
        seed: Of the draw, where there are more than 100,000 unseen samples.
    """
    places = np.flatnonzero(unseen)
    places = np.sort(places[permutation(len(places), seed)[:_UNSEEN]])
    model = KNN(k, "mean").fit(rows.take(places), scores[places])
    return model.predict(rows.take(np.flatnonzero(trained)))


def some_of(trained: Mask, seed: int) -> Mask:
    """Return at most 10,000 of the trained seeds, drawn: enough to compare; bool (n,)."""
    places = np.flatnonzero(trained)
    drawn = np.zeros_like(trained)
    drawn[places[permutation(len(places), seed)[:_COMPARED]]] = True
    return drawn


def memorised(
    measured: Values, near: Values, trust: Mapping[str, Any], *, warn: bool
) -> dict[str, Any]:
    """Return how trained seeds' measured scores agree with their unseen neighbours'.

    Args:
        measured: (m,), finite.
        near: (m,), of the unseen neighbours.
        trust: What is known already; its warning is kept.
        warn: Whether to add a warning where the two run against each other.
    """
    low, high = intervals(measured, near, ())["spearman"]
    found = {"spearman": spearman(measured, near), "interval": [low, high]}
    known: dict[str, Any] = {"seeds_against_unseen_neighbours": found}
    if warn and high < 0:
        text = (
            "the seeds' own scores run against those of unseen samples like them (Spearman "
            f"{found['spearman']:.2f}): the seed run has memorised them; "
            "use --seed-scores neighbours"
        )
        known["warning"] = "; ".join([*filter(None, [trust.get("warning")]), text])
    return known


def checked_seed_scores(choice: str, on_signals: bool) -> str:
    """Return the choice, or raise ValueError if the method does not offer it."""
    one_of("seed_scores", choice, SEED_SCORES)
    if choice == "neighbours" and not on_signals:
        raise ValueError(
            "seed_scores must be 'measured' for a method that averages them, got 'neighbours'; "
            "use method 'direct' or 'fused'"
        )
    return choice
