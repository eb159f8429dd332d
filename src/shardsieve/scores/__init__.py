"""How much a sample matters, from recorded training dynamics: pure functions over arrays.

Every function returns the paper's own quantity; `ORIENTATION` says which end is kept first, and
`oriented` turns it so that higher is. The `Streaming` classes need no more than a window of epochs.
"""

from shardsieve.scores.divergences import divergence, tdds, tdds_from_divergence
from shardsieve.scores.dynamics import confidence, dual, dynamic_uncertainty, variability
from shardsieve.scores.events import aum, forgetting
from shardsieve.scores.snapshot import cross_entropy, el2n, entropy, grand_last_layer, margin
from shardsieve.scores.streaming import (
    StreamingDynamicUncertainty,
    StreamingForgetting,
    StreamingTDDS,
)
from shardsieve.scores.table import ORIENTATION, Orientation, oriented

__all__ = [
    "ORIENTATION",
    "Orientation",
    "StreamingDynamicUncertainty",
    "StreamingForgetting",
    "StreamingTDDS",
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
