"""FFCV's own traversal orders, restricted to kept rows and freed from the rank."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.generic]


class _KeptView:
    """The loader as its traversal order sees it, but for the rows, the seed and the ranks."""

    def __init__(self, loader: Any, rows: Rows, seed: int) -> None:
        self._loader, self.indices, self.seed = loader, rows, seed
        self.distributed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class LoaderOrder:
    """The order in which the loader itself would read the kept rows.

    FFCV's orders are made anew over the kept rows: what `indices=` would give. Any other order is
    asked for its own rows, of which those not kept are left out.

    Attributes:
        is_ffcvs: True for the orders that FFCV brings.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        from ffcv.traversal_order import QuasiRandom, Random, Sequential

        self._loader, self._seed = loader, seed
        self.is_ffcvs = type(loader.traversal_order) in (QuasiRandom, Random, Sequential)
        self._made: tuple[Rows, Any, Rows | None] | None = None
        if loader.distributed and not self.is_ffcvs:
            raise ValueError(
                "order must be 'pages' for a distributed loader with a custom traversal order, "
                "whose rows depend on the rank; got 'loader'"
            )

    def rows(self, kept: Rows, is_kept: NDArray[np.bool_], epoch: int) -> Rows:
        """Return the rows of one epoch.

        Args:
            kept: The loader's own indices that are kept, in its order.
            is_kept: bool (n,), by row.
            epoch: At least 0.
        """
        if len(kept) == 0:
            return kept
        if not self.is_ffcvs:
            order = np.asarray(self._loader.traversal_order.sample_order(epoch))
            chosen: Rows = order[is_kept[order]]
            return chosen
        if self._made is None or self._made[0] is not kept:
            view = _KeptView(self._loader, kept, self._seed)
            order = type(self._loader.traversal_order)(view)
            table = getattr(order, "page_to_samples_array", None)
            self._made = kept, order, None if table is None else table.copy()
        order, table = self._made[1:]
        if table is not None:
            # QuasiRandom shuffles its table in place: an epoch would depend on those before it.
            order.page_to_samples_array[:] = table
        return np.asarray(order.sample_order(epoch))
