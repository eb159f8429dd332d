"""Options that go together, declared once: a dataclass whose fields are a command's options."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from shardsieve.cli.base import refuse_unused
from shardsieve.cli.options import (
    Augment,
    BatchSize,
    Bins,
    Channels,
    ClassFloor,
    Difficulty,
    DropMissing,
    HardCutoff,
    KeepFraction,
    Model,
    Normalise,
    Precision,
    PseudoLabels,
    Rate,
    Rule,
    RuleEmbedding,
    ScoreName,
    Seed,
    Shuffle,
    Size,
    StoredKeepSet,
    Threshold,
    Unreadable,
    Workers,
)

if TYPE_CHECKING:
    from shardsieve.train.adversary import Adversary

Command = Callable[..., None]
_attack = functools.partial(typer.Option, rich_help_panel="Attack of --paradigm adversarial")


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """What is kept: the arguments of `select`."""

    keep_fraction: KeepFraction = 0.5
    score: ScoreName = None
    rule: Rule = "top"
    threshold: Threshold = None
    class_floor: ClassFloor = 0
    hard_cutoff: HardCutoff = None
    difficulty: Difficulty = None
    bins: Bins = None
    embedding: RuleEmbedding = None
    drop_missing: DropMissing = False
    keep_set: StoredKeepSet = None

    def selection(self, context: typer.Context, seed: int) -> dict[str, Any]:
        """Return the arguments of `keep_set_of`.

        Raises:
            ValueError: If something is given that decides nothing: beside a stored keep set,
                or a fraction beside a threshold.
        """
        if self.keep_set is None:
            if self.rule == "threshold":
                refuse_unused(context, "without --rule threshold", "keep_fraction")
            return {**asdict(self), "seed": seed}
        others = [name for name in options_of(self) if name != "keep_set"]
        refuse_unused(context, "without --keep-set", *others)
        return {"keep_set": self.keep_set}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a network is trained, whatever it is trained for: settings of `TrainConfig`."""

    model: Model = "light"
    batch_size: BatchSize = 64
    learning_rate: Rate = 0.1
    augment: Augment = "none"
    size: Size = None
    channels: Channels = None
    normalise: Normalise = "half"
    precision: Precision = "no"
    pseudo_labels: PseudoLabels = None
    shuffle: Shuffle = "auto"
    max_unreadable: Unreadable = 0
    workers: Workers = 0
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """How images are attacked in adversarial training: settings of `Adversary`."""

    attack: Annotated[str, _attack(help="trades or pgd")] = "trades"
    epsilon: Annotated[float, _attack(help="Largest change of a pixel.", show_default="8/255")] = (
        8 / 255
    )
    attack_step: Annotated[
        float, _attack(help="Change of a pixel per step.", show_default="2/255")
    ] = 2 / 255
    attack_steps: Annotated[int, _attack(help="Steps per image.")] = 10
    beta: Annotated[float, _attack(help="Weight beta of TRADES.")] = 5.0
    predictions: Annotated[str, _attack(help="Predictions to record: adversarial or clean")] = (
        "adversarial"
    )

    def adversary(self, paradigm: str) -> "Adversary | None":
        """Return the attack of an adversarial run; None of another.

        Raises:
            ValueError: If options are out of range, or given to another run.
        """
        if paradigm == "adversarial":
            from shardsieve.train.adversary import Adversary

            return Adversary(
                method=self.attack,
                epsilon=self.epsilon,
                step=self.attack_step,
                steps=self.attack_steps,
                beta=self.beta,
                predictions=self.predictions,
            )
        if self != AttackOptions():
            raise ValueError("options of an attack must come with --paradigm adversarial")
        return None


def options_of(group: Any) -> list[str]:
    """Return the names of a group's options."""
    return [one.name for one in fields(group)]


def grouped(command: Command) -> Command:
    """Replace every parameter that is a dataclass by the options that its fields are."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in hints if hasattr(hints[name], "__dataclass_fields__")}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        own = inspect.signature(groups[name]).parameters.values() if name in groups else [parameter]
        parameters |= {one.name: one.replace(kind=one.KEYWORD_ONLY) for one in own}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one: given.pop(one) for one in options_of(group)})
        command(**given)

    shown: Any = run
    shown.__signature__ = inspect.Signature(list(parameters.values()))
    shown.__annotations__ = {
        name: hints.get(name, one.annotation) for name, one in parameters.items()
    }
    return run
