"""Training: the seed run that scores samples, the run on what is kept, and embeddings."""

from typing import TYPE_CHECKING

from shardsieve._later import later

if TYPE_CHECKING:
    from shardsieve.train.recorder import Recorder

__getattr__ = later(__name__, {"recorder": "Recorder"})

__all__ = ["Recorder"]
