"""Whether samples lie where the seeds are."""

import numpy as np
from numpy.typing import ArrayLike

from shardsieve.extrapolate.approximate import SAMPLE, spread_rows, true_neighbours
from shardsieve.extrapolate.protocol import Rows, as_rows
from shardsieve.scores.inputs import plain

# Of samples drawn like the seeds one in twenty lies beyond; five times as many is no accident.
_BEYOND, _TOO_MANY = 95, 0.25


def far_share(seeds: ArrayLike, points: Rows | ArrayLike) -> float:
    """Return the share of samples that lie farther from the seeds than 95 % of seeds do.

    A seed's distance is that to the nearest other seed. About 0.05 of samples drawn like the seeds
    are far; 1 means that all are.

    Args:
        seeds: (m, d), finite, m at least 2.
        points: (n, d), finite, n at least 1, of which about a thousand are looked at.

    Raises:
        ValueError: If there are fewer seeds or samples, or shapes disagree.
    """
    known = np.asarray(plain(seeds))
    rows = as_rows(points, as_rows(known).shape[1])
    if len(known) < 2 or rows.shape[0] < 1:
        raise ValueError(
            "distances must be of at least 2 seeds and 1 sample, got "
            f"{len(known)} and {rows.shape[0]}; score more seeds"
        )
    places = np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(np.int64)
    own = np.asarray(known[places], dtype=np.float32)
    usual = np.percentile(true_neighbours(known, own, 2)[1][:, 1], _BEYOND)
    return float((true_neighbours(known, spread_rows(rows), 1)[1][:, 0] > usual).mean())


def warn_of_far(share: float) -> str | None:
    """Return what to tell the user of a share of far samples, None where it is usual."""
    if share <= _TOO_MANY:
        return None
    return (
        f"{share:.0%} of the new samples lie farther from the seeds than 95 % of seeds from one "
        "another: their predicted scores are guesses; run `shardsieve score` on a seed subset that "
        "holds some of them"
    )
