"""By which rule samples were chosen, and whether its score is shown to beat chance."""

from typing import Any

from shardsieve.extrapolate.quality import doubt_of_score
from shardsieve.store.store import Store

Rule = dict[str, Any]
"""Arguments of `keep_set_of`."""


def rule_behind(store: Store, rule: Rule) -> Rule:
    """Return by which rule the samples were chosen: a stored keep set says it itself."""
    name = rule.get("keep_set")
    return rule if name is None else store.keep_provenance(name)


def doubt_of(store: Store, rule: Rule) -> str | None:
    """Return the warning about the score that a rule goes by, None where there is none."""
    score, keep_fraction = rule.get("score"), rule.get("keep_fraction")
    if rule.get("rule") == "random":  # of the score it asks no more than which samples have one
        return None
    if score is None or keep_fraction is None or score not in store.scores:
        return None
    return doubt_of_score(store.provenance(score), keep_fraction)
