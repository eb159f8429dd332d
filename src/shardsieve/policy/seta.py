"""SeTa: a window over groups of losses that slides from easy to hard."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.order import permutation
from shardsieve.policy.base import (
    Choice,
    Expected,
    check_epoch,
    check_schedule,
    in_unit,
    is_last_part,
)
from shardsieve.policy.inbox import Floats, Rows
from shardsieve.policy.losses import LastLossPolicy
from shardsieve.scores.inputs import whole_number
from shardsieve.selection import num_kept

_DRAW = 0x5365
# Places to cut losses at: more cost time, and memory by the square.
_PLACES = 2048


class SeTa(LastLossPolicy):
    """Zhou, Gao, Wang, CVPR 2025, arXiv 2503.13385.

    Draws (1 - ratio) of the samples, groups their last losses by one-dimensional k-means, and keeps
    a window of groups that moves by one per epoch, easy to hard, and begins again. The last
    (1 - delta) of `num_epochs` keep the whole draw. No weights. Samples without a loss are kept,
    and those whose last loss was not finite are drawn first.

    Attributes:
        ratio: In `[0, 1)`.
        groups: At least 1.
        alpha: Share of the groups in the window, in `(0, 1]`.
        num_epochs: Of the run, at least 1; None has no last part.
        delta: In `[0, 1]`.
        rounding: Of alpha·groups: `ceil` as in the paper, or `round`, the official code's, half to
            even.
        prior: Name of a stored score in place of first losses; None has none.
    """

    def __init__(
        self,
        ratio: float = 0.1,
        groups: int = 5,
        alpha: float = 0.9,
        num_epochs: int | None = None,
        delta: float = 0.875,
        *,
        rounding: str = "ceil",
        seed: int = 0,
        prior: str | None = None,
    ) -> None:
        super().__init__(seed=seed, prior=prior)
        self.ratio = in_unit("ratio", ratio)
        whole_number("groups", groups, 1)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        if rounding not in ("ceil", "round"):
            raise ValueError(f"rounding must be 'ceil' or 'round', got {rounding!r}")
        check_schedule(num_epochs, delta)
        self.groups, self.alpha, self.rounding = groups, alpha, rounding
        self.num_epochs, self.delta = num_epochs, delta
        # 0.6 * 5 is 3.0000000000000004 in some orders of evaluation: a hair is no group.
        exact = alpha * groups
        width = math.ceil(exact - 1e-9) if rounding == "ceil" else round(exact)
        self.width = max(width, 1)

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        how: dict[str, Any] = {"ratio": self.ratio, "groups": self.groups, "alpha": self.alpha}
        how |= {"num_epochs": self.num_epochs, "delta": self.delta, "rounding": self.rounding}
        return {"policy": "seta", **how, "seed": self.seed, "prior": self.prior}

    def expect(self, epoch: int) -> Expected:
        """See `Policy`; expected as if groups were of one size."""
        drawn = num_kept(len(self.store), 1 - self.ratio)
        if self._keeps_draw(epoch) or (epoch == 0 and self.prior is None):
            return Expected(drawn, drawn, drawn)
        return Expected(drawn * self.width / self.groups, 1, drawn)

    def _keeps_draw(self, epoch: int) -> bool:
        check_epoch(epoch, self.num_epochs)
        return self.width >= self.groups or is_last_part(epoch, self.num_epochs, self.delta)

    def _choose(self, epoch: int) -> Choice:
        n = len(self._loss)
        order = permutation(n, self.seed, _DRAW, epoch)
        # A loss that was not finite puts its sample first, so that it is kept.
        order = order[np.argsort(~np.isinf(self._loss[order]), kind="stable")]
        drawn = order[: num_kept(n, 1 - self.ratio)]
        losses = self._loss[drawn]
        known = np.isfinite(losses)
        if self._keeps_draw(epoch) or not known.any():
            return Choice(np.sort(drawn))
        start = epoch % (self.groups - self.width + 1)
        group = np.full(len(drawn), start)
        group[known] = groups_of(losses[known], self.groups)
        inside = (group >= start) & (group < start + self.width)
        # Many equal losses, as of a network that has learned all, leave groups empty.
        return Choice(np.sort(drawn[inside] if inside.any() else drawn))


def groups_of(values: Floats, groups: int, rounds: int = 100) -> NDArray[np.int64]:
    """Return each value's group by one-dimensional k-means, numbered by ascending mean.

    Depends on the values alone. The groups are those of the least squares up to `_PLACES` values;
    of more, where borders are looked for at so many places, Lloyd's rounds from there.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    cuts = _best_cuts(ordered, groups)
    centres = ordered[np.minimum(cuts[:-1], len(ordered) - 1)]
    for _ in range(rounds):
        sizes = np.diff(cuts)
        means = np.diff(sums[cuts]) / np.maximum(sizes, 1)
        moved = np.sort(np.where(sizes > 0, means, centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        cuts = np.concatenate([[0], ends, [len(ordered)]])
    borders = (centres[1:] + centres[:-1]) / 2
    return np.searchsorted(borders, values, side="right").astype(np.int64)


def _best_cuts(ordered: Floats, groups: int) -> Rows:
    """Return where ascending values are cut into groups of the least squares: (groups + 1,).

    By dynamic programming (Wang and Song, R Journal 3/2, 2011) over the places of `_places`.
    """
    places = _places(ordered)
    # Squares of any losses stay in range.
    centred = (ordered - ordered.mean()) / max(np.ptp(ordered), np.finfo(np.float64).tiny)
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)])[places] for x in (centred, centred**2))
    first, last = np.arange(len(places))[:, None], np.arange(len(places))
    sizes = np.maximum(places - places[:, None], 1)
    within = squares - squares[:, None] - (sums - sums[:, None]) ** 2 / sizes
    within[first == last], within[first > last] = 0, np.inf
    costs, begins = within[0], list[Rows]()
    for _ in range(groups - 1):
        of_both = costs[:, None] + within
        begins.append(of_both.argmin(axis=0))
        costs = of_both.min(axis=0)
    cuts = [len(places) - 1]
    for begin in reversed(begins):
        cuts.append(int(begin[cuts[-1]]))
    return places[[0, *reversed(cuts)]]


def _places(ordered: Floats) -> Rows:
    """Return where ascending values may be cut, both ends among them: never between equal ones.

    Of many values half of the places are even in number, and half in value: few values may lie
    far from all others.
    """
    n = len(ordered)
    places = np.arange(n + 1)
    if n > _PLACES:
        even = np.linspace(ordered[0], ordered[-1], _PLACES // 2)
        by_number = places[np.linspace(0, n, _PLACES // 2).astype(np.int64)]
        places = np.unique(np.concatenate([by_number, np.searchsorted(ordered, even), [0, n]]))
    inner = places[1:-1]
    apart: Rows = places[np.concatenate([[True], ordered[inner] != ordered[inner - 1], [True]])]
    return apart
