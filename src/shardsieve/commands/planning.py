"""The `plan` command: what a pruned training would cost, before anything is started."""

import math
from pathlib import Path
from typing import Any

from shardsieve.cost import Plan
from shardsieve.selection import num_kept
from shardsieve.store.store import open_store


def describe_plan(
    plan: Plan, *, samples: int | None = None, seconds_per_epoch: float | None = None
) -> dict[str, Any]:
    """Return a plan's costs, JSON-ready; no store is needed.

    Args:
        plan: What is planned.
        samples: In the data set; adds counts.
        seconds_per_epoch: Of training on everything, on all devices; adds hours.
    """
    # Scores of a training on everything would be shared by as many runs.
    even, full_scores = plan.break_even, (1 / plan.runs + plan.keep) * plan.epochs
    made: dict[str, Any] = {
        "epochs_over_everything": {
            "scoring": round(plan.scoring, 4),
            "embedding": round(plan.embedding, 4),
            "extrapolation": round(plan.extrapolation / plan.runs, 4),
            "training": round(plan.keep * plan.epochs, 4),
            "total": round(plan.total, 4),
            "full_run": plan.epochs,
        },
        "saved_fraction": round(1 - plan.total / plan.epochs, 4),
        "times_faster_than_full_run": round(plan.epochs / plan.total, 3),
        "times_faster_than_scoring_everything": round(full_scores / plan.total, 3),
        "break_even_keep_fraction": None if even is None else round(even, 4),
        "verdict": _verdict(plan),
    }
    if samples is not None:
        made["samples"] = _counts(plan, samples)
    if seconds_per_epoch is not None:
        hours = {"total": plan.total, "full_run": float(plan.epochs)}
        made["hours"] = {k: round(v * seconds_per_epoch / 3600, 3) for k, v in hours.items()}
    return made


def plan_store(plan: Plan, path: Path | None, seconds_per_epoch: float | None) -> dict[str, Any]:
    """Return `describe_plan`, with the sample count of a store if there is one."""
    if seconds_per_epoch is not None and not 0 < seconds_per_epoch < math.inf:
        raise ValueError(f"seconds_per_epoch must be above 0, got {seconds_per_epoch}")
    samples = len(open_store(path, mode="r")) if path is not None else None
    return describe_plan(plan, samples=samples, seconds_per_epoch=seconds_per_epoch)


def _counts(plan: Plan, samples: int) -> dict[str, int]:
    seeds = num_kept(samples, plan.seeds) if plan.seeds else 0
    kept = num_kept(samples, plan.keep)
    scoring = seeds * (plan.score_epochs or plan.epochs)
    return {
        "all": samples,
        "seeds": seeds,
        "kept": kept,
        "trained_on_for_scores": scoring,
        "embedded": samples if plan.embeds else 0,
        "trained_on": kept * plan.epochs,
        "full_run": samples * plan.epochs,
    }


def _verdict(plan: Plan) -> str:
    even = plan.break_even
    if even is None:
        return "scoring alone costs more than the full run; use fewer seeds or a random subset"
    if plan.keep < even:
        return f"saves time: keep {plan.keep} is below the break-even of {even:.3f}"
    return f"saves nothing: keep {plan.keep} is not below the break-even of {even:.3f}"
