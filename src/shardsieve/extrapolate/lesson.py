"""What seeds that a network was trained on teach, as far as held-out seeds bear it out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.extrapolate.protocol import Floats, Ids
from shardsieve.extrapolate.signals import (
    Signals,
    first_networks,
    make_regressor,
    num_networks,
    predicted,
    rows_with_signals,
    signal_features,
)
from shardsieve.order import permutation
from shardsieve.scores.inputs import plain

# A line through some hundred features needs no more, and all of a million would take hours.
MOST = 20_000
_SALT = 0x1E55


@dataclass(frozen=True)
class Lesson:
    """A line fitted on trained seeds, and how far held-out seeds bear it out.

    Attributes:
        networks: The first so many are asked.
        share: Of the prediction, in `[0, 1/2]`: r / (1 + r) of the line's correlation r with
            held-out seeds' scores, 0 where it runs against them.
        model: The line.
        low: (f,), the least that was seen of each feature: beyond it nothing was learned.
        high: (f,), the greatest.
        scale: Takes the line to the unit of held-out seeds' scores.
        offset: Likewise.
    """

    networks: int
    share: float
    model: Any
    low: Floats
    high: Floats
    scale: float
    offset: float

    def features(self, signals: Signals | None, num_samples: int) -> Floats:
        """Return the features of the networks that are asked, as in `signal_features`."""
        return _early(signals, self.networks, num_samples)

    def to_dict(self) -> dict[str, Any]:
        """Return what held-out seeds chose, JSON-ready."""
        return {"networks": self.networks, "share": round(self.share, 4)}

    def blended(self, own: Floats, features: Floats) -> Floats:
        """Return `own` predictions, (n,), moved by `share` to the lesson's: float32 (n,).

        Args:
            own: What held-out seeds teach.
            features: (n, f), as it was learned from.
        """
        told = self.offset + self.scale * _told(self.model, features, self.low, self.high)
        return ((1 - self.share) * own + self.share * told).astype(np.float32)


def learn(
    signals: Signals | None, beside: Floats, scores: Floats, *, trained: Ids, held_out: Ids
) -> Lesson | None:
    """Return the lesson of as many of the first networks as held-out seeds agree with best.

    Trained seeds are many, and their scores come from being trained on, as a full run's do. But
    late networks have memorised them, and in the end their scores are memorised too. Either shows
    on held-out seeds, which take no part in the fit: the number of networks is the one whose
    predictions of them correlate best (Pearson) with their scores, and that correlation r is the
    lesson's weight beside the 1 of what held-out seeds teach themselves. Costs a ridge regression
    per network, on at most `MOST` seeds.

    Held-out seeds' scores alone cannot set the weight: the networks that made them tell them
    nearly exactly, and with them what is wrong with them.

    Args:
        signals: Of m seeds, as in `signal_features`.
        beside: (m, e), features besides, of the rows named below.
        scores: (m,).
        trained: Rows to learn from; None is the lesson of none.
        held_out: Rows to try on, at least 1.
    """
    if not len(trained):
        return None
    tried = []
    for count in range(1, num_networks(signals) + 1):
        features = np.concatenate([_early(signals, count, len(scores)), beside], axis=1)
        tried.append(_taught(count, features, scores, trained, held_out))
    return max(tried, key=lambda lesson: lesson.share)


def split(features: Floats, trained: ArrayLike | None, seed: int) -> tuple[Ids, Ids]:
    """Return the rows held out and those trained on, with signals both, ascending.

    Of more than `MOST` trained on so many are drawn by the seed; a single one teaches nothing.

    Args:
        features: (m, f); all NaN where there are no signals.
        trained: bool (m,); None: no row with signals.
        seed: Of the draw.

    Raises:
        ValueError: If `trained` is no such mask, or no row with signals is held out.
    """
    known = rows_with_signals(features)
    seen = np.zeros(len(known), np.bool_) if trained is None else np.asarray(plain(trained))
    if seen.shape != known.shape or seen.dtype != np.bool_:
        raise ValueError(
            f"trained must be booleans of shape {known.shape}, got {seen.dtype} of shape "
            f"{seen.shape}; give True for each seed that the network was trained on"
        )
    held, taught = np.flatnonzero(known & ~seen), np.flatnonzero(known & seen)
    if not len(held):
        raise ValueError(
            f"trained must leave out a seed with signals, got all {len(taught)} of them; "
            "hold seeds out of the seed run"
        )
    taught = taught[permutation(len(taught), seed, _SALT)[:MOST]]
    return held, np.sort(taught) if len(taught) > 1 else taught[:0]


def _taught(count: int, features: Floats, scores: Floats, trained: Ids, held_out: Ids) -> Lesson:
    rows = features[trained]
    model = make_regressor("ridge", len(rows), 0).fit(rows, scores[trained])
    # fmin and fmax pass over missing signals where there is a number.
    low, high = np.fmin.reduce(rows), np.fmax.reduce(rows)
    told, wanted = _told(model, features[held_out], low, high), scores[held_out].astype(np.float64)
    spread = told.std()
    if not spread * wanted.std() > 0:  # nothing to compare
        return Lesson(count, 0.0, model, low, high, 1.0, 0.0)
    agreement = min(max(float(np.corrcoef(told, wanted)[0, 1]), 0.0), 1.0)
    share, scale = agreement / (1 + agreement), float(wanted.std() / spread)
    return Lesson(count, share, model, low, high, scale, float(wanted.mean() - scale * told.mean()))


def _told(model: Any, features: Floats, low: Floats, high: Floats) -> NDArray[np.float64]:
    return predicted(model, np.clip(features, low, high)).astype(np.float64)


def _early(signals: Signals | None, count: int, num_samples: int) -> Floats:
    return signal_features(None if signals is None else first_networks(signals, count), num_samples)
