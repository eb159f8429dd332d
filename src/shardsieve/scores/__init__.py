"""How much a sample matters, from recorded training dynamics: pure functions over arrays.

Every function returns the paper's own quantity; `ORIENTATION` says which end is kept first.
"""

from shardsieve.scores.dynamics import (
    confidence,
    divergence,
    dual,
    dynamic_uncertainty,
    tdds,
    tdds_from_divergence,
    variability,
)
from shardsieve.scores.events import aum, forgetting
from shardsieve.scores.snapshot import cross_entropy, el2n, entropy, grand_last_layer, margin
from shardsieve.scores.table import ORIENTATION, oriented

__all__ = [
    "ORIENTATION",
    "aum",
    "confidence",
    "cross_entropy",
    "divergence",
    "dual",
    "dynamic_uncertainty",
    "el2n",
    "entropy",
    "forgetting",
    "grand_last_layer",
    "margin",
    "oriented",
    "tdds",
    "tdds_from_divergence",
    "variability",
]
