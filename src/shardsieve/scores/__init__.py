"""How much a sample matters, from recorded training dynamics: pure functions over arrays.

Every function returns the paper's own quantity; `ORIENTATION` says which end is kept first, and
`oriented` turns it so that higher is. The `Streaming` classes need no more than a window of epochs.
`prototypicality`, `moderate_distance` and `semdedup` need embeddings only, `message_passing` and
`d2` a score and neighbours, `grand` the network itself.
"""

from typing import TYPE_CHECKING

from shardsieve._later import later
from shardsieve.scores.divergences import divergence, tdds, tdds_from_divergence
from shardsieve.scores.dynamics import (
    DYNAMIC_UNCERTAINTY,
    confidence,
    dual,
    dynamic_uncertainty,
    frequency,
    threshold_closeness,
    variability,
)
from shardsieve.scores.embedded import moderate_distance, prototypicality, semdedup
from shardsieve.scores.events import aum, forgetting
from shardsieve.scores.messages import d2, message_passing
from shardsieve.scores.recorded import RECORDED, from_signals
from shardsieve.scores.running import StreamingDUAL, StreamingMoments
from shardsieve.scores.snapshot import (
    cross_entropy,
    el2n,
    entropy,
    grand_last_layer,
    least_confidence,
    margin,
)
from shardsieve.scores.streaming import (
    StreamingDynamicUncertainty,
    StreamingForgetting,
    StreamingTDDS,
)
from shardsieve.scores.table import ORIENTATION, Orientation, oriented

if TYPE_CHECKING:
    from shardsieve.scores.clusters import k_means
    from shardsieve.scores.gradients import grand

# torch and faiss are loaded by those who ask for them.
__getattr__ = later(__name__, {"gradients": "grand", "clusters": "k_means"})

__all__ = [
    "DYNAMIC_UNCERTAINTY",
    "ORIENTATION",
    "RECORDED",
    "Orientation",
    "StreamingDUAL",
    "StreamingDynamicUncertainty",
    "StreamingForgetting",
    "StreamingMoments",
    "StreamingTDDS",
    "aum",
    "confidence",
    "cross_entropy",
    "d2",
    "divergence",
    "dual",
    "dynamic_uncertainty",
    "el2n",
    "entropy",
    "forgetting",
    "frequency",
    "from_signals",
    "grand",
    "grand_last_layer",
    "k_means",
    "least_confidence",
    "margin",
    "message_passing",
    "moderate_distance",
    "oriented",
    "prototypicality",
    "semdedup",
    "tdds",
    "tdds_from_divergence",
    "threshold_closeness",
    "variability",
]


def __dir__() -> list[str]:
    return list(__all__)
