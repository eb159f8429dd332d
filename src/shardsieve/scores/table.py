"""Which end of each score is kept first, where its formula comes from, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import real


@dataclass(frozen=True, slots=True)
class Orientation:
    """What is known of a score besides its formula.

    Attributes:
        keep: The end that is kept first, or the middle of the ranking.
        paper: The formula's source.
        arxiv: Its arXiv id, or None if it has none.
        signals: What must be recorded, by the name of the scorer's argument; labels come from the
            dataset, centroids and neighbours from the embeddings. TDDS needs the divergence only,
            not the probabilities it is made from.
    """

    keep: Literal["high", "low", "middle"]
    paper: str
    arxiv: str | None
    signals: tuple[str, ...]


_MAHARANA = ("Maharana, Yadav, Bansal, ICLR 2024", "2310.07931")
_CHANG = ("Chang, Learned-Miller, McCallum, NeurIPS 2017", "1704.07433")
_COLEMAN = ("Coleman et al., ICLR 2020", "1906.11829")
_PAUL = ("Paul, Ganguli, Dziugaite, NeurIPS 2021", "2107.07075")
_SWAYAMDIPTA = ("Swayamdipta et al., EMNLP 2020", "2009.10795")

ORIENTATION: Mapping[str, Orientation] = MappingProxyType(
    {
        "aum": Orientation("low", "Pleiss et al., NeurIPS 2020", "2001.10528", ("logits",)),
        "confidence": Orientation("low", *_SWAYAMDIPTA, ("p_true",)),
        "cross_entropy": Orientation("high", "the training loss", None, ("probs",)),
        "d2": Orientation("high", *_MAHARANA, ("scores", "neighbours")),
        "dual": Orientation("high", "Cho et al., ICML 2025", "2502.06905", ("p_true",)),
        "dynamic_uncertainty": Orientation(
            "high", "He et al., CVPRW 2024", "2306.05175", ("p_true",)
        ),
        "el2n": Orientation("high", *_PAUL, ("probs",)),
        "entropy": Orientation("high", *_COLEMAN, ("probs",)),
        "forgetting": Orientation("high", "Toneva et al., ICLR 2019", "1812.05159", ("correct",)),
        "frequency": Orientation("high", "Nieth et al., 2024", "2406.13283", ("p_true",)),
        "grand": Orientation("high", *_PAUL, ("model", "inputs")),
        "grand_last_layer": Orientation("high", *_PAUL, ("probs", "features")),
        "least_confidence": Orientation("high", *_COLEMAN, ("probs",)),
        "margin": Orientation("low", "Scheffer, Decomain, Wrobel, IDA 2001", None, ("probs",)),
        "message_passing": Orientation("high", *_MAHARANA, ("scores", "neighbours")),
        "moderate_distance": Orientation("middle", "Xia et al., ICLR 2023", None, ("embeddings",)),
        "prototypicality": Orientation(
            "high", "Sorscher et al., NeurIPS 2022", "2206.14486", ("embeddings",)
        ),
        "semdedup": Orientation("low", "Abbas et al., 2023", "2303.09540", ("embeddings",)),
        "tdds": Orientation("high", "Zhang et al., CVPR 2024", "2311.13613", ("divergence",)),
        "threshold_closeness": Orientation("high", *_CHANG, ("p_true",)),
        "variability": Orientation("high", *_SWAYAMDIPTA, ("p_true",)),
    }
)


_TURNED = {
    "high": "",
    "low": "; the paper's quantity times -1",
    "middle": "; minus the ranks from the middle of the paper's quantity",
}


def said_of(name: str) -> dict[str, str]:
    """Return what a stored score says of its direction and source, as `oriented` left it.

    Args:
        name: Of the score, one of `ORIENTATION`.
    """
    row = ORIENTATION[name]
    return {
        "orientation": f"higher is kept first{_TURNED[row.keep]}",
        "paper": row.paper + (f", arXiv {row.arxiv}" if row.arxiv else ""),
    }


def oriented(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return a score turned so that higher is kept first, float64, in an array of its own.

    Negates scores whose low end is kept: `margin` (low means uncertain), `confidence` and
    `aum` (low means hard), `semdedup` (high means duplicate). A rule that drops mislabelled samples
    needs the aum as it is. `moderate_distance` becomes minus the number of ranks to the middle,
    a quarter less on the upper side, so that no two are equal. NaN, a missing score, stays NaN.

    Args:
        name: Of the score, one of `ORIENTATION`.
        values: As returned by the scorer of that name, any shape; (n,) for `moderate_distance`.

    Raises:
        ValueError: If the name is unknown, or values are no numbers of that shape.

    >>> oriented("margin", [0.2, 0.9]).tolist()
    [-0.2, -0.9]
    >>> oriented("moderate_distance", [0.0, 3.0, 5.0, 9.0]).tolist()
    [-1.75, -0.75, -0.25, -1.25]
    """
    if name not in ORIENTATION:
        raise ValueError(
            f"name must be one of {', '.join(ORIENTATION)}, got {name!r}; "
            "a score of your own needs no turning if higher is kept first"
        )
    array = np.array(real("values", values), dtype=np.float64)
    if ORIENTATION[name].keep == "middle":
        if array.ndim != 1:
            raise ValueError(f"values of {name} must have shape (n,), got {array.shape}")
        return _nearness_to_the_middle(array)
    return array if ORIENTATION[name].keep == "high" else -array


def _nearness_to_the_middle(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.flatnonzero(~np.isnan(distances))
    ranks = np.empty(len(known))
    ranks[np.argsort(distances[known], kind="stable")] = np.arange(len(known))
    nearness = np.full(len(distances), np.nan)
    # A quarter: where the window of ranks cannot be centred, Moderate-DS rounds it upwards.
    nearness[known] = -np.abs(ranks - (len(known) - 1) / 2 - 0.25)
    return nearness
