"""Commands that train or run a network; each works alone and under `accelerate launch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardsieve.commands.progress import bar
from shardsieve.keepset import select
from shardsieve.store.store import Store, open_store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder
from shardsieve.train.launch import make_accelerator
from shardsieve.train.seeding import count_classes, draw_seeds, score_seeds
from shardsieve.train.subset import train_subset


def runs_of(store: Path) -> Path:
    """Return the folder beside a store that holds its runs."""
    return store.with_name(store.name + ".runs")


def score_store(
    path: Path,
    config: TrainConfig,
    *,
    seed_fraction: float,
    per_class: bool,
    window: int,
    clean_pass: bool,
    folder: Path | None,
    name: str = "seed",
    scores: Sequence[str] | None = None,
    adversary: Adversary | None = None,
    checkpoint_steps: int = 0,
) -> dict[str, Any]:
    """Train on the seed subset and store its scores."""
    store = open_store(path)
    accelerator = make_accelerator(precision=config.precision)
    seeds = draw_seeds(store, seed_fraction, seed=config.seed, per_class=per_class)
    folder = folder or runs_of(path) / name
    with bar("score", shown=accelerator.is_main_process) as progress:
        result = score_seeds(
            store,
            seeds,
            config,
            folder=folder,
            name=name,
            window=window,
            scores=scores,
            clean_pass=clean_pass,
            adversary=adversary,
            checkpoint_steps=checkpoint_steps,
            accelerator=accelerator,
            progress=progress,
        )
    return {"run": str(folder), **result, "scores": " ".join(_scores_of(store, name))}


def embed_store(
    path: Path,
    *,
    model: str | None,
    weights: Path | None = None,
    name: str,
    size: int | None = None,
    channels: int | None = None,
    batch_size: int = 256,
    max_unreadable: int = 0,
    precision: str = "no",
) -> dict[str, Any]:
    """Embed every sample with the seed run's network, or with another one."""
    store = open_store(path)
    accelerator = make_accelerator(precision=precision)
    model = model or str(runs_of(path) / "seed")
    classes = count_classes(store) if weights is None and ":" not in model else 1000
    encoder = load_encoder(model, weights=weights, num_classes=classes, channels=channels)
    with bar("embed", shown=accelerator.is_main_process) as progress:
        embedded = embed(
            store,
            encoder.network,
            name=name,
            size=size or encoder.size,
            channels=channels or encoder.channels,
            batch_size=batch_size,
            max_unreadable=max_unreadable,
            accelerator=accelerator,
            progress=progress,
        )
    dim = store.embedding_array(name).shape[-1]
    return {"embedding": name, "dim": dim, "samples": len(store), "embedded_now": embedded}


def train_store(
    path: Path,
    config: TrainConfig,
    *,
    out: Path,
    rule: dict[str, Any],
    test: Path | None,
    evaluate_every: int,
    checkpoint_steps: int,
) -> dict[str, Any]:
    """Train on what a rule keeps."""
    store = open_store(path, mode="r")
    keep = select(store, **rule)
    accelerator = make_accelerator(out / "logs", precision=config.precision)
    with bar("train", shown=accelerator.is_main_process) as progress:
        return train_subset(
            store,
            keep,
            config,
            folder=out,
            accelerator=accelerator,
            test=open_store(test, mode="r") if test else None,
            evaluate_every=evaluate_every,
            checkpoint_steps=checkpoint_steps,
            progress=progress,
        )


def _scores_of(store: Store, run: str) -> list[str]:
    return [name for name in store.scores if name.startswith(f"{run}_")]
