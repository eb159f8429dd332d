"""Scores from where a sample lies among the embeddings; no training dynamics are needed."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, class_ids, finite, one_of, real

# Numbers in a temporary array: 32 MiB of float64.
_BUDGET = 2**22
_EMBED = "embed those samples again, or leave them out"

Vectors = NDArray[Any]
Metric = Literal["cosine", "euclidean"]
First = Literal["far", "near"]


def prototypicality(
    embeddings: ArrayLike, centroids: ArrayLike, metric: Metric = "cosine"
) -> Floats:
    """Return the distance to the nearest cluster centre, float64 (n,).

    Sorscher et al., NeurIPS 2022, arXiv 2206.14486, on centres of `k_means`. High, far from every
    prototype, is kept first, as suits much data; with little data the near ones teach more.

    Args:
        embeddings: (n, D), finite.
        centroids: (K, D), finite.
        metric: `cosine`: 1 - cosine, in `[0, 2]`, where a vector of length 0 is at right angles to
            all; `euclidean`: the Euclidean distance.

    Raises:
        ValueError: If shapes disagree or a value is NaN or infinite.

    >>> prototypicality([[2.0, 0.0], [3.0, 4.0]], [[1.0, 0.0]]).round(4).tolist()
    [0.0, 0.4]
    """
    points, centres = _points_and_centres(embeddings, centroids)
    one_of("metric", metric, ("cosine", "euclidean"))
    return _nearest(points, centres, metric)[1]


def moderate_distance(
    embeddings: ArrayLike,
    labels: ArrayLike,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Return the Euclidean distance to the coordinate-wise median of the own class, float64 (n,).

    Xia et al., ICLR 2023 (Moderate-DS). The middle of the ranking is kept first: `oriented` turns
    the distance round so that the top is the published window of ranks around the median.

    Args:
        embeddings: (n, D), finite.
        labels: (n,), integers, at least 0.
        progress: Called with (classes done, classes in all).

    Raises:
        ValueError: If shapes disagree, a label is negative or a value is NaN or infinite.

    >>> moderate_distance([[0.0], [1.0], [5.0], [7.0]], [0, 0, 0, 1]).tolist()
    [1.0, 0.0, 4.0, 0.0]
    """
    points = _vectors("embeddings", embeddings, "n D", _EMBED)
    classes = class_ids(labels, len(points), np.iinfo(np.int64).max)
    distances = np.empty(len(points))
    groups = rows_by_value(classes)
    for done, rows in enumerate(groups, start=1):
        own = points[rows].astype(np.float64)
        distances[rows] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
        if progress:
            progress(done, len(groups))
    return distances


def semdedup(embeddings: ArrayLike, centroids: ArrayLike, first: First = "far") -> Floats:
    """Return the largest cosine to an earlier sample of the own cluster, in `[0, 1]`, float64 (n,).

    SemDeDup: Abbas et al., 2023, arXiv 2303.09540. Low, unlike all that came before, is kept first;
    the paper drops what is above 1 - epsilon, which is `threshold` at epsilon - 1 on the oriented
    score. Clusters are those of the nearest centre by cosine; ties go to the lower row.

    Args:
        embeddings: (n, D), finite.
        centroids: (K, D), finite; of `k_means`, so many that a cluster holds some thousand samples.
        first: Which come first within a cluster: `far` from the centre, as published, or `near`.

    Raises:
        ValueError: If shapes disagree or a value is NaN or infinite.

    >>> semdedup([[1.0, 0.0], [0.6, 0.8], [2.0, 0.0]], [[1.0, 0.0]]).round(4).tolist()
    [0.6, 0.0, 1.0]
    """
    points, centres = _points_and_centres(embeddings, centroids)
    one_of("first", first, ("far", "near"))
    cluster, distance = _nearest(points, centres, "cosine")
    order = np.lexsort((-distance if first == "far" else distance, cluster))
    similarity = np.zeros(len(points))
    for rows in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        _compare_with_earlier(points, rows, similarity)
    return similarity


def _compare_with_earlier(
    points: Vectors, rows: NDArray[np.int64], similarity: NDArray[np.float64]
) -> None:
    unit = _unit(points[rows].astype(np.float64))
    step = max(1, _BUDGET // max(len(rows), 1))
    for start in range(0, len(rows), step):
        block = unit[start : start + step]
        cosines = block @ unit[: start + len(block)].T
        earlier = np.arange(cosines.shape[1]) < (start + np.arange(len(block)))[:, None]
        largest = np.where(earlier, cosines, 0.0).max(axis=1)
        similarity[rows[start : start + step]] = np.clip(largest, 0.0, 1.0)


def _nearest(points: Vectors, centres: Floats, metric: str) -> tuple[NDArray[np.int64], Floats]:
    """Return the nearest centre of every point, ties to the lower, and its distance."""
    nearest, distance = np.empty(len(points), dtype=np.int64), np.empty(len(points))
    if metric == "cosine":
        centres = _unit(centres)
    for part in _blocks(len(points), max(centres.shape)):
        block = points[part].astype(np.float64)
        if metric == "cosine":
            apart = 1.0 - np.clip(_unit(block) @ centres.T, -1.0, 1.0)
        else:
            # The expanded square is fast; the distance itself is measured again below.
            apart = (centres**2).sum(axis=1) - 2 * block @ centres.T
        nearest[part] = apart.argmin(axis=1)
        distance[part] = apart.min(axis=1)
        if metric == "euclidean":
            distance[part] = np.linalg.norm(block - centres[nearest[part]], axis=1)
    return nearest, distance


def _points_and_centres(embeddings: ArrayLike, centroids: ArrayLike) -> tuple[Vectors, Floats]:
    points = _vectors("embeddings", embeddings, "n D", _EMBED)
    centres = finite("centroids", centroids, "K D", cure="cluster again")
    if centres.shape[1] != points.shape[1]:
        raise ValueError(
            f"centroids must have the {points.shape[1]} columns of embeddings, "
            f"got {centres.shape[1]}; cluster the same embeddings"
        )
    return points, centres


def _vectors(name: str, values: ArrayLike, shape: str, cure: str) -> Vectors:
    """Return vectors in rows, all finite, of their own type: those of a data set are not copied."""
    array = real(name, values)
    if array.ndim != 2 or not array.size or not _all_finite(array):
        return finite(name, array, shape, cure=cure)  # says what is wrong
    return array


def rows_by_value(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of each distinct value, ascending, by ascending value: sorted once for all.

    >>> [rows.tolist() for rows in rows_by_value(np.array([3, 1, 3]))]
    [[1], [0, 2]]
    """
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    return np.split(order, cuts) if len(order) else []


def finite_rows(points: Vectors) -> tuple[Vectors, NDArray[np.int64]]:
    """Return the rows (n, D) without NaN or infinity, and their places, ascending.

    Where all are such the points themselves come back: a copy of them would be of some size.
    """
    whole = np.empty(len(points), dtype=np.bool_)
    for part in _blocks(*points.shape):
        whole[part] = np.isfinite(points[part]).all(axis=1)
    return points if whole.all() else points[whole], np.flatnonzero(whole)


def _all_finite(rows: Vectors) -> bool:
    return all(np.isfinite(rows[part]).all() for part in _blocks(*rows.shape))


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(lengths > 0, lengths, 1)
    return unit


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BUDGET // columns)
    for start in range(0, rows, step):
        yield slice(start, start + step)
