"""D2: scores passed along the edges of a graph of neighbours."""

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, finite, plain

Ids = NDArray[np.int64]
_NEIGHBOURS = "pass what `shardsieve.extrapolate.neighbours` returned"


def message_passing(scores: ArrayLike, neighbours: ArrayLike, distances: ArrayLike) -> Floats:
    """Return every score plus its neighbours' scores weighted by exp(-distance), float64 (n,).

    The forward pass of D2: Maharana, Yadav, Bansal, ICLR 2024, arXiv 2310.07931; high is kept
    first. The graph is made symmetric: an edge holds both ways when either end lists the other.

    Args:
        scores: (n,), finite; high is kept first.
        neighbours: (n, k), integers in `[0, n)`; a row's own number is passed over.
        distances: (n, k), finite, at least 0.

    Raises:
        ValueError: If shapes disagree or a value is out of range.

    >>> message_passing([1.0, 2.0, 5.0], [[1], [0], [1]], [[0.0], [0.0], [0.0]]).tolist()
    [3.0, 8.0, 7.0]
    """
    return _passed(*_graph(scores, neighbours, distances))


def d2(
    scores: ArrayLike,
    neighbours: ArrayLike,
    distances: ArrayLike,
    gamma: float = 0.1,
    *,
    absolute: bool = False,
) -> Floats:
    """Return D2's order of choice: n for the first sample taken, 1 for the last, float64 (n,).

    Maharana, Yadav, Bansal, ICLR 2024, arXiv 2310.07931; high is kept first. After the forward pass
    the sample of the highest value is taken and lowers its neighbours by its value, times
    exp(-gamma·distance), again and again. The K highest are D2's choice of K, for every K. With
    neighbours found within classes and a class-balanced rule it is D2 per class, as published.

    Args:
        scores: See `message_passing`.
        neighbours: See `message_passing`; the paper uses k = 5 on CIFAR-10.
        distances: See `message_passing`.
        gamma: Reach of the reverse pass, at least 0.
        absolute: Lower the neighbours by the whole value.

    Raises:
        ValueError: If shapes disagree or a value is out of range.

    >>> d2([3.0, 2.0, 1.0], [[1], [0], [1]], [[1.0], [1.0], [9.0]]).tolist()
    [3.0, 1.0, 2.0]
    """
    if not (np.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}; 0.1 is usual")
    values, starts, ends, apart = _graph(scores, neighbours, distances)
    share = np.ones(len(apart)) if absolute else np.exp(-gamma * apart)
    level = _passed(values, starts, ends, apart).tolist()
    order = _order_of_choice(level, starts.tolist(), ends, share)
    return np.array(order, dtype=np.float64)


def _passed(values: Floats, starts: Ids, ends: Ids, apart: Floats) -> Floats:
    rows = np.repeat(np.arange(len(values)), np.diff(starts))
    sums = np.bincount(rows, weights=np.exp(-apart) * values[ends], minlength=len(values))
    return values + sums


def _order_of_choice(level: list[float], starts: list[int], ends: Ids, share: Floats) -> list[int]:
    order = [0] * len(level)
    # An entry is out of date once its sample's level has moved: it is dropped when it comes up.
    waiting = [(-value, row) for row, value in enumerate(level)]
    heapq.heapify(waiting)
    place = len(level)
    while place:
        negated, row = heapq.heappop(waiting)
        if order[row] or -negated != level[row]:
            continue
        order[row], place = place, place - 1
        edges = slice(starts[row], starts[row + 1])
        for other, part in zip(ends[edges].tolist(), share[edges].tolist(), strict=True):
            if not order[other]:
                level[other] -= part * level[row]
                heapq.heappush(waiting, (-level[other], other))
    return order


def _graph(
    scores: ArrayLike, neighbours: ArrayLike, distances: ArrayLike
) -> tuple[Floats, Ids, Ids, Floats]:
    """Return scores and the symmetric graph: row i's edges are starts[i] to starts[i + 1]."""
    values = finite("scores", scores, "n", cure="extrapolate the missing scores first")
    apart = finite("distances", distances, "n k", cure=_NEIGHBOURS)
    ids = np.asarray(plain(neighbours))
    n = len(values)
    if ids.shape != apart.shape or len(ids) != n or ids.dtype.kind not in "iu":
        raise ValueError(
            f"neighbours must be integers of the shape of distances, ({n}, k), got {ids.dtype} "
            f"{ids.shape} and {apart.shape}; {_NEIGHBOURS}"
        )
    outside = ids[(ids < 0) | (ids >= n)]
    if len(outside) or (apart < 0).any():
        raise ValueError(
            f"neighbours must lie in [0, {n}) at distances of at least 0, got "
            f"{outside[0] if len(outside) else apart.min()}; {_NEIGHBOURS}"
        )
    near, far = np.repeat(np.arange(n), ids.shape[1]), ids.ravel().astype(np.int64)
    near, far = np.concatenate([near, far]), np.concatenate([far, near])
    both = np.concatenate([apart.ravel(), apart.ravel()])
    order = np.lexsort((both, far, near))
    near, far, both = near[order], far[order], both[order]
    new = np.ones(len(near), dtype=np.bool_)
    new[1:] = (near[1:] != near[:-1]) | (far[1:] != far[:-1])
    new &= near != far
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(near[new], minlength=n), out=starts[1:])
    return values, starts, far[new], both[new]
