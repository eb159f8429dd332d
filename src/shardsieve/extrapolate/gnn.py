"""Graph-network extrapolation (Score Extrapolation, arXiv 2506.09010): needs torch-geometric."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from shardsieve.extrapolate.approximate import Chosen, kind_for
from shardsieve.extrapolate.correlations import pearson
from shardsieve.extrapolate.graph import Graph, edges_from, knn_graph, node_scale
from shardsieve.extrapolate.inference import apart, forward, forward_and_tables
from shardsieve.extrapolate.knn import Finder, chosen_of, finder_for
from shardsieve.extrapolate.layers import KINDS
from shardsieve.extrapolate.protocol import (
    Floats,
    Rows,
    as_rows,
    blocks,
    checked_labels,
    checked_seeds,
)
from shardsieve.extrapolate.ranks import ALONE, Ranks
from shardsieve.extrapolate.sampling import Sampler
from shardsieve.order import permutation
from shardsieve.scores.inputs import one_of, whole_number

GRAPHS = ("all", "seeds")
_SPLIT = 0x6E6E
# Numbers from which the nodes' features are kept in half precision; embeddings are stored in it.
_LARGE = 2**27


class GNN:
    """Three graph layers (512, 256, 1) over the graph of k nearest neighbours.

    Edges run from neighbour to sample with weight sqrt(exp(-d)), d the Euclidean distance. A node's
    feature is its one-hot label, where labels are given, and its embedding. A tenth of the seeds
    validates; the epoch of the best Pearson correlation there is kept, and training stops when
    `patience` epochs have not bettered it.

    Training samples neighbours for the upper two layers, scaled so that the sum is right on
    average; the first layer's sum has no parameters in it (GCN, SAGE) and is made once, of all
    neighbours. Prediction gives every layer all its neighbours. Results depend on the inputs and
    `seed` alone; torch's global generator is left as it was.

    Of all nodes memory holds the features, the neighbours and, per layer, a table or two, in half
    precision once they are large: for 1.28 M nodes of 512 numbers search, training and inference
    were measured at 4.2 GB at most; by arithmetic the labels of 1,000 classes take 2.6 GB more.

    Attributes:
        k: Neighbours, at least 1; 20 is this project's choice, the paper's code has 10 and 20.
        layer: `gcn`, `sage` (mean of the neighbours, edge weights unused) or `gat` (one head of
            attention, likewise): torch-geometric's layers with their defaults.
        graph: `all`: neighbours among all nodes, as in the paper; a prediction depends on its whole
            call. `seeds`: among the seeds alone, which costs a tenth where they are a tenth; a
            prediction depends on its row alone.
        epochs: Passes over the training seeds, at least 1.
        patience: Epochs without a better one before training stops, at least 1.
        fan_out: Neighbours drawn for a root, and for each of these; k or more takes all.
        batch_size: Roots in a step.
        learning_rate: Of Adam.
        dropout: Share of activations dropped after the first two layers, in `[0, 1)`.
        seed: Decides the split, the first parameters, dropout and the drawn neighbours.
        device: A torch device.
        ranks: Those that fit it together: each finds its share of the neighbours, trains on its
            share of every batch and makes its share of every layer, and each holds all nodes. All
            call `fit`, and in a graph of all nodes `predict`, with the same arguments. Results
            differ by rounding from those of one rank.
    """

    def __init__(
        self,
        k: int = 20,
        *,
        layer: str = "gcn",
        graph: str = "all",
        epochs: int = 25,
        patience: int = 10,
        fan_out: tuple[int, int] = (10, 10),
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        dropout: float = 0.5,
        seed: int = 0,
        device: str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        if not isinstance(fan_out, Sequence) or len(fan_out) != 2:
            raise ValueError(f"fan_out must be two numbers, one per hop, got {fan_out}")
        counts = {"k": k, "epochs": epochs, "patience": patience, "fan_out": min(fan_out)}
        for name, count in {**counts, "batch_size": batch_size}.items():
            whole_number(name, count, 1)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}; 0.5 is usual")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}; 1e-3 is usual")
        one_of("layer", layer, KINDS)
        one_of("graph", graph, GRAPHS)
        self.k, self.layer, self.graph, self.patience = k, layer, graph, patience
        self.epochs, self.fan_out, self.batch_size = epochs, fan_out, batch_size
        self.learning_rate, self.dropout, self.seed = learning_rate, dropout, seed
        self.device, self.ranks = torch.device(device), ranks
        self._layers: Any = None
        self._finder: Finder | None = None
        self._of_rest: Floats | None = None

    def fit(
        self,
        embeddings: Rows | ArrayLike,
        scores: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        rest: Rows | ArrayLike | None = None,
        rest_labels: ArrayLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Train on the seeds, in a graph of the seeds and, where given, the rest.

        Args:
            embeddings: (m, d), finite, m at least 3.
            scores: (m,), finite.
            labels: (m,), integers; a negative one is unknown and has no one-hot feature. A
                class of other nodes that no seed belongs to has none either.
            rest: (r, d), finite: further nodes without scores, for `graph="all"`. As in the paper
                they are then in the graph while it trains; `predict_rest` tells their scores.
            rest_labels: (r,), needed when both `labels` and `rest` are given.
            progress: Called with (epochs done, epochs at most) while it trains.

        Raises:
            ValueError: If shapes disagree, a number is not finite, there are under 3 seeds, or
                `rest` is given to a graph of seeds.
        """
        points, values = checked_seeds(embeddings, scores)
        if len(values) < 3:
            raise ValueError(f"embeddings must hold at least 3 seeds, got {len(values)}; use KNN")
        if rest is not None and self.graph == "seeds":
            raise ValueError("rest must be left out of a graph of seeds, got some; use graph='all'")
        self._seeds, self._finder = points, None
        self._labels = checked_labels(labels, len(values))
        classes = np.zeros(0, np.int64) if self._labels is None else self._labels
        self._seen = np.bincount(classes[classes >= 0]) > 0
        x, ids, weights = self._nodes(rest, rest_labels)
        graph = Graph.of(ids, weights)
        # Unlike a bare manual_seed, this hands the caller's generator back as it was.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            self._train(x, graph, torch.from_numpy(values).to(self.device), progress)
        if self.graph == "seeds":
            self._tables, _ = forward_and_tables(self._layers, x, graph, ranks=self.ranks)
            self._scale = node_scale(weights)
        self._of_rest = None
        if rest is not None:
            outputs = forward(self._layers, x, graph, ranks=self.ranks)
            self._of_rest = outputs[len(values) :].cpu().numpy()
        return self

    def predict_rest(self) -> Floats:
        """Return the predicted scores of `rest`, in the graph that was trained on: float32 (r,).

        Raises:
            ValueError: If `fit` had no rest.
        """
        if self._of_rest is None:
            raise ValueError("rest must be given to fit, got none; use predict")
        return self._of_rest

    def predict(self, embeddings: Rows | ArrayLike, labels: ArrayLike | None = None) -> Floats:
        """Return the predicted score of every row: float32 (n,).

        With `graph="all"` the graph is made of the seeds and these rows together, so a prediction
        depends on its whole call: predict the rest in one, or better give it to `fit`.

        Args:
            embeddings: (n, d), finite.
            labels: (n,), integers; needed if `fit` had labels, and refused if not.

        Raises:
            ValueError: If nothing was fitted, shapes disagree, or a number is not finite.
        """
        if self._layers is None:
            raise ValueError("GNN must be fitted before it predicts, got no seeds; call fit")
        if self.graph == "seeds":
            return self._predict_apart(embeddings, labels)
        x, ids, weights = self._nodes(embeddings, labels)
        found = forward(self._layers, x, Graph.of(ids, weights), ranks=self.ranks)
        return found[len(self._seeds) :].cpu().numpy()

    def choose(self, queries: Rows | ArrayLike, num_queries: int | None = None) -> Chosen:
        """Choose the search of a graph of seeds once for all later predictions, as `KNN` does.

        Args:
            queries: (q, d), finite: such as will be predicted.
            num_queries: How many will be predicted; q if left out.

        Raises:
            ValueError: If nothing was fitted, or the graph is not one of seeds.
        """
        if self._layers is None or self.graph != "seeds":
            raise ValueError(
                f"graph must be 'seeds' and fitted to choose a search, got {self.graph!r}; fit"
            )
        rows = as_rows(queries, self._seeds.shape[1])
        self._finder = self._searching(rows, num_queries or rows.shape[0])
        return chosen_of(self._finder)

    def _searching(self, rows: Rows, num_queries: int) -> Finder:
        shape = self._seeds.shape
        kind = kind_for("auto", shape[0], num_queries, shape[1], str(self.device))
        return finder_for(self._seeds, rows, self.k, kind=kind, device=str(self.device))

    def _predict_apart(self, embeddings: Rows | ArrayLike, labels: ArrayLike | None) -> Floats:
        rows = as_rows(embeddings, self._seeds.shape[1])
        classes = self._checked(rows, labels)
        finder = self._finder or self._searching(rows, rows.shape[0])
        found, predicted = edges_from(finder, rows, self.k), np.empty(rows.shape[0], "f4")
        for start, block in blocks(rows, 16_384):
            part = slice(start, start + len(block))
            x = self._features(block, None if classes is None else classes[part])
            ids, weights = (torch.from_numpy(a[part]).to(self.device) for a in found)
            scale = node_scale(weights)
            edges = scale[:, None] * weights * self._scale[ids]
            graph = Graph(ids, edges, scale.square())
            outputs = apart(self._layers, self._tables, x, graph)
            predicted[part] = outputs.cpu().numpy()
        return predicted

    def _nodes(
        self, rest: Rows | ArrayLike | None, labels: ArrayLike | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (n, f), neighbours (n, k) and edge weights (n, k) of seeds and rest."""
        rows = as_rows(self._seeds[:0] if rest is None else rest, self._seeds.shape[1])
        classes = None if rest is None else self._checked(rows, labels)
        if self._labels is not None:
            more = np.zeros(0, np.int64) if classes is None else classes
            classes = np.concatenate([self._labels, more])
        total, dim = len(self._seeds) + rows.shape[0], self._seeds.shape[1]
        large = total * dim >= _LARGE
        points = np.empty((total, dim), dtype=np.float16 if large else np.float32)
        points[: len(self._seeds)] = self._seeds
        for start, block in blocks(rows, 65_536):
            points[len(self._seeds) + start :][: len(block)] = block
        ids, weights = (
            torch.from_numpy(a).to(self.device)
            for a in knn_graph(points, self.k, ranks=self.ranks, device=str(self.device))
        )
        return self._features(points, classes), ids, weights

    def _checked(self, rows: Rows, labels: ArrayLike | None) -> NDArray[np.int64] | None:
        if (labels is None) != (self._labels is None):
            got = ("none", "labelled") if labels is None else ("labels", "unlabelled")
            raise ValueError(
                f"labels must be given for all nodes or for none, got {got[0]} beside {got[1]} "
                "seeds; give both or neither"
            )
        return checked_labels(labels, rows.shape[0])

    def _features(self, points: NDArray[Any], classes: NDArray[np.int64] | None) -> Tensor:
        x = torch.from_numpy(points).to(self.device)
        if classes is None or not len(self._seen):
            return x
        count = len(self._seen)
        both = torch.zeros((len(x), count + x.shape[1]), dtype=x.dtype, device=self.device)
        both[:, count:] = x
        # A number that no seed trained would say something at random.
        known = np.flatnonzero(self._seen[np.clip(classes, 0, count - 1)] & (classes < count))
        known = known[classes[known] >= 0]
        both[known, classes[known]] = 1
        return both

    def _train(
        self,
        x: Tensor,
        graph: Graph,
        scores: Tensor,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        split = torch.from_numpy(permutation(len(scores), self.seed, _SPLIT)).to(self.device)
        held_out, roots = split.tensor_split([max(2, len(scores) // 10)])
        sizes = [x.shape[1], 512, 256, 1]
        layers = torch.nn.ModuleList(map(KINDS[self.layer], sizes, sizes[1:])).to(self.device)
        optimizer = torch.optim.Adam(layers.parameters(), lr=self.learning_rate)
        draw = torch.Generator(self.device).manual_seed(self.seed)
        sampler = Sampler(layers, x, graph, fan_out=self.fan_out, draw=draw, ranks=self.ranks)
        best, kept, waited = -np.inf, layers.state_dict(), 0
        for done in range(self.epochs):
            if progress:
                progress(done, self.epochs)
            order = torch.randperm(len(roots), generator=draw, device=self.device)
            for batch in torch.split(roots[order], self.batch_size):
                predicted = sampler.outputs(sampler.around(batch), self.dropout)
                optimizer.zero_grad()
                wanted = scores[batch[self.ranks.share(len(batch))]]
                loss = functional.mse_loss(predicted, wanted, reduction="sum") / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                self.ranks.add_gradients(layers.parameters())
                optimizer.step()
            found = forward(layers, x, graph, first=sampler.first, ranks=self.ranks)[held_out]
            quality = pearson(scores[held_out].cpu().numpy(), found.cpu().numpy())
            quality = self.ranks.agree(quality)
            waited += 1
            if quality > best:
                best, kept, waited = quality, copy.deepcopy(layers.state_dict()), 0
            if waited == self.patience:
                break
        if progress:
            progress(self.epochs, self.epochs)
        layers.load_state_dict(kept)
        self._layers = layers
