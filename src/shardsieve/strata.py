"""Keep sets spread over strata: over classes, or over ranges of the score (CCS)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardsieve.order import is_whole, random_bits
from shardsieve.selection import Ids, class_quotas, finite_scores, known_labels, num_kept

BINS = 50  # of the paper
_MOST_BINS = 1_000_000
_DRAW = 0xCC5


def keep_stratified(
    scores: ArrayLike,
    labels: ArrayLike | None = None,
    keep_fraction: float | None = None,
    *,
    class_floor: int = 0,
    hard_cutoff: float | None = None,
    difficulty: ArrayLike | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> Ids:
    """Return rows spread over strata, ascending: over classes with labels, else over scores.

    "Stratified" means two things in the literature, and this is the one door to both: with
    labels it is `keep_class_balanced` (the best of every class), without labels it is `keep_ccs`
    (a draw from every range of the score).

    Args:
        scores: Shape (n,), finite.
        labels: Shape (n,), integers at least 0; None stratifies by score, and so does leaving them
            out: `keep_stratified(scores, 0.5)`.
        keep_fraction: In `(0, 1]`.
        class_floor: See `keep_class_balanced`; needs labels.
        hard_cutoff: See `keep_ccs`; needs labels=None, like the next two.
        difficulty: See there.
        bins: See there.
        seed: See there; with labels nothing is drawn.

    Raises:
        MissingScoreError: If a score or label is missing.
        ValueError: If an argument is out of range or belongs to the other kind of strata.

    >>> keep_stratified([9, 8, 7, 1, 0, 2], [0, 0, 0, 0, 1, 1], 0.5)
    array([0, 1, 5])
    >>> keep_stratified([9, 8, 7, 1, 0, 2], keep_fraction=0.5, bins=2, hard_cutoff=0.2)
    array([1, 3, 4])
    """
    if keep_fraction is None and labels is not None and np.ndim(labels) == 0:
        labels, keep_fraction = None, float(np.asarray(labels))
    if keep_fraction is None:
        raise ValueError("keep_fraction must be given, got None; 0.5 keeps half of the samples")
    if labels is None:
        if class_floor:
            raise ValueError(f"class_floor must come with labels, got {class_floor} and no labels")
        return keep_ccs(
            scores,
            keep_fraction,
            hard_cutoff=hard_cutoff or 0.0,
            difficulty=difficulty,
            bins=bins,
            seed=seed,
        )
    if hard_cutoff is not None or difficulty is not None or bins != BINS:
        raise ValueError(
            "hard_cutoff, difficulty and bins must come without labels, got labels; "
            "they belong to strata of scores: pass labels=None"
        )
    return keep_class_balanced(scores, labels, keep_fraction, class_floor=class_floor)


def keep_class_balanced(
    scores: ArrayLike, labels: ArrayLike, keep_fraction: float, *, class_floor: int = 0
) -> Ids:
    """Return the highest-scoring rows of every class, ascending; the total is exact.

    Each class gets its share of the total, see `class_quotas`, so that the total is exactly
    `num_kept(n, keep_fraction)`. Ties within a class go to the lower row.

    Args:
        scores: Shape (n,), finite.
        labels: Shape (n,), integers at least 0; a negative one means missing and is refused.
        keep_fraction: In `(0, 1]`.
        class_floor: The fewest samples that a class keeps; all of a smaller class.

    Raises:
        MissingScoreError: If a score or label is missing.
        ValueError: If the floors add up to more than is kept.

    >>> keep_class_balanced([9, 8, 7, 6, 5, 1], [0, 0, 0, 0, 0, 1], 1 / 3, class_floor=1)
    array([0, 5])
    """
    values = finite_scores(scores)
    classes = known_labels(labels, len(values))
    count = num_kept(len(values), keep_fraction)
    return class_balanced_rows(values, classes, count, class_floor=class_floor)


def keep_ccs(
    scores: ArrayLike,
    keep_fraction: float,
    *,
    hard_cutoff: float = 0.0,
    difficulty: ArrayLike | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> Ids:
    """Return a draw from every range of the score without the hardest rows, ascending.

    Coverage-centric selection, Zheng et al., ICLR 2023, arXiv 2210.15809: drop the hardest
    `hard_cutoff` of all rows (mislabelled ones gather there), cut the range of the scores that are
    left into bins of equal width, give every bin the same budget, smaller bins all they have, and
    draw uniformly within a bin. The total is exact.

    Args:
        scores: Shape (n,), finite, of any sign.
        keep_fraction: In `(0, 1]`, of all n rows; at most what the cut leaves.
        hard_cutoff: Share of the n rows to drop first, in `[0, 1)`: beta of the paper, which uses
            0.3 on CIFAR-10 and 0.2 on ImageNet when little is kept.
        difficulty: Shape (n,), finite, high is hard: what the cut goes by, such as the stored
            `aum` (oriented). The scores themselves by default. Of equals the higher row goes.
        bins: At least 1; the paper uses 50.
        seed: Of the draw.

    Raises:
        MissingScoreError: If a score is NaN or infinite.
        ValueError: If an argument is out of range, or the cut leaves too few rows.

    >>> keep_ccs([0.0, 0.0, 0.0, 0.0, -1.0, 1.0], 0.5, bins=3)
    array([3, 4, 5])
    """
    values = finite_scores(scores)
    hardness = values if difficulty is None else finite_scores(difficulty, "difficulty")
    if hardness.shape != values.shape:
        raise ValueError(
            f"difficulty must have the shape of scores, {values.shape}, got {hardness.shape}"
        )
    count = num_kept(len(values), keep_fraction)
    return ccs_rows(values, hardness, count, hard_cutoff=hard_cutoff, bins=bins, seed=seed)


def class_balanced_rows(
    values: NDArray[np.float64], classes: Ids, count: int, *, class_floor: int = 0
) -> Ids:
    """Return `count` rows; see `keep_class_balanced`."""
    _, rows_class, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    quotas = class_quotas(sizes, count, class_floor)
    # The best of every class stand together, and of equals the lower row first: as in `top_rows`.
    order = np.lexsort((-values, rows_class))
    return np.sort(order[_first_of_each(sizes, quotas)]).astype(np.int64)


def check_strata(hard_cutoff: float, bins: int) -> None:
    """Refuse a cut or a number of bins that `keep_ccs` could not go by."""
    _check_cutoff(hard_cutoff)
    if not is_whole(bins) or bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins!r}; the paper uses 50")
    if bins > _MOST_BINS:
        raise ValueError(f"bins must be at most {_MOST_BINS}, got {bins}; the paper uses 50")


def ccs_rows(
    values: NDArray[np.float64],
    hardness: NDArray[np.float64],
    count: int,
    *,
    hard_cutoff: float = 0.0,
    bins: int = BINS,
    seed: int = 0,
) -> Ids:
    """Return `count` rows; see `keep_ccs`."""
    check_strata(hard_cutoff, bins)
    left = without_hardest(hardness, hard_cutoff)
    if count > len(left):
        raise ValueError(
            f"keep_fraction must be at most what hard_cutoff={hard_cutoff} leaves, got {count} to "
            f"keep of {len(left)} left; cut or keep less"
        )
    bin_of = _bins(values[left], bins)
    sizes = np.bincount(bin_of, minlength=bins)
    # The lowest lots of a bin are its draw.
    order = np.lexsort((random_bits(len(values), seed, _DRAW)[left], bin_of))
    kept = order[_first_of_each(sizes, _budgets(sizes, count))]
    return np.sort(left[kept]).astype(np.int64)


def _first_of_each(sizes: Ids, counts: Ids) -> NDArray[np.bool_]:
    """Return which places of groups that stand in a row are among the first `counts` of theirs."""
    place = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.asarray(place < np.repeat(counts, sizes))


def without_hardest(hardness: NDArray[np.float64], share: float) -> Ids:
    """Return the rows that a cut of the hardest `share` leaves, ascending; of equals the higher go.

    Raises:
        ValueError: If the share lies outside `[0, 1)`.

    >>> without_hardest(np.array([0.0, 2.0, 1.0, 2.0]), 0.25)
    array([0, 1, 2])
    """
    _check_cutoff(share)
    cut = num_kept(len(hardness), share) if share else 0
    return np.sort(np.argsort(hardness, kind="stable")[: len(hardness) - cut])


def _check_cutoff(share: float) -> None:
    if isinstance(share, (bool, str)) or not 0 <= share < 1:
        raise ValueError(f"hard_cutoff must lie in [0, 1), got {share!r}; 0 cuts nothing")


def _bins(values: NDArray[np.float64], bins: int) -> Ids:
    """Return the bin of every value; the top bin holds the maximum, equal values share bin 0."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    low, high = float(values.min()), float(values.max())
    # A range that overflows is halved; multiplying before dividing keeps whole edges exact.
    scale = 1.0 if np.isfinite((high - low) * bins) else 0.25 / bins
    above = values * scale - low * scale
    span = high * scale - low * scale
    if not span > 0:
        return np.zeros(len(values), dtype=np.int64)
    return np.minimum((above * bins / span).astype(np.int64), bins - 1)


def _budgets(sizes: NDArray[np.int64], count: int) -> Ids:
    """Return how many each bin gives: the same, smaller bins all they have; sums to `count`."""
    budgets, left = np.zeros_like(sizes), count
    for place, one in enumerate(np.argsort(sizes, kind="stable").tolist()):
        budgets[one] = min(int(sizes[one]), left // (len(sizes) - place))
        left -= int(budgets[one])
    return budgets
