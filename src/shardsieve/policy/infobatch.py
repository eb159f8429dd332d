"""InfoBatch: drop easy samples at random, and let the others of their kind weigh more."""

from typing import Any

import numpy as np

from shardsieve.order import uniform
from shardsieve.policy.base import (
    Choice,
    Expected,
    check_epoch,
    check_schedule,
    highest,
    in_unit,
    is_last_part,
)
from shardsieve.policy.inbox import Floats, Rows
from shardsieve.policy.losses import LastLossPolicy
from shardsieve.selection import num_kept

_DROP, _TIES = 0x4942, 0x4954


class InfoBatch(LastLossPolicy):
    """Qin et al., ICLR 2024, arXiv 2303.04947.

    Samples whose last loss lies strictly below the mean are dropped with `prune_probability`, and
    those of them that stay weigh 1 / (1 - prune_probability): the expected gradient is that of the
    full data. The last (1 - delta) of `num_epochs`, at least the last epoch unless delta is 1, use
    everything with weight 1. Samples without a loss yet are never dropped.

    Attributes:
        prune_probability: In `[0, 1)`.
        num_epochs: Of the run, at least 1; None has no last part.
        delta: In `[0, 1]`.
        fixed: Keep exactly the rounded number of candidates, each with the weight that is unbiased
            for that number.
        quantile: Take the lowest such share of the losses, in `[0, 1)`, for candidates, of equal
            ones some that are drawn; None those below the mean.
        prior: Name of a stored score in place of first losses; None has none.
    """

    def __init__(
        self,
        prune_probability: float = 0.5,
        num_epochs: int | None = None,
        delta: float = 0.875,
        *,
        fixed: bool = False,
        quantile: float | None = None,
        seed: int = 0,
        prior: str | None = None,
    ) -> None:
        super().__init__(seed=seed, prior=prior)
        self.prune_probability = in_unit("prune_probability", prune_probability)
        check_schedule(num_epochs, delta)
        if quantile is not None:
            in_unit("quantile", quantile)
        self.num_epochs, self.delta, self.fixed = num_epochs, delta, fixed
        self.quantile = quantile

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        how = {"prune_probability": self.prune_probability, "num_epochs": self.num_epochs}
        how |= {"delta": self.delta, "fixed": self.fixed, "quantile": self.quantile}
        return {"policy": "infobatch", **how, "seed": self.seed, "prior": self.prior}

    def expect(self, epoch: int) -> Expected:
        """See `Policy`; expected as if half of the losses (or `quantile`) were candidates."""
        n = len(self.store)
        if self._keeps_all(epoch) or (epoch == 0 and self.prior is None):
            return Expected(n, n, n)
        share = 0.5 if self.quantile is None else self.quantile
        return Expected(n * (1 - share * self.prune_probability), 1, n)

    def _keeps_all(self, epoch: int) -> bool:
        check_epoch(epoch, self.num_epochs)
        return self.prune_probability == 0 or is_last_part(epoch, self.num_epochs, self.delta)

    def _choose(self, epoch: int) -> Choice:
        n = len(self._loss)
        candidates = np.zeros(0, dtype=np.int64) if self._keeps_all(epoch) else self._easy(epoch)
        if not len(candidates):
            return Choice(np.arange(n, dtype=np.int64))
        if self.fixed:
            count = max(num_kept(len(candidates), 1 - self.prune_probability), 1)
            staying = highest(np.zeros(len(candidates)), count, self.seed, _DROP, epoch)
            weight = len(candidates) / count
        else:
            staying = np.flatnonzero(
                uniform(n, self.seed, _DROP, epoch)[candidates] >= self.prune_probability
            )
            weight = 1 / (1 - self.prune_probability)
        kept, weights = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.float32)
        kept[candidates] = False
        kept[candidates[staying]], weights[candidates[staying]] = True, weight
        rows = np.flatnonzero(kept).astype(np.int64)
        return Choice(rows, weights[rows])

    def _easy(self, epoch: int) -> Rows:
        known: Rows = np.flatnonzero(np.isfinite(self._loss))
        if not len(known):
            return known
        losses: Floats = self._loss[known]
        if self.quantile is None:
            return np.asarray(known[losses < losses.mean()])
        cut = np.quantile(losses, self.quantile)
        count, alike = int((losses < cut).sum()), int((losses == cut).sum())
        if self.quantile and alike > 1:  # late in a run many losses are exactly 0
            count = max(count, num_kept(len(known), self.quantile))
        return known[highest(-losses, count, self.seed, _TIES, epoch)]
