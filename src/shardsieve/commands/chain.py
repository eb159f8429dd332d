"""How a chain's steps are made: each when its inputs have changed, decided by one process."""

import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from shardsieve._errors import ShardsieveError
from shardsieve.commands import marks
from shardsieve.commands.recipe import read_recipe
from shardsieve.commands.steps import Result, Steps
from shardsieve.store.store import Store, open_store
from shardsieve.train.launch import on_main
from shardsieve.train.ledger import full_run_in
from shardsieve.train.machines import check_same, check_shared
from shardsieve.train.seedscores import forget_run

STATE = "steps.json"

Inputs = dict[str, Any]
T = TypeVar("T")


class Chain:
    """What the steps of one recipe share.

    Attributes:
        recipe: What is made.
        file: Which says so.
        path: Of the store.
        results: What each step returned, by its name.
        skipped: Names of the steps that were done before.
    """

    def __init__(self, file: Path, accelerator: Any) -> None:
        self.recipe, self.file = read_recipe(file), file
        self.path = self.recipe.data.store
        self.results: Result = {}
        self.skipped: list[str] = []
        self._check_files()
        self._accelerator = accelerator
        self._steps = Steps(self.recipe.work / STATE)

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
                names = [one for one in made(digest[:8]) if not self._is_anothers(name, one)]
                self._steps.begin(name, digest, names, self._place, self._remove)
            return digest, held

        digest, held = self._on_main(decided)
        if held is not None:
            self.results[name] = held
            self.skipped.append(name)
            return
        result = self.results[name] = make(digest[:8])
        names = made(digest[:8])
        self._on_main(lambda: self._steps.finish(name, digest, output(result), result, names))

    @property
    def _place(self) -> str:
        return str(self.path.resolve())

    def _is_anothers(self, step: str, made: str) -> bool:
        """Return whether it is there though the step has not made it, who may yet be refused to."""
        if made in self._steps.made(step, self._place):
            return False
        kind, _, name = made.partition("/")
        if kind == "score":
            return self._store.has_score(name)
        return kind == "run" and name in self._store.dynamics

    def _check_files(self) -> None:
        """Refuse what would only come to light after hours."""
        train: Any = self.recipe.train
        if train is not None and train.full_run is not None:
            full_run_in(train.full_run)
        report = self.recipe.report
        if report is not None and (self.recipe.work / report.out).is_dir():
            raise ShardsieveError(
                f"{self.recipe.work / report.out} is a folder; report.out must be the page to write"
            )
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

    def _on_main(self, make: Callable[[], T]) -> T:
        return on_main(self._accelerator, make)
