"""Predict the scores of the rest from embeddings and the seeds' scores."""

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
