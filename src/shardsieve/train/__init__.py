"""Training: the seed run that scores samples, the run on what is kept, and embeddings."""

from shardsieve.train.recorder import Recorder

__all__ = ["Recorder"]
