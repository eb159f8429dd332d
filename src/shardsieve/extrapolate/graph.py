"""The neighbour table that stands for a graph, and GCN's factors on it."""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shardsieve.extrapolate.knn import Finder, looked_up, neighbours, others
from shardsieve.extrapolate.protocol import Floats, Rows
from shardsieve.extrapolate.ranks import ALONE, Ranks


class Graph(NamedTuple):
    """Nodes with their neighbours, and GCN's factors.

    Attributes:
        ids: int64 (n, k), neighbours.
        edges: (n, k), factors of the edges.
        own: (n,), of the self loops.
    """

    ids: Tensor
    edges: Tensor
    own: Tensor

    @classmethod
    def of(cls, ids: Tensor, weights: Tensor) -> Self:
        """Return the graph of edges (n, k) with these weights.

        A node's degree is 1, for its self loop, plus the weights of the edges into it.
        """
        scale = node_scale(weights)
        return cls(ids, scale[:, None] * weights * scale[ids], scale.square())

    def part(self, nodes: slice) -> Self:
        """Return what some of the nodes hear from."""
        return type(self)(*(one[nodes] for one in self))


def knn_graph(
    points: NDArray[Any],
    k: int,
    *,
    search: str = "auto",
    ranks: Ranks = ALONE,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], Floats]:
    """Return every node's nearest others and the edges' weights sqrt(exp(-d)), in `[0, 1]`.

    Args:
        points: (n, d), finite, n at least 2.
        k: At least 1; with fewer other nodes than that, all of them.
        search: As in `KNN`.
        ranks: Each looks for the neighbours of its share, and has them all in the end.
        device: As in `KNN`.

    Returns:
        Ids, int64, and weights, float32, both (n, min(k, n - 1)); no node is its own neighbour.
    """
    part = ranks.share(len(points))
    ids, distances = neighbours(points, points, k + 1, search=search, device=device, part=part)
    kept = others(ids, np.arange(part.start, part.stop))
    shape = (len(points), min(k, len(points) - 1))
    found, weights = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.float32)
    found[part] = ids[kept].reshape(-1, shape[1])
    weights[part] = edge_weights(distances[kept].reshape(-1, shape[1]))
    for array in (found, weights):
        ranks.complete(torch.from_numpy(array))
    return found, weights


def edges_from(finder: Finder, points: Rows, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Return the nearest seeds (n, k) of nodes that are no seeds, and the edges' weights."""
    ids, distances = looked_up(finder, points, k)
    return ids, edge_weights(distances)


def edge_weights(distances: NDArray[np.float64]) -> Floats:
    """Return sqrt(exp(-d)) of Euclidean distances."""
    return np.exp(-distances / 2).astype(np.float32)


def node_scale(weights: Tensor) -> Tensor:
    """Return one over the root of every node's degree, (n,)."""
    return (1 + weights.sum(dim=1)).rsqrt()


def drawn(
    ids: Tensor, edges: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return `count` neighbours of every row, drawn without replacement, and their factors.

    The factors grow by k / count, so that sums are right on average.
    """
    k = ids.shape[1]
    if count >= k:
        return ids, edges
    keys = torch.rand(ids.shape, generator=generator, device=ids.device)
    chosen = keys.topk(count, dim=1).indices
    return ids.gather(1, chosen), edges.gather(1, chosen) * (k / count)
