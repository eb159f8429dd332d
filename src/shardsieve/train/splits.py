"""How a seed run is laid out: held-out seeds, epochs that match a full run, epochs to keep."""

import numpy as np
from numpy.typing import NDArray

from shardsieve.order import permutation
from shardsieve.selection import num_kept

_SALT = 0x401D


def check_layout(
    *,
    seeds: float = 1.0,
    held_out: float = 0.0,
    snapshots: int = 1,
    match_steps_of: int = 1,
) -> None:
    """Refuse settings of a seed run that are wrong for any store.

    Args:
        seeds: Share of all samples, in `(0, 1]`.
        held_out: Share of the seeds that are held out, in `[0, 1)`.
        snapshots: Networks to keep, at least 1.
        match_steps_of: Epochs of the full run, at least 1.

    Raises:
        ValueError: With what is wrong.
    """
    if not 0 < seeds <= 1:
        raise ValueError(f"seeds must lie in (0, 1], got {seeds}; 0.2 is usual")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must lie in [0, 1), got {held_out}; 0.1 is usual")
    if snapshots < 1:
        raise ValueError(f"snapshots must be at least 1, got {snapshots}; 1 keeps the last network")
    if match_steps_of < 1:
        raise ValueError(
            f"match_steps_of must be at least 1 epoch, got {match_steps_of}; see --epochs"
        )


def hold_out(
    seeds: NDArray[np.int64], fraction: float, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the seeds to train on, and those left out so that the network is tried on them.

    Args:
        seeds: int64 (m,), sample ids, ascending.
        fraction: In `[0, 1)`; 0 holds none out, and the second is None.
        seed: Decides which.

    Raises:
        ValueError: If the fraction lies outside `[0, 1)`, or leaves none to train on or none out.

    >>> [len(part) for part in hold_out(np.arange(10), 0.2)]
    [8, 2]
    """
    check_layout(held_out=fraction)
    if fraction == 0:
        return seeds, None
    count = num_kept(len(seeds), fraction)
    if not 0 < count < len(seeds):
        raise ValueError(
            f"held_out must leave some of {len(seeds)} seeds out and some in, got {fraction}; "
            "score more seeds"
        )
    order = permutation(len(seeds), seed, _SALT)
    return seeds[np.sort(order[count:])], seeds[np.sort(order[:count])]


def matched_epochs(full_epochs: int, *, full: int, seeds: int, batch: int) -> int:
    """Return the epochs in which a seed run makes as many steps as a full run, rounded.

    Args:
        full_epochs: Of the full run, at least 1.
        full: Samples of the full run.
        seeds: Samples that the seed run trains on, of those of the full run, at least 1.
        batch: Samples of one optimiser step over all ranks, of both runs.

    >>> matched_epochs(12, full=50_000, seeds=10_000, batch=128)
    59
    """
    check_layout(match_steps_of=full_epochs)
    return round(full_epochs * -(-full // batch) / -(-seeds // batch))


def matched_window(window: int, *, epochs: int, full_epochs: int) -> int:
    """Return the window that is as long, in steps, as a full run's, at least 3 and below `epochs`.

    >>> matched_window(10, epochs=59, full_epochs=12), matched_window(10, epochs=8, full_epochs=4)
    (49, 7)
    >>> matched_window(10, epochs=6, full_epochs=60)
    3
    """
    return max(3, min(round(window * epochs / full_epochs), epochs - 1))


def snapshot_epochs(epochs: int, count: int) -> list[int]:
    """Return `count` epochs or all, evenly spaced, the last among them, ascending from 1.

    >>> snapshot_epochs(12, 4)
    [3, 6, 9, 12]
    """
    check_layout(snapshots=count)
    count = min(count, epochs)
    return [round(epochs * (place + 1) / count) for place in range(count)]
