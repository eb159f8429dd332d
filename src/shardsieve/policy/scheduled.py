"""Static scores with a keep fraction that moves over the run."""

from typing import Any

from numpy.typing import NDArray

from shardsieve.policy.base import Choice, Expected, Policy, check_epoch
from shardsieve.scores.inputs import whole_number
from shardsieve.selection import check_fraction, keep_top, num_kept
from shardsieve.store.store import Store


class AnnealedScore(Policy):
    """Keeps the top of a stored score; the keep fraction moves evenly from `first` to `last`.

    The score is read once and saved with the state: storing it anew changes no run.

    Attributes:
        score: Name of a stored score of every sample.
        first: Keep fraction of the first epoch, in `(0, 1]`.
        last: Keep fraction of the last epoch, in `(0, 1]`.
        num_epochs: Epochs of the run, at least 1.
    """

    def __init__(
        self, score: str, first: float, last: float, num_epochs: int, *, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        check_fraction(first)
        check_fraction(last)
        whole_number("num_epochs", num_epochs, 1)
        self.score, self.first, self.last, self.num_epochs = score, first, last, num_epochs

    def settings(self) -> dict[str, Any]:
        """See `Policy`."""
        how = {"score": self.score, "first": self.first, "last": self.last}
        return {"policy": "annealed_score", **how, "num_epochs": self.num_epochs}

    def expect(self, epoch: int) -> Expected:
        """See `Policy`; exact."""
        kept = num_kept(len(self.store), self._fraction(epoch))
        return Expected(kept, kept, kept)

    def _begin(self, store: Store) -> None:
        self._values = store.score(self.score)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"values": self._values}

    def _choose(self, epoch: int) -> Choice:
        return Choice(keep_top(self._values, self._fraction(epoch)))

    def _fraction(self, epoch: int) -> float:
        check_epoch(epoch, self.num_epochs)
        share = epoch / max(self.num_epochs - 1, 1)
        # 0.08 + (0.01 - 0.08) is a hair below 0.01, and would keep none of 50 samples.
        return self.last if share == 1 else self.first + (self.last - self.first) * share
