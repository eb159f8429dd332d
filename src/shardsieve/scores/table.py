"""Which end of each score is kept first, where its formula comes from, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Orientation:
    """What is known of a score besides its formula.

    Attributes:
        keep: The end that is kept first.
        paper: The formula's source.
        arxiv: Its arXiv id, or None if it has none.
        signals: What must be recorded, by the name of the scorer's argument; labels come from the
            dataset. TDDS needs the divergence only, not the probabilities it is made from.
    """

    keep: Literal["high", "low"]
    paper: str
    arxiv: str | None
    signals: tuple[str, ...]


_PAUL = ("Paul, Ganguli, Dziugaite, NeurIPS 2021", "2107.07075")
_SWAYAMDIPTA = ("Swayamdipta et al., EMNLP 2020", "2009.10795")

ORIENTATION: Mapping[str, Orientation] = MappingProxyType(
    {
        "aum": Orientation("low", "Pleiss et al., NeurIPS 2020", "2001.10528", ("logits",)),
        "confidence": Orientation("low", *_SWAYAMDIPTA, ("p_true",)),
        "cross_entropy": Orientation("high", "the training loss", None, ("probs",)),
        "dual": Orientation("high", "Cho et al., ICML 2025", "2502.06905", ("p_true",)),
        "dynamic_uncertainty": Orientation(
            "high", "He et al., CVPRW 2024", "2306.05175", ("p_true",)
        ),
        "el2n": Orientation("high", *_PAUL, ("probs",)),
        "entropy": Orientation("high", "Coleman et al., ICLR 2020", "1906.11829", ("probs",)),
        "forgetting": Orientation("high", "Toneva et al., ICLR 2019", "1812.05159", ("correct",)),
        "grand_last_layer": Orientation("high", *_PAUL, ("probs", "features")),
        "margin": Orientation("low", "Scheffer, Decomain, Wrobel, IDA 2001", None, ("probs",)),
        "tdds": Orientation("high", "Zhang et al., CVPR 2024", "2311.13613", ("divergence",)),
        "variability": Orientation("high", *_SWAYAMDIPTA, ("p_true",)),
    }
)


def oriented(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return a score turned so that higher is kept first, float64, in an array of its own.

    Negates what is kept from the low end: `margin` (little means uncertain), `confidence` and
    `aum` (low means hard). A rule that drops mislabelled samples wants the aum as it is. NaN, a
    missing score, stays NaN.

    Args:
        name: Of the score, one of `ORIENTATION`.
        values: As returned by the scorer of that name, any shape.

    Raises:
        ValueError: If the name is unknown.

    >>> oriented("margin", [0.2, 0.9]).tolist()
    [-0.2, -0.9]
    """
    if name not in ORIENTATION:
        raise ValueError(
            f"name must be one of {', '.join(ORIENTATION)}, got {name!r}; "
            "a score of your own needs no turning if higher is kept first"
        )
    array = np.array(values, dtype=np.float64)
    return array if ORIENTATION[name].keep == "high" else -array
