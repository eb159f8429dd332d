"""Policies by name, as the command line and configuration files give them."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

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
_KINDS: dict[type, str] = {
    bool: "true or false",
    str: "a name",
    float: "a number",
    int: "a whole number",
}
_TAKEN: dict[type, Any] = {str: str, float: (int, float), int: int}


def checked_policy(name: str) -> str:
    """Return the name of a policy.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}, got {name!r}")
    return name


def takes(name: str, shared: str) -> bool:
    """Return whether a policy looks at a run's `keep_fraction` or `score`."""
    return _own_name(name, shared) in inspect.signature(_class(name)).parameters


def named_policy(
    given: Mapping[str, Any],
    *,
    epochs: int,
    seed: int = 0,
    keep_fraction: float | None = None,
    score: str | None = None,
) -> "Policy":
    """Return the policy that a mapping names; see `make_policy`.

    Args:
        given: Its `name`, and further arguments of `make_policy`.
        epochs: See there.
        seed: See there.
        keep_fraction: See there; of the run's rule, unless `given` has its own.
        score: Likewise.

    Raises:
        ValueError: As `make_policy`; also for `epochs` and `seed`, which are the run's.
    """
    constants = {"keep_fraction": keep_fraction, "score": score, **given}
    name = checked_policy(constants.pop("name", ""))
    for key in constants:
        if key in ("epochs", "seed"):
            raise _unknown(name, key)
    return make_policy(name, epochs=epochs, seed=seed, **constants)


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
    given: dict[str, Any] = {"num_epochs": epochs, "seed": seed, "first": 1.0}
    given[_own_name(name, "score")] = score
    given[_own_name(name, "keep_fraction")] = keep_fraction
    asked = inspect.signature(_class(name)).parameters
    for key in constants:
        if key not in _constants_of(name):
            raise _unknown(name, key)
    given = {k: v for k, v in {**given, **constants}.items() if k in asked and v is not None}
    for key, value in given.items():
        _check_kind(name, key, value, asked[key].annotation)
    missing = [
        k for k, p in asked.items() if p.default is inspect.Parameter.empty and k not in given
    ]
    if missing:
        raise ValueError(f"{name} must be given {missing[0]}, got none")
    return _class(name)(**given)


def _own_name(name: str, shared: str) -> str:
    """Return what a policy calls a run's `keep_fraction` or `score`, if it takes it."""
    if name == "annealed":
        return {"score": "score", "keep_fraction": "last"}[shared]
    return {"score": "prior", "keep_fraction": "keep_fraction"}[shared]


def _class(name: str) -> "type[Policy]":
    found: type[Policy] = getattr(policy, POLICIES[name])
    return found


def _constants_of(name: str) -> list[str]:
    return [k for k in inspect.signature(_class(name)).parameters if k not in _FROM_RUN]


def _unknown(name: str, key: str) -> ValueError:
    return ValueError(f"{name} must be given {', '.join(_constants_of(name))}, got {key!r}")


def _check_kind(name: str, key: str, value: Any, annotation: Any) -> None:
    """Refuse a truth value, a number or a text where another of them is asked for."""
    kinds = get_args(annotation) or (annotation,)
    wanted = next(kind for kind in _KINDS if kind in kinds)
    fits = isinstance(value, bool) if wanted is bool else isinstance(value, _TAKEN[wanted])
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{key} of {name} must be {_KINDS[wanted]}, got {value!r}")
