"""What work took, and what pruning saves when all of it is counted. Pure functions."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

FORWARD_SHARE = 1 / 3
"""A forward pass over a training step: the backward pass costs about twice as much."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one phase took, over all ranks and starts.

    Attributes:
        forward: Samples sent through the network, as often as they were: an attack sends each
            several times.
        backward: Of these, samples whose gradients were computed.
        seconds: Of wall time.
        device_seconds: Seconds times processes.
        nbytes: Bytes of the samples in their shards.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    nbytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = asdict(self), asdict(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})

    def times(self, factor: float) -> "Cost":
        """Return this work so many times over, counts rounded."""
        counts = {k: round(factor * getattr(self, k)) for k in ("forward", "backward", "nbytes")}
        spent = {k: factor * getattr(self, k) for k in ("seconds", "device_seconds")}
        return Cost(**counts, **spent)  # type: ignore[arg-type]

    @property
    def trained(self) -> float:
        """The work in samples trained on: a sample only sent forward counts a third.

        >>> Cost(forward=5, backward=2).trained
        3.0
        """
        return self.backward + FORWARD_SHARE * (self.forward - self.backward)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-ready."""
        rounded = {k: round(getattr(self, k), 3) for k in ("seconds", "device_seconds")}
        return {"forward": self.forward, "backward": self.backward, **rounded, "bytes": self.nbytes}

    @classmethod
    def timed(cls, seconds: float, processes: int = 1) -> Self:
        """Return the cost of time alone."""
        return cls(seconds=seconds, device_seconds=seconds * processes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the cost that `to_dict` wrote."""
        return cls(nbytes=values["bytes"], **{k: v for k, v in values.items() if k != "bytes"})


NO_COST = Cost()


def account(
    phases: Mapping[str, Cost], full: Cost, *, full_is_measured: bool, keep_fraction: float
) -> dict[str, Any]:
    """Return the ledger of a run beside the run on everything.

    Args:
        phases: By name, `training` among them.
        full: What the same training on everything took, or would take.
        full_is_measured: Whether it was run.
        keep_fraction: Share of the samples that the training saw.

    Returns:
        JSON-ready: `phases`, `total`, `full_run` and what was saved of it. The break-even keep
        fraction is where training costs just what the other phases leave of the full run's device
        seconds; `None` if they leave nothing, or no seconds were measured.
    """
    total = sum(phases.values(), NO_COST)
    overhead = total.device_seconds - phases["training"].device_seconds
    left = 1 - overhead / full.device_seconds if full.device_seconds else 0.0
    per_share = phases["training"].device_seconds / keep_fraction
    even = left * full.device_seconds / per_share if per_share and left > 0 else None
    return {
        "phases": {name: cost.to_dict() for name, cost in phases.items()},
        "total": total.to_dict(),
        "full_run": {"measured": full_is_measured, **full.to_dict()},
        "saved": {
            "trained_samples": round(full.trained - total.trained),
            "trained_samples_fraction": _share(full.trained - total.trained, full.trained),
            "device_seconds": round(full.device_seconds - total.device_seconds, 3),
            "device_seconds_fraction": _share(
                full.device_seconds - total.device_seconds, full.device_seconds
            ),
        },
        "break_even_keep_fraction": None if even is None else round(min(even, 1.0), 4),
    }


def estimated_full(training: Cost, trained_on: int, everything: int) -> Cost:
    """Return what training on everything would take: as much per sample as was measured.

    Args:
        training: Of the pruned run.
        trained_on: Samples that it trained on, over all epochs.
        everything: Samples that the full run would train on.
    """
    return training.times(everything / trained_on) if trained_on else NO_COST


@dataclass(frozen=True, slots=True)
class Plan:
    """A pruned training before anything is started, in epochs over all samples.

    `cost = (seeds * score_epochs + 1/3 + extrapolation) / runs + keep * epochs`: train on the seed
    subset, send everything forward once, extrapolate, train on what is kept.

    Attributes:
        seeds: Seed fraction, in `[0, 1]`; 0 scores nothing, 1 everything, so that nothing is
            predicted: neither embeds.
        keep: Keep fraction, in `(0, 1]`.
        epochs: Of the final training.
        score_epochs: Of the seed run; None means as many.
        extrapolation: What the neighbour search takes, in epochs; must be measured.
        runs: Trainings that share the scores.
    """

    seeds: float
    keep: float
    epochs: int
    score_epochs: int | None = None
    extrapolation: float = 0.0
    runs: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seeds <= 1:
            raise ValueError(f"seeds must lie in [0, 1], got {self.seeds}; 0.2 is usual")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {self.keep}; 0.5 keeps half")
        for name, least in (("epochs", 1), ("runs", 1), ("extrapolation", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.score_epochs is not None and self.score_epochs < 1:
            raise ValueError(f"score_epochs must be at least 1, got {self.score_epochs}")

    @property
    def scoring(self) -> float:
        """Epochs spent on the seed run, per final training."""
        return self.seeds * (self.score_epochs or self.epochs) / self.runs

    @property
    def embeds(self) -> bool:
        """Whether there is anything to predict."""
        return 0 < self.seeds < 1

    @property
    def embedding(self) -> float:
        """Epochs spent on the pass over everything, per final training.

        >>> Plan(seeds=1, keep=0.5, epochs=90, score_epochs=15).embedding
        0.0
        """
        return FORWARD_SHARE / self.runs if self.embeds else 0.0

    @property
    def total(self) -> float:
        """Epochs in all.

        >>> round(Plan(seeds=0.2, keep=0.5, epochs=50).total, 2)
        35.33
        """
        shared = self.scoring + self.embedding + self.extrapolation / self.runs
        return shared + self.keep * self.epochs

    @property
    def break_even(self) -> float | None:
        """The keep fraction at which nothing is saved; None if scoring alone costs too much.

        >>> round(Plan(seeds=0.2, keep=0.5, epochs=50).break_even, 3)
        0.793
        """
        left = 1 - (self.total - self.keep * self.epochs) / self.epochs
        return left if left > 0 else None


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
