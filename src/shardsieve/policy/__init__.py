"""Dynamic pruning: policies that choose the keep set of every epoch, from losses or at random."""

from shardsieve.policy.base import Choice, Policy
from shardsieve.policy.infobatch import InfoBatch
from shardsieve.policy.raju import UCB, EpsilonGreedy
from shardsieve.policy.random import RandomDynamic
from shardsieve.policy.scheduled import AnnealedScore
from shardsieve.policy.seta import SeTa
from shardsieve.policy.weights import weighted

__all__ = [
    "UCB",
    "AnnealedScore",
    "Choice",
    "EpsilonGreedy",
    "InfoBatch",
    "Policy",
    "RandomDynamic",
    "SeTa",
    "weighted",
]
