"""Commands that train or run a network; each works alone and under `accelerate launch`."""

from pathlib import Path
from typing import Any

from shardsieve.commands.progress import bar
from shardsieve.keepset import KeepSet, select
from shardsieve.policy.base import Policy
from shardsieve.policy.named import make_policy
from shardsieve.store.store import Store, open_store
from shardsieve.train.config import TrainConfig
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import load_encoder
from shardsieve.train.launch import DEFAULT_TRACKERS, make_accelerator
from shardsieve.train.ledger import full_run_cost, overhead_of
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
) -> dict[str, Any]:
    """Train on the seed subset and store its scores."""
    store = open_store(path)
    accelerator = make_accelerator(precision=config.precision)
    seeds = draw_seeds(store, seed_fraction, seed=config.seed, per_class=per_class)
    folder = folder or runs_of(path) / "seed"
    with bar("score", shown=accelerator.is_main_process) as progress:
        result = score_seeds(
            store,
            seeds,
            config,
            folder=folder,
            window=window,
            clean_pass=clean_pass,
            accelerator=accelerator,
            progress=progress,
        )
    return {"run": str(folder), **result, "scores": " ".join(_seed_scores(store))}


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
            normalise=encoder.normalise,
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
    policy: dict[str, Any] | None = None,
    policy_score: str | None = None,
    test: Path | None = None,
    full_run: Path | None = None,
    evaluate_every: int = 0,
    checkpoint_steps: int = 0,
    track: tuple[str, ...] = DEFAULT_TRACKERS,
) -> dict[str, Any]:
    """Train on what a rule keeps, or on what a policy keeps.

    Args:
        path: Of the store.
        config: Settings.
        out: Folder of the run.
        rule: As in `select`; without a policy.
        policy: As in `make_policy`, with its `name`; it gets the rule's keep fraction and score.
        policy_score: As in `train_subset`.
        test: Store to evaluate on.
        full_run: Folder of the finished run on everything, for the ledger.
        evaluate_every: As in `train_subset`.
        checkpoint_steps: As in `train_subset`.
        track: As in `make_accelerator`.
    """
    store = open_store(path, mode="r+" if policy_score else "r")
    keep: KeepSet | Policy = (
        chosen_policy(policy, rule, config) if policy else select(store, **rule)
    )
    full = full_run_cost(full_run) if full_run else None
    accelerator = make_accelerator(out / "logs", precision=config.precision, track=track)
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
            policy_score=policy_score,
            overhead=overhead_of(store, rule.get("score")),
            full=full,
            progress=progress,
        )


def chosen_policy(policy: dict[str, Any], rule: dict[str, Any], config: TrainConfig) -> Policy:
    """Return the policy of a run; see `make_policy`."""
    shared = {"keep_fraction": rule.get("keep_fraction"), "score": rule.get("score")}
    return make_policy(**{**shared, **policy}, epochs=config.epochs, seed=config.seed)


def _seed_scores(store: Store) -> list[str]:
    return [name for name in store.scores if name.startswith("seed_")]
