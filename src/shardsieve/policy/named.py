"""Policies by name, as the command line and configuration files give them."""

import inspect
from typing import TYPE_CHECKING, Any

from shardsieve import policy

if TYPE_CHECKING:
    from shardsieve.policy.base import Policy

POLICIES = {
    "annealed": "AnnealedScore",
    "epsilon-greedy": "EpsilonGreedy",
    "infobatch": "InfoBatch",
    "random-dynamic": "RandomDynamic",
    "seta": "SeTa",
    "ucb": "UCB",
}
"""Classes of this package by name."""
# What a run knows and a policy is told when it asks for it.
_FROM_RUN = ("num_epochs", "seed")


def checked_policy(name: str) -> str:
    """Return the name of a policy.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}, got {name!r}")
    return name


def keeps_a_fraction(name: str) -> bool:
    """Return whether a policy is told what fraction to keep; the others' constants decide it."""
    return name == "annealed" or "keep_fraction" in inspect.signature(_class(name)).parameters


def make_policy(
    name: str,
    *,
    epochs: int,
    seed: int = 0,
    keep_fraction: float | None = None,
    score: str | None = None,
    **constants: Any,
) -> "Policy":
    """Return the policy of a run.

    Args:
        name: One of `POLICIES`.
        epochs: Of the run; a schedule of another length is refused.
        seed: Of its draws.
        keep_fraction: For policies that have one; `annealed` ends there, and begins at 1.
        score: Stored score: what `annealed` follows, and what the others start from (`prior`).
        **constants: Of the policy's constructor.

    Raises:
        ValueError: If name or a constant is unknown, listing those there are, or out of range.
    """
    checked_policy(name)
    known = [k for k in inspect.signature(_class(name)).parameters if k not in _FROM_RUN]
    given: dict[str, Any] = {"num_epochs": epochs, "seed": seed}
    if name == "annealed":
        given |= {"score": score, "first": 1.0, "last": keep_fraction}
    else:
        given |= {"prior": score, "keep_fraction": keep_fraction}
    for key in constants:
        if key not in known:
            raise ValueError(f"{name} must be given {', '.join(known)}, got {key!r}")
    asked = inspect.signature(_class(name)).parameters
    given = {k: v for k, v in {**given, **constants}.items() if k in asked and v is not None}
    missing = [
        k for k, p in asked.items() if p.default is inspect.Parameter.empty and k not in given
    ]
    if missing:
        raise ValueError(f"{name} must be given {missing[0]}, got none")
    try:
        return _class(name)(**given)
    except TypeError as error:
        raise ValueError(f"a constant of {name} must be a number: {error}") from error


def _class(name: str) -> "type[Policy]":
    found: type[Policy] = getattr(policy, POLICIES[name])
    return found
