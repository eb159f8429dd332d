"""The rules of Raju, Daruwalla, Lipasti, arXiv 2111.12621: chosen every few epochs by losses."""

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.policy.base import Choice, Expected, highest
from shardsieve.policy.inbox import Floats, Rows
from shardsieve.policy.losses import LossPolicy
from shardsieve.scores.inputs import whole_number
from shardsieve.selection import check_fraction, num_kept
from shardsieve.store.store import Store

_TIES, _OTHERS = 0x5453, 0x4550


class _Periodic(LossPolicy):
    """Chooses every `period` epochs, and keeps that choice in between.

    Attributes:
        keep_fraction: Of every epoch, in `(0, 1]`.
        period: Epochs, at least 1.
        alpha: Weight of the newest loss in the averages, in `(0, 1]`.
        prior: Name of a stored score that averages start from; None starts from 1.
    """

    name = ""

    def __init__(
        self,
        keep_fraction: float,
        *,
        period: int,
        alpha: float,
        seed: int,
        prior: str | None,
    ) -> None:
        super().__init__(seed=seed, prior=prior)
        check_fraction(keep_fraction)
        whole_number("period", period, 1)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}; 0.8 is usual")
        self.keep_fraction, self.period, self.alpha = keep_fraction, period, alpha

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        how = {"keep_fraction": self.keep_fraction, "period": self.period, "alpha": self.alpha}
        return {"policy": self.name, **how, "seed": self.seed, "prior": self.prior}

    def expect(self, epoch: int) -> Expected:
        """See `Policy`; exact."""
        kept = num_kept(len(self.store), self.keep_fraction)
        return Expected(kept, kept, kept)

    def _begin(self, store: Store) -> None:
        self._mean = self._first(store, 1.0)
        self._kept = np.full(num_kept(len(store), self.keep_fraction), -1, dtype=np.int64)
        self._since = np.full(1, -1, dtype=np.int64)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"mean": self._mean, "kept": self._kept, "since": self._since}

    def _choose(self, epoch: int) -> Choice:
        begin = epoch - epoch % self.period
        if int(self._since[0]) != begin:
            self._kept[:] = self._best(begin)
            self._since[0] = begin
        return Choice(self._kept.copy())

    @abstractmethod
    def _best(self, epoch: int) -> Rows:
        """Return the rows to keep from this epoch on, ascending."""

    def _take_in(self, rows: Rows, losses: Floats) -> None:
        before = self._mean[rows]
        with np.errstate(invalid="ignore"):  # alpha 1 multiplies an infinite average by 0
            average = (1 - self.alpha) * before + self.alpha * losses
        # After a loss that was not finite, the average begins anew.
        self._mean[rows] = np.where(np.isfinite(before), average, losses)

    def _learned(self) -> Floats:
        return self._mean


class EpsilonGreedy(_Periodic):
    """Keeps the highest average losses, and a share `epsilon` of the keep set drawn from others.

    Averages are exponential, s = (1 - alpha)s + alpha·loss, from 1 or from the stored score
    `prior`. Of K kept samples, int(epsilon·K) are drawn.

    Attributes:
        keep_fraction: Of every epoch, in `(0, 1]`.
        epsilon: In `[0, 1]`.
        period: Epochs between choices, at least 1.
        alpha: Weight of the newest loss in the averages, in `(0, 1]`.
        prior: Name of a stored score that averages start from; None starts from 1.
    """

    name = "epsilon_greedy"

    def __init__(
        self,
        keep_fraction: float,
        epsilon: float = 0.1,
        period: int = 10,
        *,
        alpha: float = 0.8,
        seed: int = 0,
        prior: str | None = None,
    ) -> None:
        super().__init__(keep_fraction, period=period, alpha=alpha, seed=seed, prior=prior)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
        self.epsilon = epsilon

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().settings(), "epsilon": self.epsilon}

    def _best(self, epoch: int) -> Rows:
        kept = len(self._kept)
        # 0.29 * 100 is 28.999...96 in floating point, and 29 in the paper.
        drawn = int(self.epsilon * kept + 1e-9)
        # Samples whose loss was not finite come before all others, and are kept.
        drawn = min(drawn, max(kept - int(np.isinf(self._mean).sum()), 0))
        top = highest(self._mean, kept - drawn, self.seed, _TIES, epoch)
        others = np.setdiff1d(np.arange(len(self._mean)), top, assume_unique=True)
        extra = highest(np.zeros(len(others)), drawn, self.seed, _OTHERS, epoch)
        return np.sort(np.concatenate([top, others[extra]]))


class UCB(_Periodic):
    """Keeps the samples with the highest mean + c·variance of the loss, both exponential averages.

    The variance takes in (loss - mean)² with the mean from before this loss, and begins at 0. From
    1, above most losses, samples that were left out come in turn; from a prior the lowest may not.

    Attributes:
        keep_fraction: Of every epoch, in `(0, 1]`.
        c: Finite, at least 0.
        period: Epochs between choices, at least 1.
        alpha: Weight of the newest loss in the averages, in `(0, 1]`.
        prior: Name of a stored score that averages start from; None starts from 1.
    """

    name = "ucb"

    def __init__(
        self,
        keep_fraction: float,
        c: float = 1.0,
        period: int = 10,
        *,
        alpha: float = 0.8,
        seed: int = 0,
        prior: str | None = None,
    ) -> None:
        super().__init__(keep_fraction, period=period, alpha=alpha, seed=seed, prior=prior)
        if not 0 <= c < np.inf:
            raise ValueError(f"c must be at least 0, got {c}; the paper uses 1")
        self.c = c

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().settings(), "c": self.c}

    def _begin(self, store: Store) -> None:
        super()._begin(store)
        self._variance = np.zeros(len(store))

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**super()._arrays(), "variance": self._variance}

    def _take_in(self, rows: Rows, losses: Floats) -> None:
        before = np.where(np.isfinite(self._mean[rows]), self._mean[rows], losses)
        with np.errstate(invalid="ignore"):
            apart = np.where(np.isfinite(losses), (losses - before) ** 2, 0.0)
        self._variance[rows] = (1 - self.alpha) * self._variance[rows] + self.alpha * apart
        super()._take_in(rows, losses)

    def _best(self, epoch: int) -> Rows:
        return highest(self._learned(), len(self._kept), self.seed, _TIES, epoch)

    def _learned(self) -> Floats:
        return np.asarray(self._mean + self.c * self._variance)
