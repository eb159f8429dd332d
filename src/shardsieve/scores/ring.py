"""What the streaming scorers share: the last few values of each sample, and their state."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.scores.inputs import Floats, whole_number


class Ring:
    """The last `length` values of each sample, whenever they came.

    Attributes:
        values: (length, n), float64; the value number i of a sample stands in row i mod length.
        count: (n,), int64: how many values each sample has had.
    """

    def __init__(self, length: int, num_samples: int) -> None:
        self.values = np.zeros((length, num_samples))
        self.count = np.zeros(num_samples, dtype=np.int64)

    def full(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the positions that have had `length` values or more."""
        return positions[self.count[positions] >= len(self.values)]

    def window(self, positions: NDArray[np.int64]) -> Floats:
        """Return the last values of samples that are full, (length, b), oldest first."""
        length = len(self.values)
        rows = (self.count[positions] + np.arange(length)[:, None]) % length
        window: Floats = self.values[rows, positions]
        return window

    def push(self, positions: NDArray[np.int64], values: Floats) -> None:
        """Add one value to each of the samples, in place of its oldest."""
        self.values[self.count[positions] % len(self.values), positions] = values
        self.count[positions] += 1


def require(count: NDArray[np.int64], least: int, wanted: str) -> None:
    """Refuse a sample that has had fewer than `least` values."""
    short = np.flatnonzero(count < least)
    if len(short):
        raise ValueError(
            f"updates must bring {wanted} per sample, got {count[short[0]]} "
            f"for sample {short[0]}; train longer or pass a smaller window"
        )


class StreamingScorer(ABC):
    """Keeps something of every sample while training runs, and can be saved."""

    def __init__(self, scorer: str, num_samples: int, **settings: Any) -> None:
        whole_number("num_samples", num_samples, 0)
        self._num_samples = num_samples
        self._settings = {"scorer": scorer, "num_samples": num_samples, **settings}

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and copies of the arrays."""
        return {**self._settings, **{name: array.copy() for name, array in self._arrays().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: If it belongs to another scorer or other settings; nothing is changed then.
        """
        settings, arrays = self._settings, self._arrays()
        wanted, got = sorted([*settings, *arrays]), sorted(state)
        if got != wanted:
            raise ValueError(
                f"state must hold {', '.join(wanted)}, got {', '.join(got) or 'nothing'}; "
                "pass what state_dict() returned"
            )
        for name, value in settings.items():
            if state[name] != value:
                raise ValueError(
                    f"state must have {name}={value!r}, got {state[name]!r}; "
                    "construct the scorer as it was when the state was saved"
                )
        for name, array in arrays.items():
            shape = np.shape(state[name])
            if shape != array.shape:
                raise ValueError(
                    f"state must have {name} of shape {array.shape}, got {shape}; "
                    "pass what state_dict() returned"
                )
        for name, array in arrays.items():
            array[...] = state[name]

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept, by name."""
