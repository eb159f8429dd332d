"""Graph-network extrapolation (Score Extrapolation, arXiv 2506.09010): needs torch-geometric."""

import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from shardsieve._errors import MissingDependencyError
from shardsieve.extrapolate.correlations import pearson
from shardsieve.extrapolate.knn import neighbours
from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, blocks, checked_seeds
from shardsieve.order import permutation

try:
    from torch_geometric.nn import GCNConv
except ImportError as error:
    raise MissingDependencyError(
        "the GNN needs torch-geometric: install shardsieve[gnn]"
    ) from error

# Numbers gathered at a time, 32 MiB of float32.
_BUDGET = 2**23
_SPLIT = 0x6E6E


class GNN:
    """Three graph convolutions (512, 256, 1) over the graph of k nearest neighbours.

    Edges run from neighbour to sample with weight sqrt(exp(-d)), d the Euclidean distance. A node's
    feature is its one-hot label, where labels are given, and its embedding. A tenth of the seeds
    validates, and the epoch of the best Pearson correlation there is kept.

    Training samples neighbours for the upper two layers, scaled so that the sum is right on
    average; the first layer's sum has no parameters in it and is made once, of all neighbours.
    Prediction gives every layer all its neighbours. Results depend on the inputs and `seed` alone;
    torch's global generator is left as it was. All nodes are held in memory, with at most 512
    numbers each.

    Attributes:
        k: Neighbours, at least 1; 20 is this project's choice, the paper's code has 10 and 20.
        epochs: Passes over the training seeds, at least 1.
        fan_out: Neighbours drawn for a root, and for each of these; k or more takes all.
        batch_size: Roots in a step.
        learning_rate: Of Adam.
        dropout: Share of activations dropped after the first two layers, in `[0, 1)`.
        seed: Decides the split, the first parameters, dropout and the drawn neighbours.
        device: A torch device.
    """

    def __init__(
        self,
        k: int = 20,
        *,
        epochs: int = 25,
        fan_out: tuple[int, int] = (10, 10),
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        dropout: float = 0.5,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        counts = {"k": k, "epochs": epochs, "fan_out": min(fan_out), "batch_size": batch_size}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}; see GNN for the usual")
        self.k, self.epochs, self.fan_out, self.batch_size = k, epochs, fan_out, batch_size
        self.learning_rate, self.dropout, self.seed = learning_rate, dropout, seed
        self.device = torch.device(device)
        self._layers: Any = None

    def fit(
        self,
        embeddings: Rows | ArrayLike,
        scores: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        rest: Rows | ArrayLike | None = None,
        rest_labels: ArrayLike | None = None,
    ) -> Self:
        """Train on the seeds, in a graph of the seeds and, where given, the rest.

        Args:
            embeddings: (m, d), finite, m at least 3.
            scores: (m,), finite.
            labels: (m,), integers; a negative one is unknown and has no one-hot feature.
            rest: (r, d), finite: further nodes without scores.
            rest_labels: (r,), needed when both `labels` and `rest` are given.

        Raises:
            ValueError: If shapes disagree, a number is not finite, or there are under 3 seeds.
        """
        points, values = checked_seeds(embeddings, scores)
        if len(values) < 3:
            raise ValueError(f"embeddings must hold at least 3 seeds, got {len(values)}; use KNN")
        self._seeds, self._num_classes = points, 0
        self._labels = None if labels is None else _checked_labels(labels, len(values))
        if self._labels is not None:
            self._num_classes = max(int(self._labels.max()) + 1, 0)
        graph = self._graph(rest, rest_labels)
        # Unlike a bare manual_seed, this hands the caller's generator back as it was.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self._train(graph, torch.from_numpy(values).to(self.device))
        return self

    def predict(self, embeddings: Rows | ArrayLike, labels: ArrayLike | None = None) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        The graph is made of the seeds and these rows together, so a prediction depends on its
        whole call: predict the rest in one.

        Args:
            embeddings: (n, d), finite.
            labels: (n,), integers; needed if `fit` had labels, and refused if not.

        Raises:
            ValueError: If nothing was fitted, shapes disagree, or a number is not finite.
        """
        if self._layers is None:
            raise ValueError("GNN must be fitted before it predicts, got no seeds; call fit")
        graph = self._graph(embeddings, labels)
        return forward(self._layers, *graph)[len(self._seeds) :].cpu().numpy()

    def _graph(
        self, rest: Rows | ArrayLike | None, labels: ArrayLike | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (n, f), neighbours (n, k) and edge weights (n, k) of seeds and rest."""
        rows = as_rows(self._seeds[:0] if rest is None else rest, self._seeds.shape[1])
        points = np.concatenate([self._seeds, *(block for _, block in blocks(rows, 65_536))])
        if rest is not None and (labels is None) != (self._labels is None):
            got = ("none", "labelled") if labels is None else ("labels", "unlabelled")
            raise ValueError(
                f"labels must be given for all nodes or for none, got {got[0]} beside {got[1]} "
                "seeds; give both or neither"
            )
        features = torch.from_numpy(points).to(self.device)
        if self._labels is not None:
            known = np.zeros(0, np.int64) if labels is None else labels
            classes = np.concatenate([self._labels, _checked_labels(known, rows.shape[0])])
            features = torch.cat([self._one_hot(classes), features], dim=1)
        ids, weights = (torch.from_numpy(a).to(self.device) for a in knn_graph(points, self.k))
        return features, ids, weights

    def _one_hot(self, classes: NDArray[np.int64]) -> Tensor:
        if classes.max() >= self._num_classes:
            raise ValueError(
                f"labels must lie below {self._num_classes}, the classes of the seeds, got "
                f"{classes.max()}; choose seeds of every class"
            )
        known = torch.from_numpy(np.arange(self._num_classes) == classes[:, None])
        return known.to(self.device, torch.float32)

    def _train(self, graph: tuple[Tensor, Tensor, Tensor], scores: Tensor) -> None:
        features, ids, weights = graph
        split = torch.from_numpy(permutation(len(scores), self.seed, _SPLIT)).to(self.device)
        held_out, roots = split.tensor_split([max(2, len(scores) // 10)])
        sizes = [features.shape[1], 512, 256, 1]
        layers = torch.nn.ModuleList(map(GCNConv, sizes, sizes[1:])).to(self.device)
        optimizer = torch.optim.Adam(layers.parameters(), lr=self.learning_rate)
        draw = torch.Generator(self.device).manual_seed(self.seed)
        edges, own = coefficients(ids, weights)
        summed = aggregate(features, ids, edges, own)
        best, kept = -np.inf, layers.state_dict()
        for _ in range(self.epochs):
            order = torch.randperm(len(roots), generator=draw, device=self.device)
            for batch in torch.split(roots[order], self.batch_size):
                predicted = self._sampled(layers, summed, batch, (ids, edges, own), draw)
                optimizer.zero_grad()
                loss = functional.mse_loss(predicted, scores[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            found = forward(layers, features, ids, weights)[held_out]
            quality = pearson(scores[held_out].cpu().numpy(), found.cpu().numpy())
            if quality > best:
                best, kept = quality, copy.deepcopy(layers.state_dict())
        layers.load_state_dict(kept)
        self._layers = layers

    def _sampled(
        self,
        layers: Any,
        summed: Tensor,
        roots: Tensor,
        graph: tuple[Tensor, Tensor, Tensor],
        draw: torch.Generator,
    ) -> Tensor:
        """Return the roots' outputs (b,), from drawn neighbours of drawn neighbours."""
        ids, edges, own = graph
        near, near_edges = drawn(ids[roots], edges[roots], self.fan_out[0], draw)
        # Every node is computed once, however many edges lead to it.
        middle, to_middle = torch.unique(
            torch.cat([roots[:, None], near], dim=1), return_inverse=True
        )
        far, far_edges = drawn(ids[middle], edges[middle], self.fan_out[1], draw)
        bottom, to_bottom = torch.unique(
            torch.cat([middle[:, None], far], dim=1), return_inverse=True
        )
        hidden = self._active(_dense(layers[0], summed[bottom]))
        hidden = _sum(hidden, to_bottom, torch.cat([own[middle, None], far_edges], dim=1))
        hidden = self._active(_dense(layers[1], hidden))
        hidden = _sum(hidden, to_middle, torch.cat([own[roots, None], near_edges], dim=1))
        return _dense(layers[2], hidden)[:, 0]

    def _active(self, hidden: Tensor) -> Tensor:
        return functional.dropout(functional.relu(hidden), self.dropout)


def knn_graph(points: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Return every node's nearest others and the edges' weights sqrt(exp(-d)), in `[0, 1]`.

    Args:
        points: (n, d), finite, n at least 2.
        k: At least 1; with fewer other nodes than that, all of them.

    Returns:
        Ids, int64, and weights, float32, both (n, min(k, n - 1)); no node is its own neighbour.
    """
    ids, distances = neighbours(points, points, k + 1)
    itself = ids == np.arange(len(points))[:, None]
    # Among more than k equal points a node may not find itself: drop the last instead.
    itself[~itself.any(axis=1), -1] = True
    shape = (len(points), ids.shape[1] - 1)
    weights = np.exp(-distances[~itself].reshape(shape) / 2)
    return ids[~itself].reshape(shape), weights.astype(np.float32)


def coefficients(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return GCN's factors of the edges (n, k) and of the self loops (n,).

    A node's degree is 1, for its self loop, plus the weights of the edges into it.
    """
    scale = (1 + weights.sum(dim=1)).rsqrt()
    return scale[:, None] * weights * scale[ids], scale.square()


def aggregate(hidden: Tensor, ids: Tensor, edges: Tensor, own: Tensor) -> Tensor:
    """Return every node's weighted sum over itself and all its neighbours, (n, c), in blocks."""
    summed = torch.empty_like(hidden)
    step = max(1, _BUDGET // ((ids.shape[1] + 1) * hidden.shape[1]))
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        at = torch.arange(start, min(start + step, len(hidden)), device=ids.device)
        places = torch.cat([at[:, None], ids[part]], dim=1)
        summed[part] = _sum(hidden, places, torch.cat([own[part, None], edges[part]], dim=1))
    return summed


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


@torch.no_grad()
def forward(layers: Any, features: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return the output of every node (n,), layer by layer, each over all neighbours."""
    edges, own = coefficients(ids, weights)
    hidden = features
    for layer in layers:
        if layer is not layers[0]:
            hidden = functional.relu(hidden)
        # Sums and products commute: the narrower side is gathered.
        if layer.out_channels < layer.in_channels:
            hidden = aggregate(layer.lin(hidden), ids, edges, own) + layer.bias
        else:
            hidden = _dense(layer, aggregate(hidden, ids, edges, own))
    return hidden[:, 0]


def _dense(layer: GCNConv, summed: Tensor) -> Tensor:
    return layer.lin(summed) + layer.bias  # type: ignore[no-any-return]


def _sum(hidden: Tensor, places: Tensor, factors: Tensor) -> Tensor:
    # The gradient of plain indexing adds in any order on several threads; embedding's does not.
    return torch.bmm(factors[:, None], functional.embedding(places, hidden))[:, 0]


def _checked_labels(labels: ArrayLike, num_nodes: int) -> NDArray[np.int64]:
    classes = np.asarray(labels)
    if classes.shape != (num_nodes,) or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({num_nodes},), got {classes.dtype} of shape "
            f"{classes.shape}; give one per embedding, -1 where unknown"
        )
    return classes.astype(np.int64)
