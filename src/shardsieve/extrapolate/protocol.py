"""What every extrapolator offers, and the checks of what it is given."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import plain, real

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Rows(Protocol):
    """Anything sliceable by rows, such as a numpy or a Zarr array: it is read block by block."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then dimensions."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Return a block of rows."""
        ...


class Extrapolator(Protocol):
    """Predicts scores from embeddings; `predict` of a seed need not return its own score.

    Fitting again forgets the seeds of before, and predicting changes nothing.
    """

    def fit(self, embeddings: Rows | ArrayLike, scores: ArrayLike) -> Any:
        """Take in the seeds' embeddings (m, d) and scores (m,)."""
        ...

    def predict(self, embeddings: Rows | ArrayLike) -> Floats:
        """Return the scores, float32 (n,), of embeddings (n, d)."""
        ...


def as_rows(embeddings: Rows | ArrayLike, dim: int | None = None) -> Rows:
    """Return what has rows to slice, unread; lists become arrays.

    Args:
        embeddings: (n, d).
        dim: The d that was fitted; None takes any.

    Raises:
        ValueError: If the shape is not (n, d), with d at least 1 and `dim` where given.
    """
    rows: Any = embeddings if hasattr(embeddings, "shape") else real("embeddings", embeddings)
    if len(rows.shape) != 2 or rows.shape[1] < 1 or dim not in (None, rows.shape[1]):
        wanted = "n, d" if dim is None else f"n, {dim}"
        raise ValueError(
            f"embeddings must have shape ({wanted}), got {tuple(rows.shape)}; "
            "seeds and rest need embeddings of one encoder"
        )
    return rows  # type: ignore[no-any-return]


def blocks(rows: Rows, size: int, part: slice = slice(None)) -> Iterator[tuple[int, Floats]]:
    """Yield (first row, block) with finite float32 blocks of at most `size` rows, in order.

    Only a part of the rows is read where one is given.

    Raises:
        ValueError: If a row holds NaN or an infinity, naming the first such row.
    """
    first, stop, _ = part.indices(rows.shape[0])
    for start in range(first, stop, size):
        # A float64 beyond float32 becomes infinite, and the check below says so.
        with np.errstate(over="ignore"):
            read = real("embeddings", rows[start : min(start + size, stop)])
            block = np.ascontiguousarray(read, dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            row = block[bad[0]]
            raise ValueError(
                f"embeddings must be finite, got {row[~np.isfinite(row)][0]}: row {start + bad[0]} "
                "is not; embed that sample again"
            )
        yield start, block


def checked_seeds(
    embeddings: Rows | ArrayLike, scores: ArrayLike, *, halves: bool = False
) -> tuple[NDArray[Any], Floats]:
    """Return the seeds' embeddings (m, d) and scores (m,), both finite float32, m at least 1.

    Args:
        embeddings: (m, d).
        scores: (m,).
        halves: Leave an array of half precision as it is: a copy would be twice as large.

    Raises:
        ValueError: If shapes disagree, there is no seed, or a number is not finite.
    """
    rows: Any = as_rows(embeddings)
    values = checked_scores(scores, rows.shape[0])
    checked = (block for _, block in blocks(rows, 65_536))
    if halves and isinstance(rows, np.ndarray) and rows.dtype == np.float16:
        deque(checked, maxlen=0)
        return rows, values
    return np.concatenate(list(checked)), values


def checked_scores(scores: ArrayLike, num_seeds: int) -> Floats:
    """Return the seeds' scores, finite float32 (m,), m at least 1.

    Raises:
        ValueError: If their number is another, there is no seed, or one is not finite.
    """
    with np.errstate(over="ignore"):
        values = np.asarray(real("scores", scores), dtype=np.float32)
    if num_seeds < 1:
        raise ValueError("embeddings must hold at least 1 seed, got 0; score some samples first")
    if values.shape != (num_seeds,):
        raise ValueError(
            f"scores must have shape ({num_seeds},), one per embedding, got {values.shape}; "
            "give the embeddings and scores of the same seeds"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"scores must be finite, got {values[bad[0]]} for seed {bad[0]} "
            f"({len(bad)} of {num_seeds} are not finite); give scored samples only"
        )
    return values


@overload
def checked_labels(labels: None, num_samples: int) -> None: ...
@overload
def checked_labels(labels: ArrayLike, num_samples: int) -> Ids: ...
def checked_labels(labels: ArrayLike | None, num_samples: int) -> Ids | None:
    """Return labels as int64 (n,), or None where none are given.

    Raises:
        ValueError: If they are no integers, or not one per sample.
    """
    if labels is None:
        return None
    classes = np.asarray(plain(labels))
    if classes.shape != (num_samples,) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({num_samples},), got {classes.dtype} of shape "
            f"{classes.shape}; give one per embedding, -1 where unknown"
        )
    return classes.astype(np.int64)
