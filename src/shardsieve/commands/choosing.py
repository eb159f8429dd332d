"""What a rule keeps, and by which rule samples were chosen."""

from typing import Any

from shardsieve.keepset import KeepSet, keep_set_of, selected
from shardsieve.store.store import Store

Rule = dict[str, Any]
"""Arguments of `keep_set_of`."""


def kept_by(store: Store, rule: Rule, **more: Any) -> KeepSet:
    """Return what a rule keeps; a doubt about its score is for the result to tell, once."""
    if rule.get("keep_set") is not None:
        return keep_set_of(store, **rule, **more)
    return selected(store, **{k: v for k, v in rule.items() if k != "keep_set"}, **more)


def rule_behind(store: Store, rule: Rule) -> Rule:
    """Return by which rule the samples were chosen: a stored keep set says it itself."""
    name = rule.get("keep_set")
    return rule if name is None else store.keep_provenance(name)
