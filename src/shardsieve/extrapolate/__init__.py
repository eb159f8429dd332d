"""Predict the scores of the rest from embeddings and the seeds' scores."""

from shardsieve.extrapolate.knn import KNN
from shardsieve.extrapolate.quality import Quality, cross_validate

__all__ = ["KNN", "Quality", "cross_validate"]
