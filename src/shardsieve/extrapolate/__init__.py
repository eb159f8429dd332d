"""Predict the scores of the rest from embeddings and the seeds' scores."""

from typing import Any

from shardsieve.extrapolate.calibration import Spread, match_quantiles, spread
from shardsieve.extrapolate.choosing import choose_k
from shardsieve.extrapolate.correlations import keep_agreement, pearson, spearman
from shardsieve.extrapolate.direct import Direct
from shardsieve.extrapolate.distance import far_share
from shardsieve.extrapolate.fused import Fused
from shardsieve.extrapolate.knn import KNN, neighbours
from shardsieve.extrapolate.protocol import Extrapolator
from shardsieve.extrapolate.quality import (
    Quality,
    by_class,
    cross_validate,
    doubt,
    measure,
    out_of_fold,
)
from shardsieve.extrapolate.resampling import intervals

__all__ = [
    "GNN",
    "KNN",
    "Direct",
    "Extrapolator",
    "Fused",
    "Quality",
    "Spread",
    "by_class",
    "choose_k",
    "cross_validate",
    "doubt",
    "far_share",
    "intervals",
    "keep_agreement",
    "match_quantiles",
    "measure",
    "neighbours",
    "out_of_fold",
    "pearson",
    "spearman",
    "spread",
]


def __getattr__(name: str) -> Any:
    # Only whoever asks for the GNN needs torch-geometric.
    if name == "GNN":
        from shardsieve.extrapolate.gnn import GNN

        return GNN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
