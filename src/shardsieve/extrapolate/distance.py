"""Whether samples lie where the seeds are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve.extrapolate.approximate import SAMPLE, spread_rows, true_neighbours
from shardsieve.extrapolate.protocol import Rows

# Of samples drawn like the seeds one in twenty lies beyond; five times as many is no accident.
_BEYOND, _TOO_MANY = 95, 0.25


def far_share(seeds: NDArray[Any], points: Rows) -> float:
    """Return the share of samples that lie farther from the seeds than 95 % of seeds do.

    A seed's distance is that to the nearest other seed. About 0.05 of samples drawn like the seeds
    are far; 1 means that all are.

    Args:
        seeds: (m, d), finite, m at least 2.
        points: (n, d), finite, n at least 1, of which about a thousand are looked at.
    """
    places = np.linspace(0, len(seeds) - 1, min(SAMPLE, len(seeds))).astype(np.int64)
    own = np.asarray(seeds[places], dtype=np.float32)
    usual = np.percentile(true_neighbours(seeds, own, 2)[1][:, 1], _BEYOND)
    return float((true_neighbours(seeds, spread_rows(points), 1)[1][:, 0] > usual).mean())


def warn_of_far(share: float) -> str | None:
    """Return what to tell the user of a share of far samples, None where it is usual."""
    if share <= _TOO_MANY:
        return None
    return (
        f"{share:.0%} of the new samples lie farther from the seeds than 95 % of seeds from one "
        "another: their predicted scores are guesses; run `shardsieve score` on a seed subset that "
        "holds some of them"
    )
