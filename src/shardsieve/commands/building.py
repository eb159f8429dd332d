"""The whole way from shards to a score of every sample, resumable at any point."""

from pathlib import Path
from typing import Any

from shardsieve.commands.extrapolating import (
    check_extrapolation,
    extrapolate_score,
    refuse_other_prediction,
)
from shardsieve.commands.making import make_index
from shardsieve.commands.methods import ON_SIGNALS, check_tried, usual_k
from shardsieve.commands.training import embed_store, score_store
from shardsieve.selection import num_kept
from shardsieve.store.store import open_store
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator, on_main
from shardsieve.train.machines import check_shared
from shardsieve.train.nets import check_model
from shardsieve.train.seedscores import check_specs
from shardsieve.train.splits import check_layout

FOLDS = 5
SCORES = ("dyn_unc", "tdds", "el2n")
USUAL_ON_SIGNALS: dict[str, Any] = {"held_out": 0.1, "snapshots": 4}


def build_store(
    urls: list[str],
    path: Path,
    config: TrainConfig,
    *,
    seed_fraction: float,
    per_class: bool = False,
    window: int = 10,
    clean_pass: bool = False,
    label_member: str | None = None,
    method: str = "knn",
    k: int | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Index, score the seeds, embed and extrapolate; what is done is not done again.

    Args:
        urls: Shards.
        path: Of the store.
        config: Of the seed run.
        seed_fraction: As in `score_store`, like the following three.
        per_class: See there.
        window: See there.
        clean_pass: See there.
        label_member: As in `index`.
        method: One of `METHODS`.
        k: Neighbours; None takes `usual_k`.
        **how: `held_out`, `snapshots`, `match_steps_of` and `ceiling` of `score_store`; a method on
            signals holds out a tenth of the seeds and keeps 4 networks unless told otherwise.

    Returns:
        What each step returned; `extrapolate` by score.
    """
    k = usual_k(method) if k is None else k
    check_extrapolation(method, k=k, weights="exp", folds=FOLDS, seed_scores="measured")
    usual = USUAL_ON_SIGNALS if method in ON_SIGNALS else {}
    how = usual | {name: value for name, value in how.items() if value is not None}
    layout = {name: value for name, value in how.items() if name != "ceiling"}
    check_layout(seeds=seed_fraction, **layout)
    check_model(config.model)
    check_specs(config.epochs, window, None, match_steps_of=how.get("match_steps_of"))
    accelerator = make_accelerator(precision=config.precision)
    result: dict[str, Any] = {}
    check_shared(accelerator, {"store": path})
    result["index"] = on_main(accelerator, lambda: make_index(urls, path, label_member))
    store = open_store(path, mode="r")
    drawn = num_kept(len(store), seed_fraction)
    check_tried(method, FOLDS, drawn=drawn, held_out=how.get("held_out", 0.0))
    for name in SCORES:
        made = {"source": f"seed_{name}", "embedding": "seed", "method": method, "k": k}
        refuse_other_prediction(store, name, made)
    draw: dict[str, Any] = {"seed_fraction": seed_fraction, "per_class": per_class}
    result["score"] = score_store(
        path, config, **draw, window=window, clean_pass=clean_pass, folder=None, **how
    )
    result["embed"] = embed_store(
        path,
        model=None,
        name="seed",
        max_unreadable=config.max_unreadable,
        precision=config.precision,
        workers=config.workers,
    )
    result["extrapolate"] = {
        name: extrapolate_score(path, f"seed_{name}", name, "seed", method=method, k=k, folds=FOLDS)
        for name in SCORES
    }
    result["scores"] = open_store(path).scores
    accelerator.wait_for_everyone()
    return result
