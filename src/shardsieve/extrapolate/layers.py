"""torch-geometric's layers over a table of neighbours: the same parameters, no scattering.

A layer is done in three steps: `table` gives the rows that are gathered, a weighted sum over a
node's own row and its neighbours' (`mix`, `summed`) leaves one row a node, `finish` gives the
output. What is gathered is the narrower of input and output.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shardsieve._errors import MissingDependencyError
from shardsieve.extrapolate.graph import Graph

try:
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv
except ImportError as error:
    raise MissingDependencyError(
        "the GNN needs torch-geometric: install shardsieve[gnn]"
    ) from error

KINDS: dict[str, Any] = {"gcn": GCNConv, "sage": SAGEConv, "gat": GATConv}


def kind_of(layer: Any) -> str:
    """Return the layer's name in `KINDS`."""
    return next(name for name, kind in KINDS.items() if isinstance(layer, kind))


def table(layer: Any, x: Tensor) -> Tensor:
    """Return the rows that neighbours gather, (n, c), of a layer's input (n, in)."""
    kind = kind_of(layer)
    if kind == "gat":
        return layer.lin(x)  # type: ignore[no-any-return]
    if not _narrows(layer):
        return x
    # SAGE adds its bias after the mean.
    return layer.lin(x) if kind == "gcn" else functional.linear(x, layer.lin_l.weight)


def beside(layer: Any, x: Tensor) -> Tensor | None:
    """Return what a node's own input adds to its output, (n, out); None but for SAGE."""
    return layer.lin_r(x) if kind_of(layer) == "sage" else None


def voices(layer: Any, near: Tensor) -> Tensor | None:
    """Return what attention hears of each row of a table, (n, 1); None but for GAT."""
    return near.float() @ layer.att_src[0, 0][:, None] if kind_of(layer) == "gat" else None


def mix(layer: Any, loud: Tensor | None, here: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
    """Return the factors of the nodes' own rows (b,) and of their neighbours' (b, k).

    Args:
        layer: Of `KINDS`.
        loud: (n, 1), from `voices`.
        here: (b, c), the nodes' own rows in the table.
        graph: Of b nodes; its ids are neighbours' rows in the table.
    """
    kind, (ids, edges, own) = kind_of(layer), graph
    if kind == "gcn":
        return own, edges
    if kind == "sage":
        return torch.zeros_like(own), torch.full_like(edges, 1 / ids.shape[1])
    assert loud is not None
    source, target = layer.att_src[0, 0], layer.att_dst[0, 0]
    to = (here * target).sum(dim=1, keepdim=True)
    heard = functional.embedding(ids, loud)[:, :, 0]
    itself = (here * source).sum(dim=1, keepdim=True)
    scores = functional.leaky_relu(torch.cat([itself, heard], dim=1) + to, layer.negative_slope)
    shares = scores.softmax(dim=1)
    return shares[:, 0], shares[:, 1:]


def summed(near: Tensor, here: Tensor, ids: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """Return the weighted sums over own and neighbours' rows, (b, c)."""
    itself, others = factors
    if torch.is_grad_enabled():
        # The gradient of plain indexing adds in any order on several threads; embedding's does not.
        gathered = torch.bmm(others[:, None], functional.embedding(ids, near))[:, 0]
    else:
        gathered = functional.embedding_bag(
            ids, near, mode="sum", per_sample_weights=others.to(near.dtype)
        ).float()
    return gathered + itself[:, None] * here


def finish(layer: Any, sums: Tensor, more: Tensor | None) -> Tensor:
    """Return the layer's output (b, out) from the sums and what `beside` gave."""
    kind = kind_of(layer)
    if kind == "gat":
        return sums + layer.bias  # type: ignore[no-any-return]
    if kind == "gcn":
        return (sums if _narrows(layer) else layer.lin(sums)) + layer.bias  # type: ignore[no-any-return]
    mean = sums + layer.lin_l.bias if _narrows(layer) else layer.lin_l(sums)
    outputs: Tensor = mean if more is None else mean + more
    return outputs


def _narrows(layer: Any) -> bool:
    return bool(layer.out_channels <= layer.in_channels)
