"""Scores that count or average events over presentations."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.scores.inputs import Floats, class_ids, finite, truths, two_classes

NeverLearned = Literal["hardest", "easiest"]


def forgetting(
    correct: ArrayLike,
    never_learned: NeverLearned = "hardest",
    *,
    presented: ArrayLike | None = None,
) -> Floats:
    """Return how often a sample went from right to wrong between presentations, float64 (n,).

    Toneva et al., ICLR 2019, arXiv 1812.05159; high is kept first. Each presentation is compared
    with the sample's previous one, however many epochs ago that was.

    Args:
        correct: (T, n), bool: was the sample classified correctly?
        never_learned: What a sample that was never right gets: `"hardest"` its number of
            presentations, as in the paper; `"easiest"` 0, as in much later code.
        presented: (T, n), bool: was the sample shown in that epoch? `correct` is ignored where
            not. All were, by default.

    Raises:
        ValueError: If a shape does not fit or a value is neither true nor false.

    >>> forgetting([[1, 0], [0, 0], [1, 0]]).tolist()
    [1.0, 3.0]
    """
    right = truths("correct", correct, "T n")
    shown = np.ones_like(right) if presented is None else truths("presented", presented, "T n")
    if shown.shape != right.shape:
        raise ValueError(
            f"presented must have the shape of correct, {right.shape}, got {shown.shape}; "
            "record both in the same pass"
        )
    events = np.zeros(right.shape[1], dtype=np.int64)
    before = np.zeros(right.shape[1], dtype=np.bool_)
    for right_now, shown_now in zip(right, shown, strict=True):
        events += shown_now & before & ~right_now
        before = np.where(shown_now, right_now, before)
    learned = np.asarray((right & shown).any(axis=0), dtype=np.bool_)
    return place_never_learned(events, learned, shown.sum(axis=0), never_learned)


def place_never_learned(
    events: NDArray[np.int64],
    learned: NDArray[np.bool_],
    presentations: NDArray[np.int64],
    never_learned: NeverLearned,
) -> Floats:
    """Return the counted events, with never-learned samples put at the chosen end."""
    if never_learned not in ("hardest", "easiest"):
        raise ValueError(
            f"never_learned must be 'hardest' or 'easiest', got {never_learned!r}; "
            "the paper's is 'hardest'"
        )
    if never_learned == "hardest":
        events = np.where(learned, events, presentations)
    return events.astype(np.float64)


def aum(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the area under the margin: mean over epochs of Z[y] - max of the others, float64 (n,).

    Pleiss et al., NeurIPS 2020, arXiv 2001.10528. Low means hard or mislabelled, and is kept first
    by `oriented`; a rule that drops mislabelled samples wants the other end.

    Args:
        logits: (T, n, C), finite; C >= 2.
        labels: (n,), integers in `[0, C)`.

    Raises:
        ValueError: If shapes or labels do not fit, or a logit is NaN or infinite.

    >>> aum([[[3.0, 1.0]], [[1.0, 2.0]]], [0]).tolist()
    [0.5]
    """
    z = finite("logits", logits, "T n C")
    two_classes("logits", z.shape[2])
    y = class_ids(labels, *z.shape[1:])
    rows = np.arange(len(y))
    total = np.zeros(len(y))
    # An epoch at a time: a copy of all logits may not fit.
    for epoch in z:
        others = epoch.copy()
        others[rows, y] = -np.inf
        total += epoch[rows, y] - others.max(axis=-1)
    return total / len(z)
