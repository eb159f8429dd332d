"""The configuration of `shardsieve run`: what each step is given, checked before any starts."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from shardsieve._errors import ShardsieveError
from shardsieve.commands.extrapolating import check_extrapolation
from shardsieve.commands.sections import SEED_RUN, Recipe, Section
from shardsieve.policy.base import Policy
from shardsieve.policy.named import make_policy
from shardsieve.rules import Asked, checked_rule
from shardsieve.scores.recorded import computable, name_of
from shardsieve.selection import num_kept
from shardsieve.store.store import Store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import check_encoder
from shardsieve.train.labels import check_test, count_classes, count_pseudo_classes
from shardsieve.train.launch import checked_precision, installed_trackers
from shardsieve.train.loading import check_augmenting
from shardsieve.train.measures import SIGNALS
from shardsieve.train.nets import check_model
from shardsieve.train.seedscores import check_specs
from shardsieve.train.splits import check_layout
from shardsieve.train.transforms import check_augment
from shardsieve.train.turtle import TurtleConfig

DECIDE_NOTHING = {"workers", "track", "max_unreadable", "checkpoint_steps"}
"""Settings that decide how a step runs, not what it makes."""
_NAMED_WHERE_USED = {"pseudo_labels", "adversary", "turtle"}
"""Settings that earlier releases did not know: left out, a chain of theirs is not made again."""


def read_recipe(path: Path) -> Recipe:
    """Return a recipe that was read and checked.

    Raises:
        ShardsieveError: If the file is missing, no YAML, or a key or value is wrong, naming it.
    """
    if not path.is_file():
        raise ShardsieveError(f"no configuration at {path}; check the path")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        first = " ".join(str(error).split())
        raise ShardsieveError(f"{path} must be YAML: {first}") from error
    if not isinstance(found, dict):
        raise ShardsieveError(f"{path} must be a mapping with the keys {', '.join(_keys(Recipe))}")
    try:
        recipe = Recipe(**found)
    except ValidationError as error:
        raise ShardsieveError(f"{path}: {_first(error)}") from error
    try:
        _check(recipe)
    except (ValueError, ShardsieveError) as error:
        raise ShardsieveError(f"{path}: {error}") from error
    return recipe


def settings(section: Section) -> TrainConfig:
    """Return the training settings of a section."""
    return TrainConfig(**{f.name: getattr(section, f.name) for f in fields(TrainConfig)})


def deciding(section: Section) -> dict[str, Any]:
    """Return the settings of a section that decide what its step makes, JSON-ready."""
    unused = {name for name in _NAMED_WHERE_USED if getattr(section, name, None) is None}
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
    select = recipe.select
    given = {"keep_fraction": select.keep_fraction, "score": select.score, **train.policy}
    return make_policy(**{"name": "", **given}, epochs=train.epochs, seed=train.seed)


def check_trainings(recipe: Recipe, store: Store, test: Store | None) -> None:
    """Refuse a training, also a later one, whose settings the shards or labels do not allow.

    Args:
        recipe: Of the chain.
        store: Of the training samples.
        test: Of the samples to evaluate on, if there are any.

    Raises:
        ValueError: If there is one, named by its section.
    """
    for name in ("score", "train"):
        section = getattr(recipe, name)
        if section is not None:
            with blamed(name):
                check_augmenting(store, settings(section))
                _check_labels(recipe, section, store)
    if test is not None and recipe.train is not None:
        with blamed("test"):
            check_test(test, None if recipe.train.pseudo_labels else count_classes(store))


@contextmanager
def blamed(section: str | Path) -> Iterator[None]:
    """Put the name of a section, or of the file, before what is refused of it."""
    try:
        yield
    except (ValueError, ShardsieveError) as error:
        raise ValueError(f"{section}: {error}") from error


def _check_labels(recipe: Recipe, section: Any, store: Store) -> None:
    turtle = recipe.score.turtle if recipe.score is not None else None
    if turtle is not None and section is recipe.score:
        count_pseudo_classes(store, turtle.classes)
    elif section.pseudo_labels is None:
        count_classes(store)
    elif turtle is None or section.pseudo_labels != SEED_RUN:  # which is not made yet
        store.pseudo_labels(section.pseudo_labels)


def _check(recipe: Recipe) -> None:
    """Refuse what would only come to light after hours."""
    _check_precisions(recipe)
    _check_networks(recipe)
    if recipe.extrapolate is not None:
        with blamed("extrapolate"):
            check_extrapolation(**recipe.extrapolate.model_dump(exclude={"score", "match", "seed"}))
    if recipe.embed is not None and recipe.embed.model is None and recipe.score is None:
        raise ValueError("embed must name a model, or come with score; add one")
    _check_unsupervised(recipe)
    if recipe.embed is not None and recipe.embed.model is not None:
        with blamed("embed"):
            check_encoder(recipe.embed.model)
    if recipe.extrapolate is not None and (recipe.score is None or recipe.embed is None):
        raise ValueError("extrapolate must come with score and embed; add them")
    _check_scored(recipe)
    _check_kept(recipe)


def _check_networks(recipe: Recipe) -> None:
    for name in ("score", "train"):
        section = getattr(recipe, name)
        if section is not None:
            with blamed(name):
                config = settings(section)
                check_model(config.model)
                check_augment(config.augment)
                adversary_of(section)
    with blamed("train"):
        policy_of(recipe)
        installed_trackers(recipe.train.track if recipe.train is not None else ())


def _check_unsupervised(recipe: Recipe) -> None:
    score: Any = recipe.score
    if score is None or score.turtle is None:
        return
    if recipe.embed is None or recipe.embed.model is None:
        raise ValueError("score: turtle must come with embed and its model; add them")
    used = {"turtle", "seeds", "per_class", "window", "scores", "seed"}
    unused = sorted(score.model_fields_set - used)
    if unused:
        raise ValueError(
            f"score: {', '.join(unused)} must come without turtle, which trains no network; "
            "its own settings stand under turtle"
        )
    with blamed("score: turtle"):
        TurtleConfig(**{**score.turtle.model_dump(), "classes": score.turtle.classes or 2})


def _check_precisions(recipe: Recipe) -> None:
    for name in ("score", "embed", "train"):
        section = getattr(recipe, name)
        if section is not None and getattr(section, "turtle", None) is None:
            with blamed(name):
                checked_precision(section.precision)


def _check_scored(recipe: Recipe) -> None:
    score, extrapolate = recipe.score, recipe.extrapolate
    if score is None:
        return
    laid_out = score.model_dump(include={"seeds", "held_out", "snapshots", "match_steps_of"})
    with blamed("score"):
        check_layout(**{name: value for name, value in laid_out.items() if value is not None})
    if score.match_steps_of is None:
        epochs = score.turtle.epochs if score.turtle is not None else score.epochs
        with blamed("score"):
            check_specs(epochs, score.window, score.scores)
    made = computable(SIGNALS) if score.scores is None else [name_of(one) for one in score.scores]
    if extrapolate is not None and extrapolate.score not in made:
        raise ValueError(
            f"extrapolate: score must be one that the seed run makes ({', '.join(made)}), "
            f"got {extrapolate.score!r}"
        )


def _check_kept(recipe: Recipe) -> None:
    select, train = recipe.select, recipe.train
    if train is not None and train.policy is None:
        with blamed("select"):
            num_kept(0, select.keep_fraction)
            checked_rule(select.rule, Asked(**select.model_dump(exclude={"rule"})))
        if train.policy_score is not None:
            raise ValueError("train: policy_score must come with a policy; add one")
    scored = select.score is not None or recipe.extrapolate is not None
    by_score = select.rule not in ("random", "moderate") and select.keep_fraction < 1
    if train is not None and policy_of(recipe) is None and by_score and not scored:
        raise ValueError(f"select: rule {select.rule} must have a score; add extrapolate or score")


def _first(error: ValidationError) -> str:
    """Return one line about the first thing that is wrong."""
    found = error.errors()[0]
    where = [str(part) for part in found["loc"]]
    name = ".".join(where)
    if found["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in where[:-1]:
            model = _section(model, part)
        near = difflib.get_close_matches(where[-1], _keys(model), n=1)
        cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(_keys(model))}"
        return f"{name} is no known key; {cure}"
    if found["type"] == "missing":
        return f"{name} must be given"
    return f"{name} must be right, got {found['input']!r}: {found['msg']}"


def _section(model: Any, name: str) -> Any:
    kind = model.model_fields[name].annotation
    parts = [kind, *getattr(kind, "__args__", ())]
    return next(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))


def _keys(model: Any) -> list[str]:
    return list(model.model_fields)
