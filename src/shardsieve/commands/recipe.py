"""The configuration of `shardsieve run`: what each step is given, checked before any starts."""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from shardsieve._errors import ShardsieveError
from shardsieve.commands.extrapolating import check_extrapolation
from shardsieve.policy.base import Policy
from shardsieve.policy.named import make_policy
from shardsieve.rules import Asked, checked_rule
from shardsieve.scores.recorded import computable, name_of
from shardsieve.selection import num_kept
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import DEFAULT_TRACKERS, checked_precision, installed_trackers
from shardsieve.train.measures import SIGNALS
from shardsieve.train.nets import check_model
from shardsieve.train.seedscores import check_specs

DECIDE_NOTHING = {"workers", "track", "max_unreadable", "checkpoint_steps"}
"""Settings that decide how a step runs, not what it makes."""


class Section(BaseModel):
    """Part of a recipe; a key it does not know is refused."""

    model_config = ConfigDict(extra="forbid")


_TRAINING: dict[str, Any] = {f.name: (f.type, f.default) for f in fields(TrainConfig)}
Training: type[Section] = create_model("Training", __base__=Section, **_TRAINING)
"""A section with every setting of `TrainConfig`."""


class Shards(Section):
    """Shards and their store; `urls`, as in `shardsieve index`, may be left out of a made one."""

    store: Path
    urls: str | list[str] | None = None
    label_member: str = "cls"


class Score(Training):  # type: ignore[misc,valid-type]
    """The seed run: its share of the samples, and its settings, as in `shardsieve score`."""

    seeds: float = 0.2
    per_class: bool = False
    window: int = 10
    scores: list[str] | None = None
    clean_pass: bool = False
    held_out: float | None = None
    snapshots: int | None = None
    match_steps_of: int | None = None
    ceiling: bool = False
    checkpoint_steps: int = 0


class Embed(Section):
    """The pass over everything; without `model` it uses the seed run's network."""

    model: str | None = None
    weights: Path | None = None
    size: int | None = None
    channels: int | None = None
    batch_size: int = 256
    max_unreadable: int = 0
    workers: int = 0
    precision: str = "no"


class Extrapolate(Section):
    """Which seed score is predicted for the rest, and how, as in `shardsieve extrapolate`."""

    score: str = "dyn_unc"
    method: str = "knn"
    k: int | Literal["auto"] = 50
    weights: str = "exp"
    search: str = "auto"
    min_recall: float = 0.99
    layer: str = "gcn"
    graph: str = "all"
    labels: bool = False
    folds: int = 5
    match: bool | None = None
    seed_scores: str = "measured"
    seed: int = 0


class Select(Section):
    """What is kept, as in `shardsieve select`; the extrapolated score unless told otherwise."""

    keep_fraction: float = 0.5
    rule: str = "top"
    score: str | None = None
    threshold: float | None = None
    class_floor: int = 0
    hard_cutoff: float | None = None
    difficulty: str | None = None
    bins: int | None = None
    embedding: str | None = None
    drop_missing: bool = False


class Train(Training):  # type: ignore[misc,valid-type]
    """The training on what is kept, as in `shardsieve train`; a policy has `name` and constants."""

    policy: dict[str, Any] | None = None
    policy_score: str | None = None
    full_run: Path | None = None
    evaluate_every: int = 0
    checkpoint_steps: int = 0
    track: tuple[str, ...] = DEFAULT_TRACKERS


class Report(Section):
    """The page about the score; `out` lies in the work folder unless it is absolute."""

    out: Path = Path("report.html")


class Recipe(Section):
    """A whole chain. Steps whose section is left out are not made.

    Attributes:
        work: Folder of the runs and of what is known about finished steps.
        data: The training samples.
        test: The samples to evaluate on.
    """

    work: Path
    data: Shards
    test: Shards | None = None
    score: Score | None = None
    embed: Embed | None = None
    extrapolate: Extrapolate | None = None
    select: Select = Select()
    train: Train | None = None
    report: Report | None = None


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
    return section.model_dump(mode="json", exclude=DECIDE_NOTHING)


def policy_of(recipe: Recipe) -> Policy | None:
    """Return the policy that the training section names."""
    train: Any = recipe.train
    if train is None or train.policy is None:
        return None
    select = recipe.select
    given = {"keep_fraction": select.keep_fraction, "score": select.score, **train.policy}
    return make_policy(**{"name": "", **given}, epochs=train.epochs, seed=train.seed)


def _check(recipe: Recipe) -> None:
    """Refuse what would only come to light after hours."""
    _check_precisions(recipe)
    for name in ("score", "train"):
        section = getattr(recipe, name)
        try:
            if section is not None:
                check_model(settings(section).model)
            if name == "train":
                policy_of(recipe)
                installed_trackers(section.track if section is not None else ())
        except (ValueError, ShardsieveError) as error:
            raise ValueError(f"{name}: {error}") from error
    if recipe.extrapolate is not None:
        try:
            check_extrapolation(**recipe.extrapolate.model_dump(exclude={"score", "match", "seed"}))
        except ValueError as error:
            raise ValueError(f"extrapolate: {error}") from error
    if recipe.embed is not None and recipe.embed.model is None and recipe.score is None:
        raise ValueError("embed must name a model, or come with score; add one")
    if recipe.extrapolate is not None and (recipe.score is None or recipe.embed is None):
        raise ValueError("extrapolate must come with score and embed; add them")
    _check_scored(recipe)
    _check_kept(recipe)


def _check_precisions(recipe: Recipe) -> None:
    for name in ("score", "embed", "train"):
        section = getattr(recipe, name)
        if section is None:
            continue
        try:
            checked_precision(section.precision)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _check_scored(recipe: Recipe) -> None:
    score, extrapolate = recipe.score, recipe.extrapolate
    if score is None:
        return
    if score.match_steps_of is None:
        try:
            check_specs(score.epochs, score.window, score.scores)
        except ValueError as error:
            raise ValueError(f"score: {error}") from error
    made = computable(SIGNALS) if score.scores is None else [name_of(one) for one in score.scores]
    if extrapolate is not None and extrapolate.score not in made:
        raise ValueError(
            f"extrapolate: score must be one that the seed run makes ({', '.join(made)}), "
            f"got {extrapolate.score!r}"
        )


def _check_kept(recipe: Recipe) -> None:
    select, train = recipe.select, recipe.train
    if train is not None and train.policy is None:
        try:
            num_kept(0, select.keep_fraction)
            checked_rule(select.rule, Asked(**select.model_dump(exclude={"rule"})))
        except ValueError as error:
            raise ValueError(f"select: {error}") from error
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
