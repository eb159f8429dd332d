"""Predict the scores of the rest from embeddings and the seeds' scores."""

from typing import Any

from shardsieve.extrapolate.knn import KNN, neighbours
from shardsieve.extrapolate.protocol import Extrapolator
from shardsieve.extrapolate.quality import (
    Quality,
    cross_validate,
    keep_agreement,
    measure,
    pearson,
    spearman,
)

__all__ = [
    "GNN",
    "KNN",
    "Extrapolator",
    "Quality",
    "cross_validate",
    "keep_agreement",
    "measure",
    "neighbours",
    "pearson",
    "spearman",
]


def __getattr__(name: str) -> Any:
    # Only whoever asks for the GNN needs torch-geometric.
    if name == "GNN":
        from shardsieve.extrapolate.gnn import GNN

        return GNN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
