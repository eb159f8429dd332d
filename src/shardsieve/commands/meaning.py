"""What the sections of a recipe mean: settings, attacks, policies, names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError
from shardsieve.commands.asking import PREFIX, check_asked
from shardsieve.commands.building import USUAL_ON_SIGNALS
from shardsieve.commands.methods import ON_SIGNALS
from shardsieve.commands.sections import SEED_RUN, Recipe, Section
from shardsieve.policy.base import Policy
from shardsieve.policy.named import named_policy
from shardsieve.scores.recorded import computable, name_of
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.measures import SIGNALS

DECIDE_NOTHING = {"workers", "track", "max_unreadable", "checkpoint_steps"}
"""Settings that decide how a step runs, not what it makes."""
_NAMED_WHERE_USED: dict[str, Any] = dict.fromkeys(("pseudo_labels", "adversary", "turtle"))
_NAMED_WHERE_USED |= {"shuffle": "auto", "normalise": None}
"""Settings that earlier releases did not know, and what they are where they are not used.

Left out there, a chain of an earlier release is not made again.
"""


def settings(section: Section) -> TrainConfig:
    """Return the training settings of a section."""
    return TrainConfig(**{f.name: getattr(section, f.name) for f in fields(TrainConfig)})


def deciding(section: Section) -> dict[str, Any]:
    """Return the settings of a section that decide what its step makes, JSON-ready."""
    held = {name: getattr(section, name, usual) for name, usual in _NAMED_WHERE_USED.items()}
    unused = {name for name, value in held.items() if value == _NAMED_WHERE_USED[name]}
    return section.model_dump(mode="json", exclude=DECIDE_NOTHING | unused)


def adversary_of(section: Any) -> Adversary | None:
    """Return the attack that a section trains against."""
    if section.adversary is None:
        return None
    with blamed("adversary"):
        return Adversary(**section.adversary.model_dump())


def policy_of(recipe: Recipe) -> Policy | None:
    """Return the policy that the training section names."""
    train: Any = recipe.train
    if train is None or train.policy is None:
        return None
    shared = recipe.select.model_dump(include={"keep_fraction", "score"})
    return named_policy(train.policy, epochs=train.epochs, seed=train.seed, **shared)


def followed_by(policy: Policy | None) -> list[str]:
    """Return the names of the stored scores that a policy starts from or follows."""
    how = policy.settings() if policy is not None else {}
    return [how[name] for name in ("prior", "score") if how.get(name) is not None]


def given_by_method(recipe: Recipe) -> dict[str, Any]:
    """Return what the seed run is given beside its section, for the method that extrapolates."""
    extrapolate = recipe.extrapolate
    on_signals = extrapolate is not None and extrapolate.method in ON_SIGNALS
    return dict(USUAL_ON_SIGNALS) if on_signals else {}


def asked_of(recipe: Recipe) -> list[str]:
    """Return the names of the scores for which the seed run's networks are asked.

    Raises:
        ValueError: If a specification is wrong, or the networks are too few for it.
    """
    if recipe.ask is None:
        return []
    score: Any = recipe.score
    networks = given_by_method(recipe).get("snapshots", 1)
    networks = networks if score.snapshots is None else score.snapshots
    return [f"{PREFIX}_{name}" for name in check_asked(recipe.ask.scores, networks)]


def score_of(recipe: Recipe) -> str | None:
    """Return the score that samples are chosen by, None if there is none."""
    if recipe.select.score is not None:
        return recipe.select.score
    if recipe.extrapolate is not None:
        return recipe.extrapolate.score
    return next(iter(asked_of(recipe)), None)


def specs_of(score: Any) -> list[str]:
    """Return the names, without the run's, of the scores that a seed run makes."""
    return computable(SIGNALS) if score.scores is None else [name_of(one) for one in score.scores]


def made_scores(recipe: Recipe) -> set[str]:
    """Return the names of the scores that are made before anything is trained on what is kept."""
    seeds = recipe.score
    made = {f"{SEED_RUN}_{one}" for one in specs_of(seeds)} if seeds is not None else set()
    made |= set(asked_of(recipe))
    return made | ({recipe.extrapolate.score} if recipe.extrapolate is not None else set())


@contextmanager
def blamed(section: str | Path) -> Iterator[None]:
    """Put the name of a section, or of the file, before what is refused of it."""
    try:
        yield
    except (ValueError, ShardsieveError) as error:
        raise ValueError(f"{section}: {error}") from error
