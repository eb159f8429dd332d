"""Cluster centres of embeddings, for the scores that need them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve._faiss import faiss
from shardsieve.scores.inputs import real, whole_number

_BLOCK = 65_536
_MOST = 256  # rows per cluster
# faiss' own step from the seed of one restart to the next one's.
_NEXT_SEED = 15_486_557
_SEEDS = 2**31 - 1  # faiss takes as many, and 0

Centres = NDArray[np.float32]


def k_means(
    embeddings: ArrayLike,
    clusters: int,
    *,
    seed: int = 0,
    spherical: bool = True,
    iterations: int = 20,
    restarts: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Centres:
    """Return cluster centres by faiss' k-means, float32 (clusters, D).

    Args:
        embeddings: (n, D), finite; n >= clusters. More than 256 rows per cluster are thinned out.
        clusters: At least 1.
        seed: Of the first centres and of the thinning; any integer, of which 31 bits count.
        spherical: Scale rows and centres to length 1, for the cosine.
        iterations: Rounds of Lloyd's algorithm.
        restarts: Runs from other first centres, of which the best counts; random centres are
            easily caught two in one cluster.
        progress: Called with (rounds done, rounds of all runs).

    Raises:
        ValueError: If there are fewer rows than clusters, no columns, or a value is not finite.

    >>> k_means([[2.0, 0.0], [0.0, 3.0]], 2).round(4).max(axis=1).tolist()
    [1.0, 1.0]
    """
    given = real("embeddings", embeddings)
    whole_number("clusters", clusters, 1)
    whole_number("iterations", iterations, 1)
    whole_number("restarts", restarts, 1)
    if given.ndim != 2 or len(given) < clusters or not given.shape[1]:
        raise ValueError(
            f"embeddings must have shape (n, D) with n >= clusters={clusters} and D >= 1, "
            f"got {given.shape}; ask for fewer clusters"
        )
    points = _thinned(given, _MOST * clusters, seed & _SEEDS)
    if spherical:
        _scale_to_unit(points)
    best, found = -np.inf, None
    for run in range(restarts):

        def told(done: int, run: int = run) -> None:
            if progress:
                progress(run * iterations + done, restarts * iterations)

        how: dict[str, Any] = {"seed": (seed + run * _NEXT_SEED) & _SEEDS, "spherical": spherical}
        centres, good = _one_run(points, clusters, iterations, told, **how)
        if found is None or good > best:
            best, found = good, centres
    assert found is not None
    return found


def _thinned(given: NDArray[Any], most: int, seed: int) -> NDArray[np.float32]:
    """Return at most so many rows, copied, as faiss would draw them; refuse what is not finite."""
    for start in range(0, len(given), _BLOCK):
        if not np.isfinite(given[start : start + _BLOCK].astype(np.float32)).all():
            raise ValueError("embeddings must be finite, got NaN or infinity; embed again")
    if len(given) <= most:
        return np.array(given, dtype=np.float32, order="C")
    order = np.empty(len(given), dtype=np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), len(order), seed)  # type: ignore[attr-defined]
    return np.array(given[order[:most]], dtype=np.float32, order="C")


def _scale_to_unit(points: NDArray[np.float32]) -> None:
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        block /= np.where(lengths > 0, lengths, 1)


def _one_run(
    points: NDArray[np.float32],
    clusters: int,
    rounds: int,
    told: Callable[[int], None],
    *,
    seed: int,
    spherical: bool,
) -> tuple[Centres, float]:
    """Return the centres after so many rounds, and how good they are, higher is better."""
    # With few points per cluster faiss would only warn, on standard output.
    how: dict[str, Any] = {"niter": 1, "seed": seed, "min_points_per_centroid": 1}
    how |= {"max_points_per_centroid": _MOST}
    centres, good = None, 0.0
    # A call each: faiss says nothing while it goes through them, for half an hour on many rows.
    for done in range(1, rounds + 1):
        # A spherical one scales the centres that it is given, which have length 1 already, and
        # that moves their last bits: in the end other centres than those of a single call.
        engine = faiss.Kmeans(points.shape[1], clusters, **how, spherical=spherical and done == 1)
        if spherical:
            engine.index = faiss.IndexFlatIP(points.shape[1])
        summed = float(engine.train(points, init_centroids=centres))
        found = np.array(engine.centroids, dtype=np.float32).reshape(clusters, -1)
        if spherical and done > 1:
            faiss.normalize_L2(found)
        good = summed if spherical else -summed  # of cosines, or of squared distances
        # As many points as clusters are themselves the centres, at once.
        settled = len(points) == clusters or (
            centres is not None and np.array_equal(found, centres)
        )
        centres = found
        told(rounds if settled else done)
        if settled:
            break
    assert centres is not None
    return centres, good
