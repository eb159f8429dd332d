"""Loaders that are split already, yet tell Accelerate where a pass of theirs ends."""

from collections.abc import Callable
from typing import Any

from accelerate.state import GradientState


class RegisteredIterator:
    """Iterates a loader's batches; meanwhile Accelerate takes it for the active loader.

    Accelerate ends gradient accumulation with a pass, and trims what filled up its last batch, by
    what the active loader says in `end_of_dataloader` and `remainder`. Accelerate's own loaders say
    it; ours is not one of them, as that would split it again. It is not asked itself either: a
    loader keeps this iterator while its workers stay, and would then hold itself.
    """

    def __init__(self, make: Callable[[], Any], begin: Callable[[], tuple[int, int]]) -> None:
        """Begin a pass.

        Args:
            make: Returns the loader's own iterator.
            begin: Called at the beginning of each pass; returns the batches in it, and the samples
                over all ranks in its last step, 0 for a full one.
        """
        self._begin, self._state = begin, None
        self._register()
        self._iterator = make()

    def __iter__(self) -> "RegisteredIterator":
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._end()
            raise
        self._left -= 1
        self.end_of_dataloader = self._left == 0
        return batch

    def _reset(self, *args: Any) -> None:
        """Begin another pass; torch's loader asks for it where workers stay."""
        self._end()
        self._register()
        self._iterator._reset(*args)

    def _register(self) -> None:
        self._left, self.remainder = self._begin()
        self.end_of_dataloader = False
        # Nobody has made an Accelerator: nobody asks.
        self._state = GradientState() if GradientState._shared_state else None
        if self._state is not None:
            self._state._add_dataloader(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_iterator"], name)

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        state = self.__dict__.get("_state")
        if state is not None:
            state._remove_dataloader(self)
            self._state = None
