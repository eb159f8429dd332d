"""Dynamic pruning: policies that choose the keep set of every epoch, from losses or at random."""

from typing import TYPE_CHECKING

from shardsieve._later import later

if TYPE_CHECKING:
    from shardsieve.policy.base import Choice, Policy
    from shardsieve.policy.infobatch import InfoBatch
    from shardsieve.policy.raju import UCB, EpsilonGreedy
    from shardsieve.policy.random import RandomDynamic
    from shardsieve.policy.scheduled import AnnealedScore
    from shardsieve.policy.seta import SeTa
    from shardsieve.policy.weights import weighted

_HOMES = {
    "base": "Choice Policy",
    "infobatch": "InfoBatch",
    "raju": "UCB EpsilonGreedy",
    "random": "RandomDynamic",
    "scheduled": "AnnealedScore",
    "seta": "SeTa",
    "weights": "weighted",
}
__getattr__ = later(__name__, _HOMES)

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
