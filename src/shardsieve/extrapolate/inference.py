"""Layer-wise inference over all nodes in bounded memory."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from shardsieve.extrapolate.graph import Graph
from shardsieve.extrapolate.layers import beside, finish, kind_of, mix, summed, table, voices
from shardsieve.extrapolate.ranks import ALONE, Ranks

# Nodes at a time, and the numbers from which a table of all nodes is kept in half precision.
_ROWS, _LARGE = 16_384, 2**27

Features = Callable[[int, int], Tensor]


class Heard(NamedTuple):
    """What the nodes of a layer gather from.

    Attributes:
        near: (n, c), the rows.
        loud: (n, 1), of every row, for GAT; else None.
    """

    near: Tensor
    loud: Tensor | None


def forward(
    layers: Any,
    x: Tensor,
    graph: Graph,
    *,
    first: Features | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the output of every node (n,), layer by layer, each over all neighbours.

    Beside the input no more is held of all nodes than two tables, of one layer and of the next
    (SAGE: and its input), in half precision where they are large.

    Args:
        layers: Of one kind; ReLU between them.
        x: (n, f).
        graph: Of n nodes.
        first: Outputs of the first layer by (start, stop), where they are known already.
        ranks: Each makes its share of every layer; all have the outputs of all nodes.
    """
    return _by_layer(layers, x, graph, first=first, keep=False, ranks=ranks)[1]


def forward_and_tables(
    layers: Any, x: Tensor, graph: Graph, *, ranks: Ranks = ALONE
) -> tuple[list[Heard], Tensor]:
    """Return what each layer gathers from, for `apart`, and what `forward` returns."""
    return _by_layer(layers, x, graph, first=None, keep=True, ranks=ranks)


@torch.no_grad()
def apart(layers: Any, tables: list[Heard], x: Tensor, graph: Graph) -> Tensor:
    """Return the outputs (b,) of nodes that no edge leaves, from the tables of their neighbours."""
    for layer, (near, loud) in zip(layers, tables, strict=True):
        x = x if layer is layers[0] else functional.relu(x)
        here = table(layer, x)
        factors = mix(layer, loud, here, graph)
        x = finish(layer, summed(near, here, graph.ids, factors), beside(layer, x))
    return x[:, 0]


@torch.no_grad()
def buffered(make: Features, total: int, ranks: Ranks = ALONE) -> Tensor:
    """Return the rows that `make` gives by (start, stop), in half precision if there are many.

    Each rank makes its share; all have all rows in the end.
    """
    buffer: Tensor | None = None
    for start, stop in _parts(ranks.share(total)):
        block = make(start, stop)
        if buffer is None:
            large = block.shape[1] > 1 and total * block.shape[1] >= _LARGE
            dtype = torch.float16 if large else torch.float32
            buffer = torch.empty((total, block.shape[1]), dtype=dtype, device=block.device)
        buffer[start:stop] = block
    assert buffer is not None
    return ranks.complete(buffer)


@torch.no_grad()
def _by_layer(
    layers: Any,
    x: Tensor,
    graph: Graph,
    *,
    first: Features | None,
    keep: bool,
    ranks: Ranks,
) -> tuple[list[Heard], Tensor]:
    total, tables = len(graph.ids), []
    given = x
    near = None
    if first is None:
        near = buffered(lambda a, b: table(layers[0], x[a:b].float()), total, ranks)
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        outputs = first
        if near is not None:
            heard = Heard(near, _loud(layer, near, ranks))
            outputs = _Outputs(layer, heard, given, graph)
            tables += [heard] if keep else []
        assert outputs is not None
        if after is None:
            return tables, buffered(outputs, total, ranks)[:, 0]
        near, given = _next(after, outputs, total, ranks)
    raise ValueError("layers must hold at least one layer, got none")


def _next(layer: Any, outputs: Features, total: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the next layer's table, and its input where that is needed besides."""
    if kind_of(layer) == "sage":
        given = buffered(lambda a, b: functional.relu(outputs(a, b)), total, ranks)
        return buffered(lambda a, b: table(layer, given[a:b].float()), total, ranks), given
    near = buffered(lambda a, b: table(layer, functional.relu(outputs(a, b))), total, ranks)
    return near, near


def _loud(layer: Any, near: Tensor, ranks: Ranks) -> Tensor | None:
    def part(start: int, stop: int) -> Tensor:
        loud = voices(layer, near[start:stop])
        assert loud is not None
        return loud

    return buffered(part, len(near), ranks) if kind_of(layer) == "gat" else None


class _Outputs:
    """A layer's outputs by (start, stop)."""

    def __init__(self, layer: Any, heard: Heard, given: Tensor, graph: Graph) -> None:
        self.layer, self.given, self.graph = layer, given, graph
        self.near, self.loud = heard

    def __call__(self, start: int, stop: int) -> Tensor:
        here = slice(start, stop)
        rows, graph = self.near[here].float(), self.graph.part(here)
        factors = mix(self.layer, self.loud, rows, graph)
        more = beside(self.layer, self.given[here].float()) if self.needs_input else None
        return finish(self.layer, summed(self.near, rows, graph.ids, factors), more)

    @property
    def needs_input(self) -> bool:
        return kind_of(self.layer) == "sage"


def _parts(rows: slice) -> Iterator[tuple[int, int]]:
    # A share without rows still tells what its rows would look like.
    for start in range(rows.start, max(rows.stop, rows.start + 1), _ROWS):
        yield start, min(start + _ROWS, rows.stop)
