"""The same scores while training runs, without keeping every epoch."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.divergences import within_decay
from shardsieve.scores.events import NeverLearned, place_never_learned
from shardsieve.scores.inputs import (
    Floats,
    batch_values,
    positions_within,
    truths,
    whole_number,
)
from shardsieve.scores.ring import Ring, StreamingScorer, require
from shardsieve.scores.windows import deviation, fluctuation


class StreamingDynamicUncertainty(StreamingScorer):
    """Dynamic uncertainty (arXiv 2306.05175) in J + 2 numbers per sample, however many epochs.

    `score()` equals `dynamic_uncertainty` of the values of each sample, to the bit, however the
    epochs were cut into batches. `load_state_dict(state_dict())` changes nothing.
    """

    def __init__(
        self,
        num_samples: int,
        window: int = 10,
        *,
        include_last: bool = False,
        population: bool = False,
    ) -> None:
        whole_number("window", window, 2)
        how = {"include_last": include_last, "population": population}
        super().__init__("dynamic_uncertainty", num_samples, window=window, **how)
        self._window, self._include_last, self._population = window, include_last, population
        self._ring = Ring(window, num_samples)
        # Over all windows but the newest, which becomes the last one if no more values come.
        self._total = np.zeros(num_samples)

    def update(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Add the label's probability, in `[0, 1]`, of some samples, (b,).

        Raises:
            ValueError: If a position is out of range or comes twice, or a value is out of range;
                nothing is added then.
        """
        where = positions_within(positions, self._num_samples)
        new = batch_values(values, where, 1.0)
        full = self._ring.full(where)
        self._total[full] += self._deviation(full)
        self._ring.push(where, new)

    def score(self) -> Floats:
        """Return the score of all samples so far, float64 (n,).

        Raises:
            ValueError: If a sample has had too few values, naming the first.
        """
        count = self._ring.count
        if not self._include_last:
            require(count, self._window + 1, f"more than window={self._window} values")
            return self._total / (count - self._window)
        require(count, self._window, f"at least window={self._window} values")
        newest = self._deviation(np.arange(self._num_samples))
        return (self._total + newest) / (count - self._window + 1)

    def _deviation(self, positions: NDArray[np.int64]) -> Floats:
        return deviation(self._ring.window(positions), population=self._population)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"ring": self._ring.values, "count": self._ring.count, "total": self._total}


class StreamingTDDS(StreamingScorer):
    """TDDS (arXiv 2311.13613) from one divergence per sample and epoch, in J + 1 numbers each.

    `score()` equals `tdds_from_divergence` of the values of each sample, to the bit.
    `load_state_dict(state_dict())` changes nothing.
    """

    def __init__(
        self, num_samples: int, window: int = 10, decay: float = 0.9, *, squared: bool = False
    ) -> None:
        whole_number("window", window, 3)
        within_decay(decay)
        how = {"squared": True} if squared else {}  # unknown to earlier releases
        super().__init__("tdds", num_samples, window=window, decay=decay, **how)
        self._decay, self._squared = decay, squared
        self._ring = Ring(window - 1, num_samples)
        self._average = np.zeros(num_samples)

    def update(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Add the `divergence` from the epoch before of some samples, (b,), at least 0.

        Raises:
            ValueError: If a position is out of range or comes twice, or a value is out of range;
                nothing is added then.
        """
        where = positions_within(positions, self._num_samples)
        self._ring.push(where, batch_values(values, where, np.inf))
        full = self._ring.full(where)
        norm = fluctuation(self._ring.window(full))
        norm = norm**2 if self._squared else norm
        self._average[full] = (1 - self._decay) * self._average[full] + self._decay * norm

    def score(self) -> Floats:
        """Return the score of all samples so far, float64 (n,).

        Raises:
            ValueError: If a sample has had too few values, naming the first.
        """
        least = len(self._ring.values)
        require(self._ring.count, least, f"at least window - 1 = {least} values")
        return self._average.copy()

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"ring": self._ring.values, "count": self._ring.count, "average": self._average}


class StreamingForgetting(StreamingScorer):
    """Forgetting events (arXiv 1812.05159) between successive presentations, however far apart.

    `score()` equals `forgetting` with `presented` true where a sample was in an update.
    `load_state_dict(state_dict())` changes nothing.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__("forgetting", num_samples)
        self._events = np.zeros(num_samples, dtype=np.int64)
        self._presentations = np.zeros(num_samples, dtype=np.int64)
        self._before = np.zeros(num_samples, dtype=np.bool_)
        self._learned = np.zeros(num_samples, dtype=np.bool_)

    def update(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Add whether some samples, (b,), were classified correctly.

        Raises:
            ValueError: If a position is out of range or comes twice, or a value is not a truth;
                nothing is added then.
        """
        where = positions_within(positions, self._num_samples)
        right = truths("values", values, "n")
        if right.shape != where.shape:
            raise ValueError(
                f"values must have shape {where.shape}, got {right.shape}; pass one per position"
            )
        self._events[where] += self._before[where] & ~right
        self._presentations[where] += 1
        self._before[where] = right
        self._learned[where] |= right

    def score(self, never_learned: NeverLearned = "hardest") -> Floats:
        """Return the score of all samples so far, float64 (n,); see `forgetting`."""
        return place_never_learned(self._events, self._learned, self._presentations, never_learned)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "events": self._events,
            "presentations": self._presentations,
            "before": self._before,
            "learned": self._learned,
        }
