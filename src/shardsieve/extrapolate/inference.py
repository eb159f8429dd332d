"""Layer-wise inference over all nodes in bounded memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shardsieve.extrapolate.layers import beside, finish, kind_of, mix, summed, table

# Nodes at a time, and the numbers from which a table of all nodes is kept in half precision.
_ROWS, _LARGE = 16_384, 2**27

Features = Callable[[int, int], Tensor]


def forward(
    layers: Any,
    x: Tensor,
    ids: Tensor,
    edges: Tensor,
    own: Tensor,
    *,
    first: Features | None = None,
) -> Tensor:
    """Return the output of every node (n,), layer by layer, each over all neighbours.

    Beside the input no more is held of all nodes than two tables, of one layer and of the next
    (SAGE: and its input), in half precision where they are large.

    Args:
        layers: Of one kind; ReLU between them.
        x: (n, f).
        ids: (n, k).
        edges: (n, k), GCN's factors of the edges.
        own: (n,), of the self loops.
        first: Outputs of the first layer by (start, stop), where they are known already.
    """
    return _by_layer(layers, x, ids, edges, own, first=first, keep=False)[1]


def forward_and_tables(
    layers: Any, x: Tensor, ids: Tensor, edges: Tensor, own: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Return the table that each layer gathers from, for `apart`, and what `forward` returns."""
    return _by_layer(layers, x, ids, edges, own, first=None, keep=True)


@torch.no_grad()
def apart(
    layers: Any, tables: list[Tensor], x: Tensor, ids: Tensor, edges: Tensor, own: Tensor
) -> Tensor:
    """Return the outputs (b,) of nodes that no edge leaves, from the tables of their neighbours."""
    for layer, near in zip(layers, tables, strict=True):
        x = x if layer is layers[0] else functional.relu(x)
        here = table(layer, x)
        factors = mix(layer, near, here, ids, edges, own)
        x = finish(layer, summed(near, here, ids, factors), beside(layer, x))
    return x[:, 0]


@torch.no_grad()
def buffered(make: Features, total: int) -> Tensor:
    """Return the rows that `make` gives by (start, stop), in half precision if there are many."""
    buffer: Tensor | None = None
    for start, stop in _parts(total):
        block = make(start, stop)
        if buffer is None:
            large = total * block.shape[1] >= _LARGE
            dtype = torch.float16 if large else torch.float32
            buffer = torch.empty((total, block.shape[1]), dtype=dtype, device=block.device)
        buffer[start:stop] = block
    assert buffer is not None
    return buffer


@torch.no_grad()
def _by_layer(
    layers: Any,
    x: Tensor,
    ids: Tensor,
    edges: Tensor,
    own: Tensor,
    *,
    first: Features | None,
    keep: bool,
) -> tuple[list[Tensor], Tensor]:
    total, tables = len(ids), []
    given = x
    near = None if first else buffered(lambda a, b: table(layers[0], x[a:b].float()), total)
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        outputs = first if near is None else _Outputs(layer, near, given, ids, edges, own)
        assert outputs is not None
        if keep and near is not None:
            tables.append(near)
        if after is None:
            parts = [outputs(start, stop)[:, 0] for start, stop in _parts(total)]
            return tables, torch.cat(parts)
        near, given = _next(after, outputs, total)
    raise ValueError("layers must hold at least one layer, got none")


def _next(layer: Any, outputs: Features, total: int) -> tuple[Tensor, Tensor]:
    """Return the next layer's table, and its input where that is needed besides."""
    if kind_of(layer) == "sage":
        given = buffered(lambda a, b: functional.relu(outputs(a, b)), total)
        return buffered(lambda a, b: table(layer, given[a:b].float()), total), given
    near = buffered(lambda a, b: table(layer, functional.relu(outputs(a, b))), total)
    return near, near


class _Outputs:
    """A layer's outputs by (start, stop)."""

    def __init__(
        self, layer: Any, near: Tensor, given: Tensor, ids: Tensor, edges: Tensor, own: Tensor
    ) -> None:
        self.layer, self.near, self.given = layer, near, given
        self.ids, self.edges, self.own = ids, edges, own

    def __call__(self, start: int, stop: int) -> Tensor:
        here = slice(start, stop)
        rows, ids = self.near[here].float(), self.ids[here]
        factors = mix(self.layer, self.near, rows, ids, self.edges[here], self.own[here])
        more = beside(self.layer, self.given[here].float()) if self.needs_input else None
        return finish(self.layer, summed(self.near, rows, ids, factors), more)

    @property
    def needs_input(self) -> bool:
        return kind_of(self.layer) == "sage"


def _parts(total: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, _ROWS):
        yield start, min(start + _ROWS, total)
