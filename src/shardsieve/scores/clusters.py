"""Cluster centres of embeddings, for the scores that need them."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import plain, whole_number

_BLOCK = 65_536


def k_means(
    embeddings: ArrayLike,
    clusters: int,
    *,
    seed: int = 0,
    spherical: bool = True,
    iterations: int = 20,
    restarts: int = 3,
) -> NDArray[np.float32]:
    """Return cluster centres by faiss' k-means, float32 (clusters, D).

    Args:
        embeddings: (n, D), finite; n >= clusters. More than 256 rows per cluster are thinned out.
        clusters: At least 1.
        seed: Of the first centres and of the thinning.
        spherical: Scale rows and centres to length 1, for the cosine.
        iterations: Rounds of Lloyd's algorithm.
        restarts: Runs from other first centres, of which the best counts; random centres are
            easily caught two in one cluster.

    Raises:
        ValueError: If there are fewer rows than clusters or a value is not finite.

    >>> k_means([[2.0, 0.0], [0.0, 3.0]], 2).round(4).max(axis=1).tolist()
    [1.0, 1.0]
    """
    points = np.array(plain(embeddings), dtype=np.float32, order="C")
    whole_number("clusters", clusters, 1)
    whole_number("iterations", iterations, 1)
    whole_number("restarts", restarts, 1)
    if points.ndim != 2 or len(points) < clusters:
        raise ValueError(
            f"embeddings must have shape (n, D) with n >= clusters={clusters}, "
            f"got {points.shape}; ask for fewer clusters"
        )
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        if not np.isfinite(block).all():
            raise ValueError("embeddings must be finite, got NaN or infinity; embed again")
        if spherical:
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            block /= np.where(lengths > 0, lengths, 1)
    how: dict[str, Any] = {"niter": iterations, "nredo": restarts, "seed": seed}
    how |= {"spherical": spherical}
    # With few points per cluster faiss would only warn, on standard output.
    engine = faiss.Kmeans(points.shape[1], clusters, **how, min_points_per_centroid=1)
    engine.train(points)
    centres: NDArray[np.float32] = np.asarray(engine.centroids, dtype=np.float32)
    return centres.reshape(clusters, -1)
