"""The whole chain of a recipe: a step is made again exactly when one of its inputs has changed."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError
from shardsieve.commands import marks
from shardsieve.commands.allowed import check_trainings
from shardsieve.commands.asking import ask_networks
from shardsieve.commands.chain import Chain, Inputs
from shardsieve.commands.classes import names_beside
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.making import make_index
from shardsieve.commands.meaning import (
    adversary_of,
    asked_of,
    blamed,
    deciding,
    followed_by,
    given_by_method,
    policy_of,
    score_of,
    settings,
)
from shardsieve.commands.methods import ON_SIGNALS, held_out_score
from shardsieve.commands.reporting import report_score
from shardsieve.commands.scoring import score_unsupervised_store
from shardsieve.commands.sections import EMBEDDING, SEED_RUN, Recipe, Shards
from shardsieve.commands.steps import STEPS, Result
from shardsieve.commands.training import embed_store, score_store, train_store
from shardsieve.keepset import selected
from shardsieve.rules import is_blind
from shardsieve.scores.inputs import one_of
from shardsieve.store.layout import holds_store
from shardsieve.store.store import open_store
from shardsieve.train.launch import make_accelerator
from shardsieve.train.machines import on_all
from shardsieve.train.runfolder import MODEL, RESULT


def run_recipe(path: Path, *, until: str = STEPS[-1]) -> Result:
    """Make what a recipe describes; works alone and under `accelerate launch`.

    A step is skipped while its settings, the data and what it takes from the steps before it are
    what they were, and what it made is still there; one that was cut short goes on where it was.

    Args:
        path: Of the YAML file.
        until: Last step to make.

    Returns:
        What each step returned, and `skipped`, the names of those that were done before.

    Raises:
        ShardsieveError: If the recipe or what it names is wrong.
    """
    one_of("until", until, STEPS)
    accelerator = make_accelerator()
    chain = on_all(accelerator, lambda: _Chain(path, accelerator))
    chain.check_machines()
    steps = order_of(chain.recipe)
    for name in steps[: steps.index(until) + 1]:
        if name == "index" or getattr(chain.recipe, name) is not None:
            getattr(chain, name)()
    return {**chain.results, "skipped": chain.skipped}


def order_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the steps in the order in which they are made: TURTLE scores what is embedded."""
    if recipe.score is None or recipe.score.turtle is None:
        return STEPS
    return ("index", "embed", "score", *STEPS[3:])


class _Chain(Chain):
    """The steps of one recipe.

    Each says what it reads (`inputs`, marks and settings), how it is made, and the mark of what it
    has made, which is what later steps read.
    """

    def index(self) -> None:
        """Make the stores, or see that they hold these very shards."""
        for name, shards in (("index", self.recipe.data), ("index_test", self.recipe.test)):
            if shards is not None:
                self.results[name] = self._on_main(partial(_indexed, shards))
        self._on_main(self._check_data)

    def score(self) -> None:
        """Train on the seed subset, or find pseudo-labels from what is embedded."""
        section: Any = self.recipe.score
        if section.turtle is not None:
            self._unsupervised(section)
            return
        seed_run = self._seed_run(section)
        draw = {"seed_fraction": section.seeds, "per_class": section.per_class}
        draw["checkpoint_steps"] = section.checkpoint_steps

        def inputs() -> Inputs:
            read = {"data": self._data, "seed_run": seed_run, **deciding(section)}
            return {**read, **self._learned(section)}

        def make(digest: str) -> Result:
            folder = self.recipe.work / f"score-{digest}"
            self._on_main(lambda: self._forget_seed_runs(other_than=folder))
            how = {**draw, **seed_run, "folder": folder, "name": SEED_RUN}
            how["adversary"] = adversary_of(section)
            return score_store(self.path, settings(section), **how)

        def output(result: Result) -> marks.Mark:
            found = [*self._marks_of_scores(result), marks.mark_of_network(self._run(result))]
            return None if None in found else marks.digest_of(found)

        self._step("score", inputs, make, output, lambda _: [f"run/{SEED_RUN}"])

    def embed(self) -> None:
        """Embed everything under a name that belongs to the network."""
        section: Any = self.recipe.embed
        model = section.model or str(self._run(self.results["score"]))

        def inputs() -> Inputs:
            network = marks.mark_of_network(model)
            files = {"model": network, "weights": marks.mark_of_file(section.weights)}
            return {"data": self._data, **deciding(section), **files}

        def make(digest: str) -> Result:
            how = section.model_dump(exclude={"model"})
            return embed_store(self.path, model=model, name=EMBEDDING + digest, **how)

        def output(result: Result) -> marks.Mark:
            return marks.mark_of_embedding(self._store, result["embedding"])

        self._step("embed", inputs, make, output, lambda digest: [f"embedding/{EMBEDDING}{digest}"])

    def ask(self) -> None:
        """Score every sample by what the seed run's networks say of it."""
        section: Any = self.recipe.ask
        embedding, names = self.results["embed"]["embedding"], asked_of(self.recipe)

        def inputs() -> Inputs:
            points = marks.mark_of_embedding(self._store, embedding)
            return {"data": self._data, "embedding": points, **deciding(section)}

        def make(_: str) -> Result:
            return self._on_main(partial(ask_networks, self.path, embedding, section.scores))

        def output(result: Result) -> marks.Mark:
            found = self._marks_of_scores(result)
            return None if None in found else marks.digest_of(found)

        self._step("ask", inputs, make, output, lambda _: [f"score/{name}" for name in names])

    def extrapolate(self) -> None:
        """Predict the rest's scores."""
        section: Any = self.recipe.extrapolate
        source, embedding = f"{SEED_RUN}_{section.score}", self.results["embed"]["embedding"]

        def inputs() -> Inputs:
            store = self._store
            names = [source]
            if section.method in ON_SIGNALS:
                names.append(held_out_score(store, source, section.method))
            again = [store.provenance(one).get("ceiling", {}).get("of") for one in names]
            learned = [marks.mark_of_score(store, one) for one in [*names, *filter(None, again)]]
            points = marks.mark_of_embedding(store, embedding)
            read = {"data": self._data, "scores": learned, "embedding": points}
            return {**read, **deciding(section)}

        def make(_: str) -> Result:
            how = section.model_dump(exclude={"score"})
            return extrapolate_score(self.path, source, section.score, embedding, **how)

        def output(_: Result) -> marks.Mark:
            return marks.mark_of_score(self._store, section.score)

        self._step("extrapolate", inputs, make, output, lambda _: [f"score/{section.score}"])

    def train(self) -> None:
        """Train on what is kept."""
        section: Any = self.recipe.train
        rule, policy = self._rule(section), policy_of(self.recipe)
        test = self.recipe.test.store if self.recipe.test else None
        learned = section.policy_score

        def inputs() -> Inputs:
            store = self._store
            read: Inputs = {**deciding(section), "data": self._data, "score": rule["score"]}
            read |= self._learned(section)
            read["test"] = marks.mark_of_data(open_store(test, mode="r")) if test else None
            if policy is None:
                read["keep"] = selected(store, **rule).digest
            else:
                read["policy"] = policy.settings()
                read["started"] = [marks.mark_of_values(store, s) for s in followed_by(policy)]
            if section.full_run is not None:
                read["full_run"] = marks.mark_of_file(section.full_run / RESULT)
            return read

        def make(digest: str) -> Result:
            out = self.recipe.work / f"train-{digest}"
            self._on_main(lambda: _forget_without_network(out))
            kept = {"evaluate_every", "checkpoint_steps", "policy_score", "full_run"}
            how = section.model_dump(include=kept)
            how |= {"policy": section.policy, "track": tuple(section.track)}
            how["adversary"] = adversary_of(section)
            result = train_store(self.path, settings(section), out=out, rule=rule, test=test, **how)
            return {"run": str(out), **result}

        def output(result: Result) -> marks.Mark:
            if not all((self._run(result) / name).is_file() for name in (MODEL, RESULT)):
                return None
            return marks.mark_of_values(self._store, learned) if learned else "trained"

        made = [f"score/{learned}"] if learned else []
        self._step("train", inputs, make, output, lambda _: made)

    def report(self) -> None:
        """Write the page about the score."""
        section: Any = self.recipe.report
        score, out = score_of(self.recipe), self.recipe.work / section.out
        if score is None:
            return
        keep = self.recipe.select.keep_fraction
        how: dict[str, Any] = {"score": score, "keep_fraction": keep, "reference": None}

        def inputs() -> Inputs:
            store = self._store
            names = marks.mark_of_bytes(names_beside(store.urls[0]))
            read = {"data": self._data, "classes": names, "out": str(section.out)}
            return {**read, **how, "score": [score, marks.mark_of_score(store, score)]}

        def make(_: str) -> Result:
            return self._on_main(partial(report_score, self.path, out, **how))

        def output(result: Result) -> marks.Mark:
            return "written" if Path(result["report"]).is_file() else None

        self._step("report", inputs, make, output, lambda _: [])

    # Inside ---------------------------------------------------------------------------------

    def _check_data(self) -> None:
        test = self.recipe.test
        with blamed(self.file):
            check_trainings(
                self.recipe,
                self._store,
                open_store(test.store, mode="r") if test else None,
                made=[
                    one
                    for step in ("ask", "extrapolate", "train")
                    if getattr(self.recipe, step) is not None
                    for one in self._steps.made(step, self._place)
                ],
            )

    def _unsupervised(self, section: Any) -> None:
        embedding = self.results["embed"]["embedding"]

        def inputs() -> Inputs:
            points = marks.mark_of_embedding(self._store, embedding)
            return {"data": self._data, "embedding": points, **deciding(section)}

        def make(_: str) -> Result:
            draw = {"seed_fraction": section.seeds, "per_class": section.per_class}
            how = section.model_dump(include={"seed", "window", "scores"})
            how |= {"embedding": embedding, "name": SEED_RUN, **section.turtle.model_dump()}
            return score_unsupervised_store(self.path, **draw, **how)

        def output(result: Result) -> marks.Mark:
            labels = marks.mark_of_pseudo_labels(self._store, SEED_RUN)
            found = [*self._marks_of_scores(result), labels]
            return None if None in found else marks.digest_of(found)

        self._step("score", inputs, make, output, lambda _: [f"run/{SEED_RUN}"])

    def _marks_of_scores(self, result: Result) -> list[marks.Mark]:
        names = result["scores"]
        if isinstance(names, str):  # as an earlier release wrote them
            names = names.split()
        return [marks.mark_of_score(self._store, name) for name in names]

    def _learned(self, section: Any) -> Inputs:
        name = section.pseudo_labels
        return {"learned": marks.mark_of_pseudo_labels(self._store, name)} if name else {}

    def _seed_run(self, section: Any) -> dict[str, Any]:
        """Return what a seed run is given besides settings; some methods need more of it."""
        how = section.model_dump(
            include={"window", "scores", "clean_pass", "match_steps_of", "ceiling"}
        )
        given = section.model_dump(include={"held_out", "snapshots"}, exclude_none=True)
        return {**how, **given_by_method(self.recipe), **given}

    def _rule(self, section: Any) -> dict[str, Any]:
        """Return what `select` is told for a training."""
        rule = {**self.recipe.select.model_dump(), "seed": section.seed}
        if section.policy is None:
            blind = is_blind(rule["rule"], rule["drop_missing"])
            rule["score"] = None if blind else score_of(self.recipe)
        if rule["rule"] == "moderate" and rule["embedding"] is None and "embed" in self.results:
            rule["embedding"] = self.results["embed"]["embedding"]
        return rule


def _forget_without_network(run: Path) -> None:
    """Remove a finished run whose network is gone."""
    if not (run / MODEL).is_file() and (run / RESULT).is_file():
        shutil.rmtree(run)


def _indexed(shards: Shards) -> Result:
    if shards.urls is None:
        if not holds_store(shards.store):
            raise ShardsieveError(f"no store at {shards.store}; give its urls to make it")
        return {"store": str(shards.store)}
    urls = [shards.urls] if isinstance(shards.urls, str) else shards.urls
    return make_index(urls, shards.store, shards.label_member)
