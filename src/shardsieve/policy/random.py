"""Uniform random dynamic pruning."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.order import permutation, random_bits
from shardsieve.policy.base import Choice, Expected, Policy
from shardsieve.policy.inbox import Rows
from shardsieve.selection import check_fraction, num_kept

_PASS, _DRAW = 0x5253, 0x5232


class RandomDynamic(Policy):
    """A fresh random part of the data in every epoch: RS2, Okanovic et al., ICLR 2024.

    Without replacement it walks a permutation of the samples, carries what is left into the next
    epoch and fills that up from a new permutation. So every sample comes once per permutation, and
    none twice in an epoch. With replacement every epoch draws anew from all samples.

    Attributes:
        keep_fraction: Of every epoch, in `(0, 1]`.
        replacement: Draw anew in every epoch.
    """

    def __init__(self, keep_fraction: float, replacement: bool = False, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        check_fraction(keep_fraction)
        self.keep_fraction, self.replacement = keep_fraction, replacement
        self._pass: tuple[int, Rows] | None = None

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        how = {"keep_fraction": self.keep_fraction, "replacement": self.replacement}
        return {"policy": "random", **how, "seed": self.seed}

    def expect(self, epoch: int) -> Expected:
        """See `Policy`; exact."""
        kept = num_kept(len(self.store), self.keep_fraction)
        return Expected(kept, kept, kept)

    def _choose(self, epoch: int) -> Choice:
        n = len(self.store)
        kept = num_kept(n, self.keep_fraction)
        if self.replacement:
            return Choice(np.sort(permutation(n, self.seed, _DRAW, epoch)[:kept]))
        first, place = divmod(epoch * kept, n)
        rows = self._order(first)[place : place + kept]
        if len(rows) < kept:
            rows = np.concatenate([rows, self._order(first + 1)[: kept - len(rows)]])
        return Choice(np.sort(rows))

    def _order(self, number: int) -> Rows:
        """Return the order of one pass: what the pass before left to its epoch comes last."""
        n = len(self.store)
        kept = num_kept(n, self.keep_fraction)
        if self._pass is None or self._pass[0] > number:
            self._pass = 0, permutation(n, self.seed, _PASS, 0)
        at, order = self._pass
        if at < number:
            late = np.zeros(n, dtype=np.bool_)
            late[order[n - (at + 1) * n % kept :]] = True
            for between in range(at + 1, number):
                bits = random_bits(n, self.seed, _PASS, between)
                late = _last(bits, late, (between + 1) * n % kept)
            order = permutation(n, self.seed, _PASS, number)
            order = np.concatenate([order[~late[order]], order[late[order]]])
        self._pass = number, order
        return order


def _last(bits: NDArray[np.uint64], late: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return which rows are the last `count` where late ones come last, and else by their bits.

    No order is made of the others: of a pass only what it leaves to the next one decides.
    """
    short = count - int(late.sum())
    last = late.copy() if short >= 0 else np.zeros_like(late)
    among, wanted = np.flatnonzero(~late if short >= 0 else late), short if short >= 0 else count
    first = len(among) - wanted
    if wanted:
        last[among[np.argpartition(bits[among], first)[first:]]] = True
    return last
