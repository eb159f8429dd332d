"""The configuration of `shardsieve run`: what each step is given, checked before any starts."""

import difflib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from shardsieve._errors import ShardsieveError
from shardsieve.commands.building import USUAL_ON_SIGNALS
from shardsieve.commands.extrapolating import check_extrapolation, refuse_other_prediction
from shardsieve.commands.methods import ON_SIGNALS, ONLY_WITH
from shardsieve.commands.sections import EMBEDDING, SEED_RUN, Recipe, Section
from shardsieve.commands.texts import shortened, yaml_of
from shardsieve.keepset import KeepSet
from shardsieve.policy.base import Policy
from shardsieve.policy.named import named_policy
from shardsieve.rules import Asked, checked_rule
from shardsieve.scores.recorded import computable, name_of
from shardsieve.selection import num_kept
from shardsieve.store.layout import checked_name
from shardsieve.store.store import Store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig, check_count, check_pass, check_seed
from shardsieve.train.encoder import check_encoder
from shardsieve.train.labels import check_test, count_classes, count_pseudo_classes
from shardsieve.train.launch import checked_precision, installed_trackers
from shardsieve.train.loading import check_augmenting
from shardsieve.train.measures import SIGNALS
from shardsieve.train.nets import check_model
from shardsieve.train.seeding import draw_seeds
from shardsieve.train.seedscores import check_specs
from shardsieve.train.splits import check_layout, hold_out, spread
from shardsieve.train.transforms import check_augment
from shardsieve.train.turtle import TurtleConfig

DECIDE_NOTHING = {"workers", "track", "max_unreadable", "checkpoint_steps"}
"""Settings that decide how a step runs, not what it makes."""
_NAMED_WHERE_USED = {"pseudo_labels", "adversary", "turtle"}
"""Settings that earlier releases did not know: left out, a chain of theirs is not made again."""

# What pydantic names a value's place by, if it may be of several types.
_BRANCHES = {"str", "int", "list[str]", "[key]"}
_PLAINLY = {
    "model_type": "it should be a mapping of keys",
    "dict_type": "it should be a mapping of keys",
    "path_type": "it should be a path",
    "tuple_type": "it should be a list",
    "list_type": "it should be a list",
}


def read_recipe(path: Path) -> Recipe:
    """Return a recipe that was read and checked.

    Raises:
        ShardsieveError: If the file is missing, no YAML, or a key or value is wrong, naming it.
    """
    if not path.is_file():
        raise ShardsieveError(f"no configuration at {path}; check the path")
    try:
        found = yaml_of(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ShardsieveError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ShardsieveError(f"{path} must be text in UTF-8: {error}; save it as such") from error
    except ValueError as error:
        raise ShardsieveError(f"{path} must be YAML: {error}") from error
    if not isinstance(found, dict):
        raise ShardsieveError(f"{path} must be a mapping with the keys {', '.join(_keys(Recipe))}")
    try:
        recipe = Recipe.model_validate(found)
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
    return named_policy(given, epochs=train.epochs, seed=train.seed)


def check_trainings(
    recipe: Recipe, store: Store, test: Store | None, *, made: Collection[str] = ()
) -> None:
    """Refuse a step, also a later one, whose settings the shards, labels or scores do not allow.

    Args:
        recipe: Of the chain.
        store: Of the training samples.
        test: Of the samples to evaluate on, if there are any.
        made: What the chain made of predicted and learned scores before, and replaces:
            `score/NAME`.

    Raises:
        ValueError: If there is one, named by its section.
    """
    for name in ("score", "train"):
        section = getattr(recipe, name)
        if section is not None:
            with blamed(name):
                check_augmenting(store, settings(section))
                _check_labels(recipe, section, store)
    if recipe.extrapolate is not None and f"score/{recipe.extrapolate.score}" not in made:
        with blamed("extrapolate"):
            _check_predicted(recipe.extrapolate, store)
            _check_foreign(recipe, store)
            _check_folds(recipe, store)
    policy = policy_of(recipe)
    if policy is not None and recipe.train is not None and recipe.train.policy_score is not None:
        learned = recipe.train.policy_score
        with blamed("train"):
            if f"score/{learned}" not in made:
                policy.check_score(store, learned)
    if recipe.train is not None or recipe.report is not None:
        with blamed("select"):
            _check_chosen_by(recipe, store)
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


def _check_predicted(section: Any, store: Store) -> None:
    """Refuse to predict a score under the name of a user's own, or of another prediction."""
    name, how = section.score, section.model_dump(exclude={"score", "folds", "match"})
    how["source"] = f"{SEED_RUN}_{name}"
    if how["k"] == "auto":
        del how["k"]
    refuse_other_prediction(store, name, how)
    if store.has_score(name) and store.provenance(name)["definition"] == "user":
        raise ValueError(
            f"score {name!r} of {store.path} was put there by a user; put it under another name "
            "and delete it, or predict another score"
        )


def _check_foreign(recipe: Recipe, store: Store) -> None:
    """Refuse a prediction over another embedding, which would be so after training and embedding.

    One that another chain made of the same seed run is made again, and comes out the same.
    """
    name = recipe.extrapolate.score if recipe.extrapolate is not None else ""
    old = store.provenance(name) if store.has_score(name) else {}
    if "embedding" not in old:
        return
    other = None
    if not old["embedding"].startswith(EMBEDDING):
        other = f"over embedding {old['embedding']!r}, which no recipe made"
    elif recipe.embed is not None and recipe.embed.model is None:
        other = _other_seed_run(recipe, store, old.get("of", {}))
    if other is not None:
        raise ValueError(
            f"score {name!r} of {store.path} was predicted {other}; give the recipe a store of its "
            f"own, or delete the score: store.forget_score({name!r})"
        )


def _other_seed_run(recipe: Recipe, store: Store, of: dict[str, Any]) -> str | None:
    """Return how the seed run of a stored score differs from the recipe's; None if not seen to."""
    score: Any = recipe.score
    if "training" not in of:
        return None
    held, asked = of["training"], settings(score).to_dict()
    # These are filled in from the images, and from the steps of a full run.
    unknown = {name for name in ("size", "channels") if asked[name] is None}
    unknown |= {"epochs"} if score.match_steps_of is not None else set()
    for name, value in json.loads(json.dumps(asked)).items():
        if name not in unknown and held.get(name, value) != value:
            return f"from a seed run with {name} {held[name]}, got {value}"
    attack = adversary_of(score)
    if of.get("adversary") != (attack and attack.to_dict()):
        return "from a seed run that was attacked otherwise"
    seeds = draw_seeds(store, score.seeds, seed=score.seed, per_class=score.per_class)
    seeds, _ = hold_out(seeds, _held_out(recipe), seed=score.seed)
    if of.get("seeds_digest", digest := KeepSet.from_ids(store, seeds).digest) != digest:
        return f"from other seeds than {score.seeds} of the samples, drawn with seed {score.seed}"
    return None


def _held_out(recipe: Recipe) -> float:
    """Return the share of the seeds that the seed run holds out."""
    score: Any = recipe.score
    on_signals = recipe.extrapolate is not None and recipe.extrapolate.method in ON_SIGNALS
    usual = USUAL_ON_SIGNALS["held_out"] if on_signals else 0.0
    return float(usual if score.held_out is None else score.held_out)


def _check_folds(recipe: Recipe, store: Store) -> None:
    score: Any = recipe.score
    section: Any = recipe.extrapolate
    seeds = num_kept(len(store), score.seeds)
    if seeds < section.folds:
        raise ValueError(
            f"folds must be at most the number of seeds, {seeds}, got {section.folds}; "
            "give score more seeds, or fewer folds"
        )


def _check_chosen_by(recipe: Recipe, store: Store) -> None:
    """Refuse scores and embeddings that are neither there nor made by the chain."""
    select, made = recipe.select, _made_scores(recipe)
    for name in filter(None, (select.score, select.difficulty)):
        if name.startswith(f"{SEED_RUN}_") and name in made and not select.drop_missing:
            raise ValueError(
                f"score {name!r} is of the seeds alone; choose by an extrapolated one, or by the "
                "seeds with drop_missing"
            )
        if name not in made:
            store.score(name)
    if recipe.train is None or select.rule != "moderate" or recipe.train.policy is not None:
        return
    if select.embedding is not None or recipe.embed is None:
        store.embedding_name(select.embedding)


def _made_scores(recipe: Recipe) -> set[str]:
    seeds = recipe.score
    made = {f"{SEED_RUN}_{one}" for one in _specs_of(seeds)} if seeds is not None else set()
    return made | ({recipe.extrapolate.score} if recipe.extrapolate is not None else set())


def _specs_of(score: Any) -> list[str]:
    """Return the names, without the run's, of the scores that a seed run makes."""
    return computable(SIGNALS) if score.scores is None else [name_of(one) for one in score.scores]


def _check(recipe: Recipe) -> None:
    """Refuse what would only come to light after hours."""
    _check_precisions(recipe)
    _check_networks(recipe)
    if recipe.extrapolate is not None:
        with blamed("extrapolate"):
            _check_extrapolate(recipe, recipe.extrapolate)
    if recipe.embed is not None:
        with blamed("embed"):
            check_pass(**recipe.embed.model_dump(exclude={"model", "weights"}))
            if recipe.embed.weights is not None and recipe.embed.model is None:
                raise ValueError("weights must come with the model that they are of; add it")
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
        check_specs(*spread(epochs, score.window, score.match_steps_of), score.scores)
    made = _specs_of(score)
    if extrapolate is not None and extrapolate.score not in made:
        raise ValueError(
            f"extrapolate: score must be one that the seed run makes ({', '.join(made)}), "
            f"got {extrapolate.score!r}"
        )


def _check_kept(recipe: Recipe) -> None:
    select, train = recipe.select, recipe.train
    with blamed("select"):
        num_kept(0, select.keep_fraction)
        checked_rule(select.rule, Asked(**select.model_dump(exclude={"rule"})))
    if train is not None:
        with blamed("train"):
            _check_policy(recipe, train)
    scored = select.score is not None or recipe.extrapolate is not None
    by_score = select.rule not in ("random", "moderate") and select.keep_fraction < 1
    if train is not None and policy_of(recipe) is None and by_score and not scored:
        raise ValueError(f"select: rule {select.rule} must have a score; add extrapolate or score")
    if recipe.report is not None and not scored:
        raise ValueError("report must have a score to show; add extrapolate, or score to select")


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
    if recipe.extrapolate is not None and learned == recipe.extrapolate.score:
        raise ValueError(
            f"policy_score must not be the extrapolated score, got {learned!r}; choose another name"
        )


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
    if found["type"] == "value_error":
        return ": ".join([*where[:-1], str(found["ctx"]["error"])])
    name = ".".join(part for part in where if part not in _BRANCHES)
    wrong = _PLAINLY.get(found["type"], found["msg"])
    return f"{name} must be right, got {shortened(found['input'])}: {wrong}"


def _section(model: Any, name: str) -> Any:
    kind = model.model_fields[name].annotation
    parts = [kind, *getattr(kind, "__args__", ())]
    return next(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))


def _keys(model: Any) -> list[str]:
    return list(model.model_fields)
