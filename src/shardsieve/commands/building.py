"""The whole way from shards to a score of every sample, resumable at any point."""

from pathlib import Path
from typing import Any

from shardsieve.commands.making import extrapolate_score, make_index
from shardsieve.commands.training import embed_store, score_store
from shardsieve.store.store import open_store
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import make_accelerator

SCORES = ("dyn_unc", "tdds", "el2n")


def build_store(
    urls: list[str],
    path: Path,
    config: TrainConfig,
    *,
    seed_fraction: float,
    per_class: bool = False,
    window: int = 10,
    clean_pass: bool = False,
    label_member: str = "cls",
    k: int = 50,
) -> dict[str, Any]:
    """Index, score the seeds, embed and extrapolate; what is done is not done again.

    Returns:
        What each step returned; `extrapolate` by score.
    """
    accelerator = make_accelerator(precision=config.precision)
    result: dict[str, Any] = {}
    if accelerator.is_main_process:
        result["index"] = make_index(urls, path, label_member)
    accelerator.wait_for_everyone()
    draw: dict[str, Any] = {"seed_fraction": seed_fraction, "per_class": per_class}
    result["score"] = score_store(
        path, config, **draw, window=window, clean_pass=clean_pass, folder=None
    )
    result["embed"] = embed_store(
        path, model=None, name="seed", max_unreadable=config.max_unreadable
    )
    if accelerator.is_main_process:
        result["extrapolate"] = {
            name: extrapolate_score(path, f"seed_{name}", name, "seed", k=k) for name in SCORES
        }
        result["scores"] = open_store(path).scores
    accelerator.wait_for_everyone()
    return result
