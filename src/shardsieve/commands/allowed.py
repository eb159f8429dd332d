"""Checks of a recipe against the shards, labels and scores of its store."""

import json
from collections.abc import Collection
from typing import Any

from shardsieve.commands.extrapolating import refuse_other_prediction
from shardsieve.commands.meaning import (
    adversary_of,
    asked_of,
    blamed,
    followed_by,
    given_by_method,
    made_scores,
    policy_of,
    settings,
)
from shardsieve.commands.methods import check_tried
from shardsieve.commands.sections import EMBEDDING, SEED_RUN, Recipe
from shardsieve.keepset import KeepSet
from shardsieve.selection import num_kept
from shardsieve.store.store import Store
from shardsieve.train.labels import check_test, count_classes, count_pseudo_classes
from shardsieve.train.loading import check_augmenting
from shardsieve.train.seeding import draw_seeds
from shardsieve.train.splits import hold_out


def check_trainings(
    recipe: Recipe, store: Store, test: Store | None, *, made: Collection[str] = ()
) -> None:
    """Refuse a step, also a later one, whose settings the shards, labels or scores do not allow.

    Args:
        recipe: Of the chain.
        store: Of the training samples.
        test: Of the samples to evaluate on, if there are any.
        made: What its steps made of asked, predicted and learned scores before, and replace:
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
    if recipe.extrapolate is not None:
        with blamed("extrapolate"):
            _check_tried(recipe, store)
            if f"score/{recipe.extrapolate.score}" not in made:
                _check_predicted(recipe.extrapolate, store)
                _check_foreign(recipe, store)
    if recipe.ask is not None:
        with blamed("ask"):
            _check_asked(recipe, store, made)
    policy = policy_of(recipe)
    if policy is not None and recipe.train is not None and recipe.train.policy_score is not None:
        learned = recipe.train.policy_score
        with blamed("train"):
            if f"score/{learned}" not in made:
                policy.check_score(store, learned)
    if recipe.train is not None or recipe.report is not None:
        with blamed("select"):
            _check_chosen_by(recipe, store, made)
    if test is not None and recipe.train is not None:
        with blamed("test"):
            classes = None if recipe.train.pseudo_labels else count_classes(store)
            check_test(test, store, classes)


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
            f"own, or delete it: `shardsieve forget --store {store.path} --score {name}`"
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
    usual = given_by_method(recipe).get("held_out", 0.0)
    return float(usual if score.held_out is None else score.held_out)


def _check_asked(recipe: Recipe, store: Store, made: Collection[str]) -> None:
    """Refuse to ask for a score under the name of one that no recipe made."""
    for name in asked_of(recipe):
        held = store.provenance(name) if store.has_score(name) else {"embedding": EMBEDDING}
        ours = str(held.get("embedding")).startswith(EMBEDDING)
        if not ours and f"score/{name}" not in made:
            raise ValueError(
                f"score {name!r} of {store.path} was made by no recipe; give this one a store of "
                f"its own, or delete it: `shardsieve forget --store {store.path} --score {name}`"
            )


def _check_tried(recipe: Recipe, store: Store) -> None:
    section: Any = recipe.extrapolate
    score: Any = recipe.score
    drawn = num_kept(len(store), score.seeds)
    check_tried(section.method, section.folds, drawn=drawn, held_out=_held_out(recipe))


def _check_chosen_by(recipe: Recipe, store: Store, made: Collection[str]) -> None:
    """Refuse scores and embeddings that are neither there nor made by the chain."""
    select, makes = recipe.select, made_scores(recipe)
    followed = followed_by(policy_of(recipe))
    for name in filter(None, (select.score, select.difficulty, *followed)):
        if name.startswith(f"{SEED_RUN}_") and name in makes and not select.drop_missing:
            raise ValueError(
                f"score {name!r} is of the seeds alone; choose by an extrapolated one, or by the "
                "seeds with drop_missing"
            )
        if name in makes:
            continue
        store.score(name)
        if f"score/{name}" in made:
            raise ValueError(
                f"score {name!r} was made by an earlier form of this recipe, whose step removes it "
                "when it is made anew; let the recipe make it, or give this one another work folder"
            )
    if recipe.train is None or select.rule != "moderate" or recipe.train.policy is not None:
        return
    if select.embedding is not None or recipe.embed is None:
        store.embedding_name(select.embedding)
