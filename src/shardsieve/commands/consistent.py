"""Checks of a recipe by itself, before anything is read."""

from typing import Any

from shardsieve.commands.extrapolating import check_extrapolation
from shardsieve.commands.meaning import (
    adversary_of,
    asked_of,
    blamed,
    made_scores,
    policy_of,
    score_of,
    settings,
    specs_of,
)
from shardsieve.commands.methods import ON_SIGNALS, ONLY_WITH
from shardsieve.commands.sections import Recipe
from shardsieve.rules import Asked, checked_rule
from shardsieve.selection import check_fraction
from shardsieve.store.layout import checked_name
from shardsieve.train.config import check_count, check_pass, check_seed
from shardsieve.train.encoder import check_encoder
from shardsieve.train.launch import checked_precision, installed_trackers
from shardsieve.train.nets import check_model
from shardsieve.train.seedscores import check_specs
from shardsieve.train.splits import check_layout
from shardsieve.train.transforms import check_augment
from shardsieve.train.turtle import TurtleConfig


def check_recipe(recipe: Recipe) -> None:
    """Refuse what would only come to light after hours."""
    _check_precisions(recipe)
    _check_networks(recipe)
    if recipe.extrapolate is not None:
        with blamed("extrapolate"):
            _check_extrapolate(recipe, recipe.extrapolate)
    if recipe.embed is not None:
        with blamed("embed"):
            check_pass(**recipe.embed.model_dump(exclude={"model", "weights"}))
            for name in ("weights", "normalise"):
                if getattr(recipe.embed, name) is not None and recipe.embed.model is None:
                    raise ValueError(f"{name} must come with the model that needs it; add it")
    if recipe.embed is not None and recipe.embed.model is None and recipe.score is None:
        raise ValueError("embed must name a model, or come with score; add one")
    _check_unsupervised(recipe)
    if recipe.embed is not None and recipe.embed.model is not None:
        with blamed("embed"):
            check_encoder(recipe.embed.model)
    if recipe.extrapolate is not None and (recipe.score is None or recipe.embed is None):
        raise ValueError("extrapolate must come with score and embed; add them")
    _check_asked(recipe)
    _check_scored(recipe)
    _check_kept(recipe)


def _check_asked(recipe: Recipe) -> None:
    if recipe.ask is None:
        return
    score: Any = recipe.score
    if score is None or recipe.embed is None or recipe.embed.model is not None or score.turtle:
        raise ValueError(
            "ask must come with score and embed, and without embed.model and score.turtle: it asks "
            "the seed run's networks; add or leave them out"
        )
    if not recipe.ask.scores:
        raise ValueError("ask: scores must name a score, got []; leave it out for el2n")
    with blamed("ask"):
        asked_of(recipe)


def _check_extrapolate(recipe: Recipe, section: Any) -> None:
    check_extrapolation(**section.model_dump(exclude={"score", "match", "seed"}))
    check_seed(section.seed)
    for method, names in ONLY_WITH.items():
        unused = [name for name in names if getattr(section, name) != _usual(section, name)]
        if unused and section.method != method:
            raise ValueError(
                f"{', '.join(unused)} must come with method {method}, got {section.method!r}"
            )
    score: Any = recipe.score
    if score is None or section.method not in ON_SIGNALS:
        return
    if score.held_out == 0 or score.turtle is not None:
        raise ValueError(
            f"method {section.method} learns from seeds held out of a network's training; "
            "leave out score.held_out and score.turtle, or use method knn"
        )
    if recipe.embed is not None and recipe.embed.model is not None:
        raise ValueError(
            f"method {section.method} asks the seed run's networks; leave out embed.model, "
            "or use method knn"
        )


def _usual(section: Any, name: str) -> Any:
    return type(section).model_fields[name].default


def _check_networks(recipe: Recipe) -> None:
    for name in ("score", "train"):
        section = getattr(recipe, name)
        if section is not None:
            with blamed(name):
                config = settings(section)
                check_model(config.model)
                check_augment(config.augment)
                adversary_of(section)
                for often in {"checkpoint_steps", "evaluate_every"} & set(
                    type(section).model_fields
                ):
                    check_count(often, getattr(section, often), 0)
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
        TurtleConfig(
            **{
                **score.turtle.model_dump(),
                "classes": 2 if score.turtle.classes is None else score.turtle.classes,
            }
        )


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
    if score.scores == []:
        raise ValueError("score: scores must name a score, got []; leave it out for all")
    epochs = score.turtle.epochs if score.turtle is not None else score.epochs
    with blamed("score"):
        matched = score.match_steps_of
        check_specs(epochs, score.window, score.scores, match_steps_of=matched)
    made = specs_of(score)
    if extrapolate is not None and extrapolate.score not in made:
        raise ValueError(
            f"extrapolate: score must be one that the seed run makes ({', '.join(made)}), "
            f"got {extrapolate.score!r}"
        )


def _check_kept(recipe: Recipe) -> None:
    select, train = recipe.select, recipe.train
    with blamed("select"):
        check_fraction(select.keep_fraction)
        checked_rule(select.rule, Asked(**select.model_dump(exclude={"rule"})))
    if train is not None:
        with blamed("train"):
            _check_policy(recipe, train)
            if train.evaluate_every and recipe.test is None:
                raise ValueError("evaluate_every must come with a section test, got none; add one")
    scored = score_of(recipe) is not None
    by_score = select.rule not in ("random", "moderate") and select.keep_fraction < 1
    if train is not None and policy_of(recipe) is None and by_score and not scored:
        raise ValueError(
            f"select: rule {select.rule} must have a score; add extrapolate or ask, or to "
            "select a stored score, rule random, or keep_fraction 1 to train on everything"
        )
    if recipe.report is not None and not scored:
        raise ValueError(
            "report must have a score to show; add extrapolate or ask, or score to select"
        )


def _check_policy(recipe: Recipe, train: Any) -> None:
    policy, select, learned = policy_of(recipe), recipe.select, train.policy_score
    if policy is None:
        if learned is not None:
            raise ValueError("policy_score must come with a policy; add one")
        return
    rule = [name for name in type(select).model_fields if name not in ("keep_fraction", "score")]
    unused = [name for name in rule if getattr(select, name) != _usual(select, name)]
    if unused:
        raise ValueError(
            f"policy must come without {', '.join(unused)} of select, got both; "
            "a policy chooses by itself"
        )
    if learned is None:
        return
    checked_name(learned)
    policy.check_learns()
    if learned in made_scores(recipe):
        raise ValueError(
            f"policy_score must not be a score of an earlier step, got {learned!r}; choose another "
            "name"
        )
