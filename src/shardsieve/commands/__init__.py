"""The bodies of the commands, each callable from Python, and imported when it is first used."""

from typing import TYPE_CHECKING

from shardsieve._later import later

if TYPE_CHECKING:
    from shardsieve.commands import (
        appending,
        asking,
        building,
        clearing,
        exporting,
        extrapolating,
        making,
        packing,
        planning,
        reporting,
        running,
        scoring,
        showing,
        sources,
        training,
    )

__all__ = [
    "appending",
    "asking",
    "building",
    "clearing",
    "exporting",
    "extrapolating",
    "making",
    "packing",
    "planning",
    "reporting",
    "running",
    "scoring",
    "showing",
    "sources",
    "training",
]
__getattr__ = later(__name__, {}, tuple(__all__))
