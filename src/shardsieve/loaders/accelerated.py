"""Loaders that are split already, yet tell Accelerate where a pass of theirs ends."""

from typing import Any

from accelerate.state import GradientState


class RegisteredIterator:
    """Iterates a loader's batches; meanwhile Accelerate knows the loader as the active one.

    Accelerate ends gradient accumulation with a pass, and trims what filled up its last batch, by
    what the active loader says in `end_of_dataloader` and `remainder`. Accelerate's own loaders say
    it; ours is not one of them, as that would split it again.
    """

    def __init__(self, loader: Any, iterator: Any, total: int, remainder: int) -> None:
        """Begin a pass.

        Args:
            loader: What Accelerate asks.
            iterator: Of the loader.
            total: Batches in the pass.
            remainder: Samples over all ranks in its last step, 0 for a full one.
        """
        self._loader, self._iterator = loader, iterator
        self._left, self._given = total, 0
        loader.__dict__.update(end_of_dataloader=False, remainder=remainder)
        # Nobody has made an Accelerator: nobody asks.
        self._state = GradientState() if GradientState._shared_state else None
        if self._state is not None:
            self._state._add_dataloader(loader)

    def __iter__(self) -> "RegisteredIterator":
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._end()
            raise
        self._left -= 1
        self._loader.__dict__["end_of_dataloader"] = self._left == 0
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_iterator"], name)

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        state = self.__dict__.get("_state")
        if state is not None:
            state._remove_dataloader(self._loader)
            self._state = None
