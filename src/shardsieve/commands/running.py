"""The whole chain of a recipe: a step is made again exactly when one of its inputs has changed."""

import shutil
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from shardsieve._errors import ShardsieveError
from shardsieve.commands import marks
from shardsieve.commands.building import USUAL_ON_SIGNALS
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.making import make_index
from shardsieve.commands.methods import ON_SIGNALS, held_out_score
from shardsieve.commands.recipe import (
    Recipe,
    Shards,
    deciding,
    policy_of,
    read_recipe,
    settings,
)
from shardsieve.commands.reporting import names_beside, report_score
from shardsieve.commands.steps import Result, Steps
from shardsieve.commands.training import embed_store, score_store, train_store
from shardsieve.keepset import select
from shardsieve.store.create import check_labels
from shardsieve.store.layout import holds_store
from shardsieve.store.store import Store, open_store
from shardsieve.train.launch import make_accelerator, on_main
from shardsieve.train.ledger import full_run_cost
from shardsieve.train.machines import check_same, check_shared, on_all
from shardsieve.train.runfolder import MODEL, RESULT
from shardsieve.train.seedscores import forget_run

STATE = "steps.json"
STEPS = ("index", "score", "embed", "extrapolate", "train", "report")
SEED_RUN = "seed"

Inputs = dict[str, Any]
T = TypeVar("T")


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
    if until not in STEPS:
        raise ValueError(f"until must be one of {', '.join(STEPS)}, got {until!r}")
    accelerator = make_accelerator()
    chain = on_all(accelerator, lambda: _Chain(read_recipe(path), accelerator))
    chain.check_machines()
    for name in STEPS[: STEPS.index(until) + 1]:
        if name == "index" or getattr(chain.recipe, name) is not None:
            getattr(chain, name)()
    return {**chain.results, "skipped": chain.skipped}


class _Chain:
    """The steps of one recipe, in the order in which they depend on each other.

    Each says what it reads (`inputs`, marks and settings), how it is made, and the mark of what it
    has made, which is what later steps read.
    """

    def __init__(self, recipe: Recipe, accelerator: Any) -> None:
        self.recipe, self.path = recipe, recipe.data.store
        self.results: Result = {}
        self.skipped: list[str] = []
        self._check_files()
        self._accelerator = accelerator
        self._steps = Steps(recipe.work / STATE)

    def check_machines(self) -> None:
        """See that all processes were given one recipe and share what it makes."""
        recipe = self.recipe
        check_same(self._accelerator, recipe.model_dump(mode="json"))
        folders = {"work": recipe.work, "data.store": recipe.data.store}
        if recipe.test is not None:
            folders["test.store"] = recipe.test.store
        check_shared(self._accelerator, folders)

    @cached_property
    def _store(self) -> Store:
        return open_store(self.path)

    @cached_property
    def _data(self) -> str:
        return marks.mark_of_data(self._store)

    def index(self) -> None:
        """Make the stores, or see that they hold these very shards."""
        for name, shards in (("index", self.recipe.data), ("index_test", self.recipe.test)):
            if shards is not None:
                self.results[name] = self._on_main(partial(_indexed, shards))

    def score(self) -> None:
        """Train on the seed subset."""
        section: Any = self.recipe.score
        seed_run = self._seed_run(section)
        draw = {"seed_fraction": section.seeds, "per_class": section.per_class}
        draw["checkpoint_steps"] = section.checkpoint_steps

        def inputs() -> Inputs:
            return {"data": self._data, **deciding(section), "seed_run": seed_run}

        def make(digest: str) -> Result:
            folder = self.recipe.work / f"score-{digest}"
            self._on_main(lambda: self._forget_seed_runs(other_than=folder))
            how = {**draw, **seed_run, "folder": folder, "name": SEED_RUN}
            return score_store(self.path, settings(section), **how)

        def output(result: Result) -> marks.Mark:
            store = self._store
            scores = [marks.mark_of_score(store, name) for name in result["scores"].split()]
            found = [*scores, marks.mark_of_network(self._run(result))]
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
            return embed_store(self.path, model=model, name=_embedding(digest), **how)

        def output(result: Result) -> marks.Mark:
            return marks.mark_of_embedding(self._store, result["embedding"])

        self._step(
            "embed", inputs, make, output, lambda digest: [f"embedding/{_embedding(digest)}"]
        )

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
            read["test"] = marks.mark_of_data(open_store(test, mode="r")) if test else None
            if policy is None:
                read["keep"] = select(store, **rule).digest
            else:
                started = [policy.settings().get(name) for name in ("prior", "score")]
                read["policy"] = policy.settings()
                read["started"] = [marks.mark_of_values(store, s) for s in started if s]
            if section.full_run is not None:
                read["full_run"] = marks.mark_of_file(section.full_run / RESULT)
            return read

        def make(digest: str) -> Result:
            out = self.recipe.work / f"train-{digest}"
            self._on_main(lambda: _forget_without_network(out))
            kept = {"evaluate_every", "checkpoint_steps", "policy_score", "full_run"}
            how = section.model_dump(include=kept)
            how |= {"policy": section.policy, "track": tuple(section.track)}
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
        score, out = self._score(), self.recipe.work / section.out
        if score is None:
            return
        keep = self.recipe.select.keep_fraction
        how: dict[str, Any] = {"score": score, "keep_fraction": keep, "reference": None}

        def inputs() -> Inputs:
            store = self._store
            names = marks.mark_of_file(names_beside(store.urls[0]))
            read = {"data": self._data, "classes": names, "out": str(section.out)}
            return {**read, **how, "score": [score, marks.mark_of_score(store, score)]}

        def make(_: str) -> Result:
            return self._on_main(partial(report_score, self.path, out, **how))

        def output(result: Result) -> marks.Mark:
            return "written" if Path(result["report"]).is_file() else None

        self._step("report", inputs, make, output, lambda _: [])

    # Inside ---------------------------------------------------------------------------------

    def _step(
        self,
        name: str,
        inputs: Callable[[], Inputs],
        make: Callable[[str], Result],
        output: Callable[[Result], marks.Mark],
        made: Callable[[str], Iterable[str]],
    ) -> None:
        """Make a step unless it is done; one process decides that for all."""

        def decided() -> tuple[str, Result | None]:
            digest = marks.digest_of([name, inputs()])
            held = self._steps.result(name, digest, output)
            if held is None:
                names = made(digest[:8])
                self._steps.begin(name, digest, names, str(self.path.resolve()), self._remove)
            return digest, held

        digest, held = self._on_main(decided)
        if held is not None:
            self.results[name] = held
            self.skipped.append(name)
            return
        result = self.results[name] = make(digest[:8])
        self._on_main(lambda: self._steps.finish(name, digest, output(result), result))

    def _check_files(self) -> None:
        """Refuse what would only come to light after hours."""
        train: Any = self.recipe.train
        if train is not None and train.full_run is not None:
            full_run_cost(train.full_run)
        embed = self.recipe.embed
        if embed is not None and embed.weights is not None and not embed.weights.is_file():
            raise ShardsieveError(f"no checkpoint at {embed.weights}; check embed.weights")

    def _run(self, result: Result) -> Path:
        """Return the folder of a run, which may have moved with the work folder."""
        return self.recipe.work / Path(result["run"]).name

    def _remove(self, name: str) -> None:
        """Remove what an earlier making of a step left in the store."""
        kind, _, name = name.partition("/")
        if kind == "run":
            self._forget_seed_runs()
            forget_run(self._store, name)
        elif kind == "embedding":
            self._store.forget_embedding(name)
        else:
            self._store.forget_score(name)

    def _forget_seed_runs(self, *, other_than: Path | None = None) -> None:
        # The store holds the scores of one seed run: of another one nothing may be left over.
        for folder in self.recipe.work.glob("score-*"):
            if other_than is None or folder.name.removesuffix("-again") != other_than.name:
                shutil.rmtree(folder)

    def _seed_run(self, section: Any) -> dict[str, Any]:
        """Return what a seed run is given besides settings; some methods need more of it."""
        extrapolate = self.recipe.extrapolate
        usual = USUAL_ON_SIGNALS if extrapolate and extrapolate.method in ON_SIGNALS else {}
        how = section.model_dump(
            include={"window", "scores", "clean_pass", "match_steps_of", "ceiling"}
        )
        given = section.model_dump(include={"held_out", "snapshots"}, exclude_none=True)
        return {**how, **usual, **given}

    def _rule(self, section: Any) -> dict[str, Any]:
        """Return what `select` is told for a training."""
        rule = {**self.recipe.select.model_dump(), "seed": section.seed}
        if section.policy is None:
            blind = rule["rule"] == "random" and not rule["drop_missing"]
            rule["score"] = None if blind else self._score()
        if rule["rule"] == "moderate" and rule["embedding"] is None and "embed" in self.results:
            rule["embedding"] = self.results["embed"]["embedding"]
        return rule

    def _score(self) -> str | None:
        given, extrapolate = self.recipe.select, self.recipe.extrapolate
        return given.score or (extrapolate.score if extrapolate else None)

    def _on_main(self, make: Callable[[], T]) -> T:
        return on_main(self._accelerator, make)


def _forget_without_network(run: Path) -> None:
    """Remove a finished run whose network is gone."""
    if not (run / MODEL).is_file() and (run / RESULT).is_file():
        shutil.rmtree(run)


def _embedding(digest: str) -> str:
    return f"embedding-{digest}"


def _indexed(shards: Shards) -> Result:
    if shards.urls is None:
        if not holds_store(shards.store):
            raise ShardsieveError(f"no store at {shards.store}; give its urls to make it")
        return {"store": str(shards.store)}
    urls = [shards.urls] if isinstance(shards.urls, str) else shards.urls
    made = make_index(urls, shards.store, shards.label_member)
    check_labels(open_store(shards.store, mode="r"), shards.label_member)
    return made
