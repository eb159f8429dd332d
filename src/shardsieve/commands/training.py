"""Commands that train or run a network; each works alone and under `accelerate launch`."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.commands.choosing import kept_by, rule_behind
from shardsieve.commands.classes import KEPT_OF_EACH, SEEDS_OF_EACH, left_out
from shardsieve.commands.progress import bar
from shardsieve.commands.texts import warned
from shardsieve.extrapolate.quality import measure
from shardsieve.keepset import KeepSet, doubt_of
from shardsieve.policy.base import Policy
from shardsieve.policy.named import named_policy
from shardsieve.rules import is_blind
from shardsieve.store.layout import checked_name
from shardsieve.store.store import Store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig, check_count, check_pass
from shardsieve.train.embedding import embed
from shardsieve.train.encoder import Encoder, load_encoder
from shardsieve.train.images import fixed_size
from shardsieve.train.labels import count_classes, labels_of
from shardsieve.train.launch import DEFAULT_TRACKERS, make_accelerator, on_main
from shardsieve.train.ledger import NOTHING, Overhead, embedding_overhead, full_run_in, overhead_of
from shardsieve.train.machines import on_all, open_together
from shardsieve.train.nets import MODELS
from shardsieve.train.seeding import draw_seeds, score_seeds
from shardsieve.train.seedscores import check_specs
from shardsieve.train.splits import hold_out, matched_epochs, matched_window
from shardsieve.train.subset import train_subset

_LOG = logging.getLogger("shardsieve")


def runs_of(store: Path) -> Path:
    """Return the folder beside a store that holds its runs."""
    return store.with_name(store.name + ".runs")


def score_store(
    path: Path,
    config: TrainConfig,
    *,
    seed_fraction: float,
    per_class: bool,
    folder: Path | None,
    name: str = "seed",
    held_out: float = 0.0,
    match_steps_of: int | None = None,
    ceiling: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """Train on the seed subset and store its scores.

    Args:
        path: Of the store.
        config: Of the seed run.
        seed_fraction: Of the samples.
        per_class: Draw the same share of every class.
        folder: Of the run; None takes `STORE.runs/NAME`.
        name: Of the run; a second one for the ceiling is `NAME_again`.
        held_out: Share of the seeds to leave out of training and try the network on.
        match_steps_of: Epochs of a full run; the seed run gets as many steps, in place of the
            configuration's epochs, and windows of as many steps as the full run's.
        ceiling: Train a second time, with another seed, and compare.
        **how: `window`, `scores`, `clean_pass`, `snapshots`, `adversary` and `checkpoint_steps` of
            `score_seeds`.
    """
    check_count("checkpoint_steps", how.get("checkpoint_steps", 0), 0)
    window, specs = how.get("window", 10), how.get("scores")
    check_specs(config.epochs, window, specs, match_steps_of=match_steps_of)
    accelerator = make_accelerator(precision=config.precision)
    store = open_together(accelerator, path)
    seeds = draw_seeds(store, seed_fraction, seed=config.seed, per_class=per_class)
    seeds, held = hold_out(seeds, held_out, seed=config.seed)
    if match_steps_of is not None:
        batch = config.batch_size * config.accumulate * accelerator.num_processes
        sizes: dict[str, int] = {"full": len(store), "seeds": len(seeds), "batch": batch}
        config = replace(config, epochs=matched_epochs(match_steps_of, **sizes))
        scale = {"epochs": config.epochs, "full_epochs": match_steps_of}
        how["window"] = matched_window(window, **scale)
    said = on_all(accelerator, lambda: warned(_without_seeds(store, seeds, config)))
    if accelerator.is_main_process:
        _tell(said)
    run = partial(score_seeds, store, seeds, held_out=held, accelerator=accelerator, **how)
    folder = folder or runs_of(path) / name
    with bar("score", shown=accelerator.is_main_process) as progress:
        result = run(config=config, folder=folder, name=name, progress=progress)
    matched = {} if match_steps_of is None else {"window": how["window"]}
    result = {"run": str(folder), "epochs": config.epochs, **matched, **result}
    if ceiling:
        second = replace(config, seed=config.seed + 1)
        where = folder.with_name(f"{folder.name}-again")
        with bar("score again", shown=accelerator.is_main_process) as progress:
            run(config=second, folder=where, name=f"{name}_again", progress=progress)
        result["ceiling"] = on_main(accelerator, lambda: put_ceilings(store, name))
    return {**result, **said, "scores": _scores_of(store, name)}


def put_ceilings(store: Store, run: str) -> dict[str, Any]:
    """Compare two seed runs' scores, and keep the figures with those of the first.

    Args:
        store: Open, with scores `RUN_...` and `RUN_again_...`.
        run: Name of the first.

    Returns:
        By score: the second one's name (`of`) and how well they agree.
    """
    ceilings = {}
    for again in _scores_of(store, f"{run}_again"):
        name = run + again.removeprefix(f"{run}_again")
        if name not in store.scores:
            continue
        first, second = store.score(name), store.score(again)
        both = np.isfinite(first) & np.isfinite(second)
        quality = measure(first[both], second[both]).to_dict()
        figures = {k: v for k, v in quality.items() if k not in ("spread", "classes")}
        ceilings[name] = {"of": again, **figures}
        made = {**store.provenance(name), "ceiling": ceilings[name]}
        store.put_score(name, first, provenance=made)
    return ceilings


def embed_store(
    path: Path,
    *,
    model: str | None,
    weights: Path | None = None,
    name: str,
    size: int | None = None,
    channels: int | None = None,
    normalise: str | None = None,
    batch_size: int = 256,
    max_unreadable: int = 0,
    precision: str = "no",
    workers: int = 0,
) -> dict[str, Any]:
    """Embed every sample with a network.

    Args:
        path: Of the store.
        model: As in `load_encoder`; None takes the network of the seed run of this name, else of
            the one named `seed`.
        weights: As in `load_encoder`.
        name: Of the embedding.
        size: As in `embed`.
        channels: As in `embed`.
        normalise: As in `embed`; None is what the run says, and `half` for another network.
        batch_size: As in `embed`.
        max_unreadable: As in `embed`.
        precision: As in `make_accelerator`.
        workers: As in `embed`.
    """
    checked_name(name)
    seen: dict[str, Any] = {"size": size, "channels": channels, "normalise": normalise}
    seen |= {
        "precision": precision,
        "batch_size": batch_size,
        "workers": workers,
        "max_unreadable": max_unreadable,
    }
    check_pass(**seen)
    accelerator = make_accelerator(precision=precision)
    store = open_together(accelerator, path)
    found = model or on_main(accelerator, lambda: _seed_run_of(path, name))
    how: dict[str, Any] = {"weights": weights, "channels": channels, "normalise": normalise}
    how["given"] = model is not None
    encoder = on_all(accelerator, lambda: _encoder_of(found, store, **how))
    if weights is None and found in MODELS and accelerator.is_main_process:
        _LOG.warning(
            "model %s embeds untrained, with the weights it was made with; give --weights, or the "
            "folder of a run",
            found,
        )
    learned = encoder.pseudo_labels
    if learned is not None and learned not in store.pseudo_label_sets:
        # Of another store: what its classes are here nobody knows.
        encoder, learned = encoder._replace(num_classes=None), None
    labels = labels_of(store, learned)
    with bar("embed", shown=accelerator.is_main_process) as progress:
        embedded = embed(
            store,
            encoder.network,
            name=name,
            classifiers=encoder.classifiers(_classes_asked(store, name, labels)),
            pseudo_labels=learned,
            seeds=encoder.seeds,
            cost=encoder.cost,
            size=size or encoder.size,
            channels=channels or encoder.channels,
            normalise=encoder.normalise,
            batch_size=batch_size,
            max_unreadable=max_unreadable,
            workers=workers,
            accelerator=accelerator,
            progress=progress,
        )
    dim = store.embedding_array(name).shape[-1]
    counts = {"dim": dim, "samples": len(store), "embedded_now": embedded}
    counts["signals_of_networks"] = _num_networks(store, name)
    return {"embedding": name, "model": found, **counts}


def _encoder_of(
    model: str,
    store: Store,
    *,
    weights: Path | None,
    channels: int | None,
    normalise: str | None,
    given: bool,
) -> Encoder:
    """Return the network to embed with; `given` by the user, or looked for among seed runs."""
    if not given and not Path(model).is_dir():
        raise ShardsieveError(
            f"no seed run at {model}; run `shardsieve score` first, or pass --model"
        )
    built_in = model in MODELS
    classes = count_classes(store) if weights is None and built_in else None
    # A run's network knows its channels; a built-in one takes the images'.
    seen = fixed_size(store)[1] if channels is None and built_in else channels
    how: dict[str, Any] = {"num_classes": classes, "channels": seen}
    encoder = load_encoder(model, weights=weights, normalise=normalise or "half", **how)
    for name, own, asked in (
        ("channels", encoder.channels, channels),
        ("normalise", encoder.normalise, normalise),
    ):
        if None not in (own, asked) and own != asked:
            raise ValueError(
                f"{name} must be {own} for the network of {model}, got {asked}; leave it out"
            )
    return encoder


def _classes_asked(store: Store, name: str, labels: NDArray[np.int64]) -> int:
    """Return how many classes networks must tell for their signals to be stored.

    Where signals are stored already their networks did when they were: classes that came with
    shards appended since are unknown to them.
    """
    return 0 if name in store.signal_tables else 1 + int(labels.max(initial=-1))


def _seed_run_of(path: Path, name: str) -> str:
    """Return the folder of the seed run of this name, else of the one named `seed`."""
    own = runs_of(path) / name
    return str(own if own.is_dir() else runs_of(path) / "seed")


def _num_networks(store: Store, name: str) -> int:
    return int(store.signal_array(name).shape[2]) if name in store.signal_tables else 0


def train_store(
    path: Path,
    config: TrainConfig,
    *,
    out: Path,
    rule: dict[str, Any],
    adversary: Adversary | None = None,
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
        rule: As in `select`, or the name of a stored `keep_set`; without a policy.
        adversary: As in `train_subset`.
        policy: As in `named_policy`; it gets the rule's keep fraction and score.
        policy_score: As in `train_subset`.
        test: Store to evaluate on.
        full_run: Folder of the finished run on everything, for the ledger.
        evaluate_every: As in `train_subset`.
        checkpoint_steps: As in `train_subset`.
        track: As in `make_accelerator`.
    """
    check_count("evaluate_every", evaluate_every, 0)
    check_count("checkpoint_steps", checkpoint_steps, 0)
    accelerator = make_accelerator(out / "logs", precision=config.precision, track=track)
    store = open_together(accelerator, path, mode="r+" if policy_score else "r")
    tested = open_together(accelerator, test, mode="r") if test else None

    def chosen() -> KeepSet | Policy:
        if not policy:
            return kept_by(store, rule)
        shared = {"keep_fraction": rule.get("keep_fraction"), "score": rule.get("score")}
        return named_policy(policy, epochs=config.epochs, seed=config.seed, **shared)

    keep = on_all(accelerator, chosen)
    full = on_main(accelerator, lambda: full_run_in(full_run) if full_run else None)
    behind = rule_behind(store, rule)
    said = on_all(accelerator, lambda: warned(doubt_of(store, behind), _lost(store, keep, config)))
    if accelerator.is_main_process:
        _tell(said)
    with bar("train", shown=accelerator.is_main_process) as progress:
        result = train_subset(
            store,
            keep,
            config,
            folder=out,
            accelerator=accelerator,
            adversary=adversary,
            test=tested,
            evaluate_every=evaluate_every,
            checkpoint_steps=checkpoint_steps,
            policy_score=policy_score,
            overhead=overhead_behind(store, keep, behind),
            full=full,
            progress=progress,
        )
    return {**said, **result}


def _without_seeds(store: Store, seeds: NDArray[np.int64], config: TrainConfig) -> str | None:
    """Return the warning about classes of which no seed is trained on."""
    return _left_out(store, seeds, SEEDS_OF_EACH, config.pseudo_labels)


def _lost(store: Store, keep: KeepSet | Policy, config: TrainConfig) -> str | None:
    """Return the warning about classes of which a static keep set has nothing."""
    if isinstance(keep, Policy):
        return None
    return _left_out(store, keep.ids(), KEPT_OF_EACH, config.pseudo_labels)


def _left_out(
    store: Store, ids: NDArray[np.int64], cure: str, pseudo_labels: str | None
) -> str | None:
    labels = labels_of(store, pseudo_labels)
    return left_out(store, labels, ids, cure, pseudo_labels=pseudo_labels)


def _tell(said: dict[str, str]) -> None:
    """Warn before hours go by, and not only with the result."""
    for warning in said.values():
        _LOG.warning("%s", warning)


def overhead_behind(store: Store, keep: KeepSet | Policy, rule: dict[str, Any]) -> Overhead:
    """Return what was spent on the scores or embedding that the choice really goes by."""
    if isinstance(keep, Policy):
        given = keep.settings()
        return overhead_of(store, given.get("prior") or given.get("score"))
    if rule.get("rule") == "moderate":
        return embedding_overhead(store, store.embedding_name(rule.get("embedding")))
    if is_blind(rule.get("rule", ""), rule.get("drop_missing", False)):
        return NOTHING
    return overhead_of(store, rule.get("score"), rule.get("difficulty"))


def _scores_of(store: Store, run: str) -> list[str]:
    return [name for name in store.scores if name.startswith(f"{run}_")]
