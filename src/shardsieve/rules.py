"""The rules of `select`: which samples of a store survive, as rows in id order."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import MissingScoreError
from shardsieve.betadraw import beta_rows
from shardsieve.scores.embedded import finite_rows, moderate_distance
from shardsieve.scores.inputs import one_of
from shardsieve.selection import (
    check_floor,
    check_threshold,
    in_precision,
    known_labels,
    middle_rows,
    num_kept,
    random_rows,
    rows_above,
    top_rows,
)
from shardsieve.store.store import Store
from shardsieve.strata import BINS, ccs_rows, check_strata, class_balanced_rows

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]

# Options that belong to some rules only.
_OPTIONS = {
    "threshold": ("threshold",),
    "class_floor": ("stratified", "class_balanced"),
    "hard_cutoff": ("stratified", "ccs"),
    "difficulty": ("stratified", "ccs", "beta"),
    "bins": ("stratified", "ccs"),
    "embedding": ("moderate",),
}


@dataclass(frozen=True)
class Asked:
    """The arguments of `select`; see there."""

    keep_fraction: float | None = None
    score: str | None = None
    seed: int = 0
    threshold: float | None = None
    embedding: str | None = None
    drop_missing: bool = False
    class_floor: int = 0
    hard_cutoff: float | None = None
    difficulty: str | None = None
    bins: int | None = None


def chosen_rows(
    store: Store, rule: str, asked: Asked, progress: Callable[[int, int], None] | None = None
) -> Rows:
    """Return the kept rows, ascending; see `select`."""
    means = checked_rule(rule, asked)
    by_class = rule != "stratified" or asked.class_floor or (store.labels() >= 0).any()
    rule = means if by_class else "ccs"
    if rule == "threshold":
        return _above(store, asked)
    if asked.keep_fraction is None:
        raise ValueError(f"keep_fraction must be given for rule {rule!r}, got None")
    count = num_kept(len(store), asked.keep_fraction)
    sieved = asked.drop_missing or asked.hard_cutoff
    if asked.score is None and asked.keep_fraction == 1 and not sieved:
        return np.arange(len(store))
    if rule == "moderate":
        return _moderate(store, asked, count, progress)
    return _BY_FRACTION[rule](store, asked, count)


def checked_rule(rule: str, asked: Asked) -> str:
    """Return the rule, `stratified` replaced by the one it stands for.

    Raises:
        ValueError: If there is no such rule, or an option belongs to another one.
    """
    one_of("rule", rule, RULES)
    # A class floor of 0 asks for nothing; a hard cut-off of 0 asks for strata of the score.
    given = [n for n, v in asdict(asked).items() if v is not None and (n, v) != ("class_floor", 0)]
    for name, rules in _OPTIONS.items():
        if name in given and rule not in rules:
            raise ValueError(
                f"{name} must come with rule {' or '.join(rules)}, got rule {rule!r}; "
                "leave it out or change the rule"
            )
    _check_values(rule, asked)
    if rule != "stratified":
        return rule
    by_score = [name for name in ("hard_cutoff", "difficulty", "bins") if name in given]
    if by_score and "class_floor" in given:
        raise ValueError(
            f"class_floor must not come with {by_score[0]}, got both; a stratum is a class or a "
            "range of the score: use rule 'class_balanced' or 'ccs'"
        )
    return "ccs" if by_score else "class_balanced"


def _check_values(rule: str, asked: Asked) -> None:
    """Refuse what a rule would refuse of its options, whatever the store holds."""
    if rule == "threshold":
        if asked.threshold is None:
            raise ValueError("threshold must be given for rule 'threshold', got None")
        check_threshold(asked.threshold)
    if rule == "beta" and asked.difficulty is None:
        raise MissingScoreError(
            "difficulty must name the stored confidence for rule 'beta', got None; "
            "`shardsieve score` stores it as seed_confidence"
        )
    check_strata(asked.hard_cutoff or 0.0, BINS if asked.bins is None else asked.bins)
    check_floor(asked.class_floor)


def _above(store: Store, asked: Asked) -> Rows:
    assert asked.threshold is not None
    values, present = _scored(store, asked.score, asked.drop_missing)
    # A stored score of 0.7 is its float32, and less than 0.7.
    return present[rows_above(values, in_precision(asked.threshold, np.dtype(np.float32)))]


def _top(store: Store, asked: Asked, count: int) -> Rows:
    values, present = _scored(store, asked.score, asked.drop_missing, count)
    return present[top_rows(values, count)]


def is_blind(rule: str, drop_missing: bool) -> bool:
    """Return whether a rule draws from all samples, whatever score it is given."""
    return rule == "random" and not drop_missing


def _random(store: Store, asked: Asked, count: int) -> Rows:
    if is_blind("random", asked.drop_missing):
        return random_rows(len(store), count, asked.seed)
    present = _scored(store, asked.score, True, count)[1]
    return present[random_rows(len(present), count, asked.seed)]


def _class_balanced(store: Store, asked: Asked, count: int) -> Rows:
    values, present = _scored(store, asked.score, asked.drop_missing, count)
    labels = _labels(store, present)
    return present[class_balanced_rows(values, labels, count, class_floor=asked.class_floor)]


def _ccs(store: Store, asked: Asked, count: int) -> Rows:
    values, present = _scored(store, asked.score, asked.drop_missing, count)
    hardness = values
    if asked.difficulty is not None:
        known, rows = _scored(store, asked.difficulty, asked.drop_missing)
        # Nobody knows how hard the others are: they are cut before all that are known.
        table = np.full(len(store), np.inf)
        table[rows] = known
        hardness = table[present]
    cut, bins = asked.hard_cutoff or 0.0, BINS if asked.bins is None else asked.bins
    how: dict[str, Any] = {"hard_cutoff": cut, "bins": bins, "seed": asked.seed}
    return present[ccs_rows(values, hardness, count, **how)]


def _beta(store: Store, asked: Asked, count: int) -> Rows:
    values, present = _scored(store, asked.score, asked.drop_missing)
    assert asked.difficulty is not None
    # A stored score is oriented: the less confident, the higher.
    confidence = np.full(len(store), np.nan)
    known, rows = _scored(store, asked.difficulty, asked.drop_missing)
    confidence[rows] = -known
    both = np.isfinite(confidence[present])
    if count > both.sum():
        raise MissingScoreError(
            f"keep_fraction must not ask for more than the {both.sum()} samples with scores "
            f"{asked.score!r} and {asked.difficulty!r}, got {count}; keep less"
        )
    values, present = values[both], present[both]
    kept: Rows = present[beta_rows(values, confidence[present], count, seed=asked.seed)]
    return kept


def _moderate(
    store: Store, asked: Asked, count: int, progress: Callable[[int, int], None] | None
) -> Rows:
    points, present = _embedded(store, asked.embedding, asked.drop_missing, count)
    distances = moderate_distance(points, _labels(store, present), progress)
    return present[middle_rows(distances, count)]


_BY_FRACTION: Mapping[str, Callable[[Store, Asked, int], Rows]] = {
    "top": _top,
    "random": _random,
    "class_balanced": _class_balanced,
    "ccs": _ccs,
    "beta": _beta,
}
RULES = ("top", "random", "stratified", "class_balanced", "ccs", "beta", "moderate", "threshold")


def _scored(
    store: Store, name: str | None, drop_missing: bool, count: int = 0
) -> tuple[Doubles, Rows]:
    """Return the scores of the samples that have one, and their rows: `count` or more."""
    if name is None:
        known = ", ".join(store.scores) or "none yet"
        raise MissingScoreError(f"score must name a stored score ({known}), got None")
    values = store.score(name).astype(np.float64)
    scored = np.isfinite(values)
    present, missing = np.flatnonzero(scored), np.flatnonzero(~scored)
    if len(missing) and not drop_missing:
        raise MissingScoreError(
            f"score {name!r} must be finite, got {values[missing[0]]} for sample id "
            f"{store.ids()[missing[0]]} ({len(missing)} of {len(values)} are not scored); "
            "run `shardsieve extrapolate` first, or drop them with drop_missing"
        )
    if count > len(present):
        raise MissingScoreError(
            f"keep_fraction must not ask for more than the {len(present)} samples with a "
            f"score {name!r}, got {count}; keep less or extrapolate first"
        )
    return values[present], present


def _embedded(
    store: Store, name: str | None, drop_missing: bool, count: int
) -> tuple[NDArray[np.float16], Rows]:
    """Return the embeddings of the samples that have one, and their rows."""
    name = store.embedding_name(name)
    points, present = finite_rows(store.embedding(name))
    if len(present) < (count if drop_missing else len(store)):
        raise MissingScoreError(
            f"embedding {name!r} must be there for every sample, got {len(store) - len(present)} "
            f"of {len(store)} without; embed again, or keep less with drop_missing"
        )
    return points, present


def _labels(store: Store, rows: Rows) -> Rows:
    return known_labels(store.labels()[rows], len(rows))
