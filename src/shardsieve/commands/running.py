"""The whole chain of a recipe: every step is skipped while its inputs are what they were."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shardsieve._errors import ShardsieveError
from shardsieve.commands.building import USUAL_ON_SIGNALS
from shardsieve.commands.extrapolating import extrapolate_score
from shardsieve.commands.making import make_index
from shardsieve.commands.methods import ON_SIGNALS
from shardsieve.commands.recipe import Recipe, Section, Shards, read_recipe, settings
from shardsieve.commands.reporting import report_score
from shardsieve.commands.training import embed_store, score_store, train_store
from shardsieve.store.layout import holds_store
from shardsieve.store.store import open_store
from shardsieve.train.launch import make_accelerator

STATE = "steps.json"
STEPS = ("index", "score", "embed", "extrapolate", "train", "report")

Result = dict[str, Any]


def run_recipe(path: Path, *, until: str = STEPS[-1]) -> Result:
    """Make what a recipe describes; works alone and under `accelerate launch`.

    A step is skipped when it was finished with the same settings on the results of the same steps
    before it; one that was cut short goes on where it was.

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
    chain = _Chain(read_recipe(path))
    for name in STEPS[: STEPS.index(until) + 1]:
        getattr(chain, name)()
    return {**chain.results, "skipped": chain.skipped}


class _Chain:
    """The steps of one recipe, in the order in which they depend on each other."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.path = recipe, recipe.data.store
        self.results: Result = {}
        self.skipped: list[str] = []
        self._accelerator = make_accelerator()
        self._state = _State(recipe.work / STATE)
        self._digest = ""

    def index(self) -> None:
        """Make the stores, or see that they hold these very shards."""
        for name, shards in (("index", self.recipe.data), ("index_test", self.recipe.test)):
            if shards is not None:
                self.results[name] = self._alone(partial(_indexed, shards))
        stores = [s for s in (self.recipe.data, self.recipe.test) if s is not None]
        self._digest = _digest([open_store(s.store, mode="r").fingerprint for s in stores])

    def score(self) -> None:
        """Train on the seed subset."""
        section = self.recipe.score
        if section is None:
            return
        inputs = {**_plain(section), "seed_run": self._seed_run(section)}
        self._step("score", inputs, lambda digest: self._scored(section, digest))

    def embed(self) -> None:
        """Embed everything under a name that belongs to the network."""
        section = self.recipe.embed
        if section is None:
            return
        self._step("embed", section, lambda digest: self._embedded(section, digest))

    def extrapolate(self) -> None:
        """Predict the rest's scores."""
        section = self.recipe.extrapolate
        if section is None:
            return

        def predict() -> Result:
            how = section.model_dump(exclude={"score"})
            embedding = self.results["embed"]["embedding"]
            return extrapolate_score(
                self.path, f"seed_{section.score}", section.score, embedding, **how
            )

        self._step("extrapolate", section, lambda _: predict())

    def train(self) -> None:
        """Train on what is kept."""
        section = self.recipe.train
        if section is None:
            return
        inputs = {"select": _plain(self.recipe.select), **_plain(section)}
        self._step("train", inputs, lambda digest: self._trained(section, digest))

    def report(self) -> None:
        """Write the page about the score."""
        section, score = self.recipe.report, self._score()
        if section is None or score is None:
            return
        keep = self.recipe.select.keep_fraction
        how: dict[str, Any] = {"score": score, "keep_fraction": keep, "reference": None}
        out = self.recipe.work / section.out
        self._step(
            "report",
            {**how, **_plain(section)},
            lambda _: self._alone(partial(report_score, self.path, out, **how)),
        )

    # Inside ---------------------------------------------------------------------------------

    def _scored(self, section: Any, digest: str) -> Result:
        folder = self.recipe.work / f"score-{digest}"
        if self._accelerator.is_main_process:
            # The store holds the scores of one seed run: of another one nothing may be left over.
            for other in self.recipe.work.glob(f"score-{'[0-9a-f]' * 8}"):
                if other != folder:
                    shutil.rmtree(other)
        self._accelerator.wait_for_everyone()
        draw = {"seed_fraction": section.seeds, "per_class": section.per_class}
        draw["checkpoint_steps"] = section.checkpoint_steps
        return score_store(
            self.path, settings(section), **draw, **self._seed_run(section), folder=folder
        )

    def _seed_run(self, section: Any) -> dict[str, Any]:
        """Return what a seed run is given besides settings; some methods need more of it."""
        extrapolate = self.recipe.extrapolate
        usual = USUAL_ON_SIGNALS if extrapolate and extrapolate.method in ON_SIGNALS else {}
        how = section.model_dump(
            include={"window", "scores", "clean_pass", "match_steps_of", "ceiling"}
        )
        given = section.model_dump(include={"held_out", "snapshots"}, exclude_none=True)
        return {**how, **usual, **given}

    def _embedded(self, section: Any, digest: str) -> Result:
        model = section.model
        if model is None:
            if "score" not in self.results:
                raise ShardsieveError("embed must name a model, or come with score; add one")
            model = self.results["score"]["run"]
        how = section.model_dump(exclude={"model"})
        return embed_store(self.path, model=model, name=f"embedding-{digest}", **how)

    def _trained(self, section: Any, digest: str) -> Result:
        rule = {**self.recipe.select.model_dump(), "seed": section.seed}
        policy = section.policy
        if policy is None:
            rule["score"] = None if rule["rule"] == "random" else self._score()
        test = self.recipe.test.store if self.recipe.test else None
        how = section.model_dump(include={"policy_score", "evaluate_every", "checkpoint_steps"})
        out = self.recipe.work / f"train-{digest}"
        result = train_store(
            self.path,
            settings(section),
            out=out,
            rule=rule,
            policy=policy,
            test=test,
            full_run=section.full_run,
            track=tuple(section.track),
            **how,
        )
        return {"run": str(out), **result}

    def _score(self) -> str | None:
        select, extrapolate = self.recipe.select, self.recipe.extrapolate
        return select.score or (extrapolate.score if extrapolate else None)

    def _step(
        self, name: str, inputs: Section | dict[str, Any], make: Callable[[str], Result]
    ) -> None:
        self._digest = _digest([self._digest, name, _plain(inputs)])
        held = self._state.result(name, self._digest)
        if held is not None:
            self.results[name] = held
            self.skipped.append(name)
            return
        self.results[name] = make(self._digest[:8])
        if self._accelerator.is_main_process:
            self._state.put(name, self._digest, self.results[name])
        self._accelerator.wait_for_everyone()

    def _alone(self, make: Callable[[], Result]) -> Result:
        made = make() if self._accelerator.is_main_process else {}
        self._accelerator.wait_for_everyone()
        return made


class _State:
    """Which steps are finished, with what inputs; replaced in one rename."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def result(self, name: str, digest: str) -> Result | None:
        held = self._steps.get(name, {})
        result: Result | None = held.get("result") if held.get("inputs") == digest else None
        return result

    def put(self, name: str, digest: str, result: Result) -> None:
        self._steps[name] = {"inputs": digest, "result": result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.partial")
        new.write_text(json.dumps(self._steps, indent=1) + "\n")
        new.replace(self.path)


def _indexed(shards: Shards) -> Result:
    if shards.urls is None:
        if not holds_store(shards.store):
            raise ShardsieveError(f"no store at {shards.store}; give its urls to make it")
        return {"store": str(shards.store)}
    urls = [shards.urls] if isinstance(shards.urls, str) else shards.urls
    return make_index(urls, shards.store, shards.label_member)


def _plain(inputs: Section | dict[str, Any]) -> dict[str, Any]:
    """Return inputs as JSON has them; workers decide nothing."""
    values = inputs.model_dump(mode="json") if isinstance(inputs, Section) else inputs
    return {k: v for k, v in values.items() if k not in ("workers", "track")}


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
