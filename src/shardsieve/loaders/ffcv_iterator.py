"""FFCV's epoch iterator over given batches: equal steps of any size, errors passed on."""

from collections.abc import Sequence
from contextlib import suppress
from queue import Empty
from typing import Any

import numpy as np
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.compiler import Compiler
from numpy.typing import NDArray


class _Batches:
    """What `EpochIterator` cuts into batches: each cut is one of the given batches."""

    def __init__(self, batches: Sequence[NDArray[np.generic]], size: int) -> None:
        self._batches, self._size = batches, size

    def __len__(self) -> int:
        return len(self._batches) * self._size

    def __getitem__(self, cut: slice) -> NDArray[np.generic]:
        batch: NDArray[np.generic] = self._batches[cut.start // self._size]
        return batch


class BatchIterator(EpochIterator):  # type: ignore[misc]
    """FFCV's iterator, whose reading thread hands its error over instead of hanging the loop."""

    error: BaseException | None = None

    def run(self) -> None:
        """Read until the last batch; runs in FFCV's thread."""
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001  it is raised again where the loop waits
            self.error = error
            self.output_queue.put(None)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise

    def close(self) -> None:
        """End the reading thread, also in the middle of an epoch; FFCV closes more than once."""
        self.iter_ixes = iter(())
        while self.is_alive():
            # The thread may wait for room in the queue; it ends before the pages go.
            with suppress(Empty):
                self.output_queue.get(timeout=0.05)
        if hasattr(self, "storage_state"):
            self.memory_context.__exit__(None, None, None)


def open_batches(loader: Any, batches: Sequence[NDArray[np.generic]]) -> BatchIterator:
    """Start reading these batches with the loader's compiled pipelines."""
    Compiler.set_num_threads(loader.num_workers)
    if loader.code is None or loader.recompile:
        loader.generate_code()
    return BatchIterator(loader, _Batches(batches, int(loader.batch_size)))
