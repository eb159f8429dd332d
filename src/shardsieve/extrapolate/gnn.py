"""Graph-network extrapolation (Score Extrapolation, arXiv 2506.09010): needs torch-geometric."""

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from shardsieve._errors import MissingDependencyError
from shardsieve.extrapolate.knn import neighbours
from shardsieve.extrapolate.protocol import Floats, Rows, as_rows, blocks, checked_seeds
from shardsieve.extrapolate.quality import pearson
from shardsieve.order import permutation

try:
    from torch_geometric.nn import GCNConv
except ImportError as error:
    raise MissingDependencyError("the GNN needs torch-geometric: install shardsieve[gnn]") from error

# Numbers gathered at a time, 32 MiB of float32.
_BUDGET = 2**23
_SPLIT = 0x6E6E


class GNN:
    """Three graph convolutions (512, 256, 1) over the graph of k nearest neighbours.

    Edges run from neighbour to sample with weight sqrt(exp(-d)), d the Euclidean distance. A node's
    feature is its one-hot label, where labels are given, and its embedding. A tenth of the seeds
    validates, and the epoch of the best Pearson correlation there is kept.

    Training samples neighbours for the upper two layers, scaled so that the sum is right on average;
    the first layer's sum has no parameters in it and is made once, of all neighbours. Prediction
    gives every layer all its neighbours. Results depend on the inputs and `seed` alone; torch's
    global generator is left as it was. All nodes are held in memory, with at most 512 numbers each.

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
        self._layers: torch.nn.ModuleList | None = None

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
            raise ValueError(
                f"labels must be given for all nodes or none, got "
                f"{'none' if labels is None else 'some'} beside seeds with"
                f"{'out' if self._labels is None else ''} labels; give both or neither"
            )
        features = torch.from_numpy(points).to(self.device)
        if self._labels is not None:
            known = np.zeros(0, np.int64) if labels is None else labels
            classes = np.concatenate([self._labels, _checked_labels(known, rows.shape[0])])
            features = torch.cat([self._one_hot(classes), features], dim=1)
        ids, weights = knn_graph(points, self.k)
        return features, torch.from_numpy(ids).to(self.device), torch.from_numpy(weights).to(
            self.device
        )

    def _one_hot(self, classes: NDArray[np.int64]) -> Tensor:
        if len(classes) and classes.max() >= self._num_classes:
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
        # The first layer's sum holds no parameter: made once, of all neighbours.
        summed = aggregate(features, ids, edges, own)
        best, kept = -np.inf, {}
        for _ in range(self.epochs):
            order = torch.randperm(len(roots), generator=draw, device=self.device)
            for batch in roots[order].split(self.batch_size):
                predicted = self._sampled(layers, summed, batch, (ids, edges, own), draw)
                optimizer.zero_grad()
                functional.mse_loss(predicted, scores[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            found = forward(layers, features, ids, weights)[held_out]
            quality = pearson(scores[held_out].cpu().numpy(), found.cpu().numpy())
            if quality > best:
                best = quality
                kept = {name: value.clone() for name, value in layers.state_dict().items()}
        layers.load_state_dict(kept)
        self._layers = layers

    def _sampled(
        self,
        layers: torch.nn.ModuleList,
        summed: Tensor,
        roots: Tensor,
        graph: tuple[Tensor, Tensor, Tensor],
        draw: torch.Generator,
    ) -> Tensor:
        """Return the roots' outputs (b,), from drawn neighbours of neighbours."""
        ids, edges, own = graph
        near, near_edges = drawn(ids[roots], edges[roots], self.fan_out[0], draw)
        middle, middle_at = torch.cat([roots, near.flatten()]).unique(return_inverse=True)
        far, far_edges = drawn(ids[middle], edges[middle], self.fan_out[1], draw)
        bottom, bottom_at = torch.cat([middle, far.flatten()]).unique(return_inverse=True)

        hidden = self._active(_linear(layers[0], summed[bottom]))
        at = bottom_at[len(middle) :].view(far.shape)
        hidden = _weighted(hidden, at, far_edges, bottom_at[: len(middle)], own[middle])
        hidden = _linear(layers[2], self._active(_linear(layers[1], hidden)))
        at = middle_at[len(roots) :].view(near.shape)
        return _weighted(hidden, at, near_edges, middle_at[: len(roots)], own[roots])[:, 0] + (
            layers[2].bias
        )

    def _active(self, hidden: Tensor) -> Tensor:
        return functional.dropout(functional.relu(hidden), self.dropout)
