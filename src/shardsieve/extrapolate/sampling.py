"""Mini-batches of a graph: a fixed fan-out gathered from the neighbour table."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from shardsieve.extrapolate.graph import Graph, drawn
from shardsieve.extrapolate.inference import Features, buffered
from shardsieve.extrapolate.layers import beside, finish, kind_of, mix, summed, table, voices
from shardsieve.extrapolate.ranks import ALONE, Ranks


class Hop(NamedTuple):
    """The step from nodes to the drawn neighbours that they hear from.

    Attributes:
        nodes: (u,), every node that is needed below, once.
        here: (b,), places of the hearing nodes in `nodes`.
        ids: (b, c), places of their neighbours.
        edges: (b, c), factors of the edges, scaled for what was not drawn.
        own: (b,), factors of the self loops.
        places: (u,), places of the nodes among those of the whole batch; None where it is whole.
        whole: How many the whole batch has.
    """

    nodes: Tensor
    here: Tensor
    ids: Tensor
    edges: Tensor
    own: Tensor
    places: Tensor | None = None
    whole: int = 0


class Around(NamedTuple):
    """All that one step gathers.

    Attributes:
        hops: From the roots down.
        x: Features of the lowest nodes; for GCN None.
        sums: Their neighbours' sums of features; for GAT None.
    """

    hops: list[Hop]
    x: Tensor | None
    sums: Tensor | None


class Sampler:
    """Draws the neighbourhoods of roots and computes their outputs.

    The first sum of GCN and SAGE has no parameters in it and is made here once, of all neighbours.
    GAT's attention needs a hop more. Several ranks draw alike, for the whole batch, and each
    gathers and computes what its share of the roots needs.
    """

    def __init__(
        self,
        layers: Any,
        x: Tensor,
        graph: Graph,
        *,
        fan_out: tuple[int, int],
        draw: torch.Generator,
        ranks: Ranks = ALONE,
    ) -> None:
        self.layers, self.x, self.graph = layers, x, graph
        self.kind, self.fan_out, self.draw = kind_of(layers[0]), fan_out, draw
        self.ranks = ranks
        self.sums = None if self.kind == "gat" else buffered(self._summed, len(x), ranks)

    def around(self, roots: Tensor) -> Around:
        """Return what a step needs of the nodes around this rank's share of its roots (b,)."""
        upper = self._hop(roots, self.fan_out[0])
        lower = self._hop(upper.nodes, self.fan_out[1])
        hops = [upper, lower]
        if self.kind == "gat":
            hops.append(self._hop(lower.nodes, self.fan_out[1]))
        if self.ranks.size > 1:
            hops = needed_by(self.ranks.share(len(roots)), hops)
        nodes = hops[-1].nodes
        x = None if self.kind == "gcn" else self.x[nodes].float()
        return Around(hops, x, None if self.sums is None else self.sums[nodes].float())

    def outputs(self, around: Around, dropout: float = 0.0) -> Tensor:
        """Return the outputs of this rank's share of the roots, (b,).

        Args:
            around: Of the roots.
            dropout: Share of activations dropped after every layer but the last, in `[0, 1)`; drawn
                for the whole batch from torch's global generator, as for any number of ranks.
        """
        hops = around.hops
        if self.sums is None:
            assert around.x is not None
            hidden, layers = around.x, list(self.layers)
        else:
            hidden = _active(self._first(around.sums, around.x), hops[-1], dropout)
            layers = list(self.layers[1:])
        above = [*reversed(hops[:-1]), None]
        for layer, hop, upper in zip(layers, reversed(hops), above, strict=True):
            hidden = heard(layer, hidden, hop)
            hidden = hidden if upper is None else _active(hidden, upper, dropout)
        return hidden[:, 0]

    @property
    def first(self) -> Features | None:
        """The first layer's outputs by (start, stop), from the sums; None for GAT."""
        if self.sums is None:
            return None
        sums, own = self.sums, None if self.kind == "gcn" else self.x
        return lambda a, b: self._first(
            sums[a:b].float(), None if own is None else own[a:b].float()
        )

    def _first(self, sums: Tensor | None, x: Tensor | None) -> Tensor:
        layer: Any = self.layers[0]
        if self.kind == "gcn":
            return layer.lin(sums) + layer.bias  # type: ignore[no-any-return]
        return layer.lin_l(sums) + layer.lin_r(x)  # type: ignore[no-any-return]

    def _summed(self, start: int, stop: int) -> Tensor:
        graph, here = self.graph.part(slice(start, stop)), self.x[start:stop].float()
        return summed(self.x, here, graph.ids, mix(self.layers[0], None, here, graph))

    def _hop(self, nodes: Tensor, count: int) -> Hop:
        ids, edges, own = self.graph
        near, factors = drawn(ids[nodes], edges[nodes], count, self.draw)
        # Every node is computed once, however many edges lead to it.
        needed, places = torch.unique(torch.cat([nodes[:, None], near], 1), return_inverse=True)
        return Hop(needed, places[:, 0], places[:, 1:], factors, own[nodes])


def needed_by(roots: slice, hops: list[Hop]) -> list[Hop]:
    """Return the parts of the hops that some of their roots need."""
    found, hearing = [], torch.arange(len(hops[0].here), device=hops[0].here.device)[roots]
    for hop in hops:
        both = torch.cat([hop.here[hearing, None], hop.ids[hearing]], 1)
        needed, places = torch.unique(both, return_inverse=True)
        factors = hop.edges[hearing], hop.own[hearing]
        nodes, whole = hop.nodes[needed], len(hop.nodes)
        found.append(Hop(nodes, places[:, 0], places[:, 1:], *factors, needed, whole))
        hearing = needed
    return found


def _active(hidden: Tensor, hop: Hop, dropout: float) -> Tensor:
    """Return the rows of a hop's nodes after ReLU and dropout."""
    hidden = functional.relu(hidden)
    if dropout == 0:
        return hidden
    whole, width = len(hidden) if hop.places is None else hop.whole, hidden.shape[1]
    # Every rank draws for the whole batch, so that draws must be cheap: 16 bits each, four at once.
    draws = torch.empty((whole, -(-width // 4)), dtype=torch.int64, device=hidden.device)
    draws.random_(-(2**63), None)
    draws = draws if hop.places is None else draws[hop.places]
    kept = draws.view(torch.int16)[:, :width] >= round(dropout * 2**16) - 2**15
    return hidden * kept.to(hidden.dtype).div_(1 - dropout)


def heard(layer: Any, hidden: Tensor, hop: Hop) -> Tensor:
    """Return a layer's outputs (b, out) for the hearing nodes of a hop, from rows (u, in)."""
    near = table(layer, hidden)
    here = functional.embedding(hop.here, near)
    factors = mix(layer, voices(layer, near), here, Graph(hop.ids, hop.edges, hop.own))
    own = functional.embedding(hop.here, hidden) if kind_of(layer) == "sage" else None
    more = None if own is None else beside(layer, own)
    return finish(layer, summed(near, here, hop.ids, factors), more)
