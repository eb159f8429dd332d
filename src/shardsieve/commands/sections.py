"""The sections of a configuration of `shardsieve run`, with their keys and usual values."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from shardsieve.commands.methods import usual_k
from shardsieve.commands.texts import refuse_url
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import DEFAULT_TRACKERS
from shardsieve.train.turtle import TurtleConfig

SEED_RUN = "seed"
"""Name of a chain's seed run, and of its pseudo-labels."""

EMBEDDING = "embedding-"
"""What the names of a chain's embeddings begin with."""


class Section(BaseModel):
    """Part of a recipe; a key it does not know is refused, and so is what YAML makes of a slip."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_slip(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        kinds = _kinds(cls.model_fields[name].annotation)
        if not kinds & {bool, Any} and _holds_truth(value):
            raise ValueError(
                f"{name} must not be true or false, got {value!r}; quote words: yes, no, on, off"
            )
        if Path in kinds and isinstance(value, str):
            refuse_url(name, value)
            if not value:
                raise ValueError(f"{name} must be the path of a file or folder, got ''")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    parts = get_args(annotation)
    if parts:
        return set().union(*map(_kinds, parts))
    return {annotation} if isinstance(annotation, type) else set()


def _holds_truth(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_truth, value))
    return isinstance(value, bool)


def _settings(kind: type[Any]) -> dict[str, Any]:
    """Return the fields of a dataclass as those of a section."""
    return {one.name: (one.type, one.default) for one in fields(kind)}


Training: type[Section] = create_model("Training", __base__=Section, **_settings(TrainConfig))
"""A section with every setting of `TrainConfig`."""

Attack: Any = create_model("Attack", __base__=Section, **_settings(Adversary))
"""Adversarial training: every setting of `Adversary`."""

_TURTLE = _settings(TurtleConfig) | {"classes": (int | None, None)}
del _TURTLE["seed"]  # that of the seed run
Turtle: Any = create_model("Turtle", __base__=Section, **_TURTLE)
"""Settings of `TurtleConfig`; without `classes` it finds as many as there are labels."""


class Shards(Section):
    """Shards and their store; `urls`, as in `shardsieve index`, may be left out of a made one."""

    store: Path
    urls: str | list[str] | None = None
    label_member: str = "cls"


class Score(Training):  # type: ignore[misc,valid-type]
    """The seed run: its share of the samples, and its settings, as in `shardsieve score`.

    With `turtle` it is an unsupervised one, which needs an embedding and trains no network; its
    pseudo-labels are called `seed`.
    """

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
    adversary: Attack | None = None
    turtle: Turtle | None = None


class Embed(Section):
    """The pass over everything; without `model` it uses the seed run's network."""

    model: str | None = None
    weights: Path | None = None
    size: int | None = None
    channels: int | None = None
    normalise: str | None = None
    batch_size: int = 256
    max_unreadable: int = 0
    workers: int = 0
    precision: str = "no"


class Ask(Section):
    """Scores by what the seed run's networks say of every sample, as in `shardsieve ask`."""

    scores: list[str] = ["el2n"]


class Extrapolate(Section):
    """Which seed score is predicted for the rest, and how, as in `shardsieve extrapolate`."""

    score: str = "dyn_unc"
    method: str = "knn"
    k: int | Literal["auto"] | None = None
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

    @model_validator(mode="after")
    def _with_k(self) -> Self:
        if self.k is None:
            self.k = usual_k(self.method)
        return self


class Select(Section):
    """What is kept, as in `shardsieve select`.

    Unless it names a score, by the extrapolated one, or else the first that `ask` makes.
    """

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
    adversary: Attack | None = None
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
    ask: Ask | None = None
    extrapolate: Extrapolate | None = None
    select: Select = Select()
    train: Train | None = None
    report: Report | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _no_empty_section(cls, value: Any, info: ValidationInfo) -> Any:
        # What is commented out below a key leaves it with nothing.
        if value is None:
            raise ValueError(
                f"{info.field_name} must hold something, got nothing; "
                "write {} for the usual values, or leave it out"
            )
        return value
