"""What the policies share that go by losses: a prior, and each sample's last loss."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.policy.base import Policy
from shardsieve.policy.inbox import Floats, Rows
from shardsieve.store.store import Store


class LossPolicy(Policy):
    """A policy that starts from stored scores if it is given any, else from nothing."""

    def __init__(self, *, seed: int = 0, prior: str | None = None) -> None:
        super().__init__(seed=seed)
        self.prior = prior

    def _first(self, store: Store, otherwise: float) -> Floats:
        if self.prior is None:
            return np.full(len(store), otherwise)
        values = store.score(self.prior).astype(np.float64)
        if not np.isfinite(values).all():
            raise MissingScoreError(
                f"score {self.prior!r} must be there for every sample; extrapolate it first"
            )
        return values


class LastLossPolicy(LossPolicy):
    """A policy that goes by each sample's last loss: NaN where none came, infinite if not finite.

    What it learned is the last loss.
    """

    def _begin(self, store: Store) -> None:
        self._loss = self._first(store, np.nan)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"loss": self._loss}

    def _take_in(self, rows: Rows, losses: Floats) -> None:
        self._loss[rows] = losses

    def _learned(self) -> Floats:
        return self._loss
