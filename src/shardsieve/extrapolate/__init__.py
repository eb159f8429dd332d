"""Predict the scores of the rest from embeddings and the seeds' scores."""

from typing import TYPE_CHECKING

from shardsieve._later import later

if TYPE_CHECKING:
    from shardsieve.extrapolate.calibration import Spread, match_quantiles, spread
    from shardsieve.extrapolate.choosing import choose_k
    from shardsieve.extrapolate.correlations import keep_agreement, pearson, spearman
    from shardsieve.extrapolate.direct import Direct
    from shardsieve.extrapolate.distance import far_share
    from shardsieve.extrapolate.fused import Fused
    from shardsieve.extrapolate.gnn import GNN
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

_HOMES = {
    "calibration": "Spread match_quantiles spread",
    "choosing": "choose_k",
    "correlations": "keep_agreement pearson spearman",
    "direct": "Direct",
    "distance": "far_share",
    "fused": "Fused",
    "gnn": "GNN",
    "knn": "KNN neighbours",
    "protocol": "Extrapolator",
    "quality": "Quality by_class cross_validate doubt measure out_of_fold",
    "resampling": "intervals",
}
__getattr__ = later(__name__, _HOMES)

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


def __dir__() -> list[str]:
    return list(__all__)
