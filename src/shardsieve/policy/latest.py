"""The state of a policy that somebody saves later than it was asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class LatestState(Mapping[str, Any]):
    """A state as it is when it is looked at or pickled, until it is settled; then as it was then.

    torchdata asks a sampler for its state when it asks for a batch, before the loop has reported
    the losses of the batches that it is given meanwhile. What is saved must hold them.
    """

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state

    def settle(self) -> None:
        """Stay as it is now."""
        settled = self._state()
        self._state = lambda: settled

    def __getitem__(self, name: str) -> Any:
        return self._state()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state())

    def __len__(self) -> int:
        return len(self._state())

    def __reduce__(self) -> tuple[Any, ...]:
        # `torch.load` makes an OrderedDict with `weights_only=True`, but no class of ours.
        return OrderedDict, (), None, None, iter(self._state().items())
