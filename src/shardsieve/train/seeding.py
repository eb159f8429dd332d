"""Score the seed subset by training on it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet
from shardsieve.order import random_bits
from shardsieve.scores.recorded import SeedScore
from shardsieve.selection import keep_random
from shardsieve.store.layout import checked_name
from shardsieve.store.store import Store
from shardsieve.strata import keep_class_balanced
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import save_network
from shardsieve.train.fresh import fresh_model
from shardsieve.train.images import fixed_size, normalised
from shardsieve.train.labels import count_classes, identity_of
from shardsieve.train.launch import let_go, on_main
from shardsieve.train.loading import check_augmenting, make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.machines import enter_run, on_all
from shardsieve.train.nets import check_size
from shardsieve.train.progress import Progress
from shardsieve.train.recorder import Recorder, Watcher
from shardsieve.train.runfolder import RESULT, RunFolder
from shardsieve.train.seedscores import (
    add_scores,
    check_names,
    check_specs,
    put_seed_scores,
    signals_for,
)
from shardsieve.train.splits import check_layout, snapshot_epochs


def draw_seeds(
    store: Store, fraction: float, *, seed: int = 0, per_class: bool = False
) -> NDArray[np.int64]:
    """Return the ids of a seed subset, ascending: uniform, or the same share of every class.

    Raises:
        ValueError: If the fraction lies outside `(0, 1]` or draws nothing.
    """
    check_layout(seeds=fraction)
    if per_class:
        lots = random_bits(len(store), seed, 0x5EED).astype(np.float64)
        rows = keep_class_balanced(lots, store.labels(), fraction)
    else:
        rows = keep_random(len(store), fraction, seed=seed)
    if not len(rows):
        raise ValueError(f"seeds must draw a sample, got {fraction} of {len(store)}; draw more")
    return store.ids()[rows]


def with_known_images(store: Store, config: TrainConfig) -> TrainConfig:
    """Return the settings with size and channels filled in from the store's first sample."""
    size, channels = fixed_size(store, config.size, config.channels)
    return replace(config, size=size, channels=channels)


def known_task(
    store: Store, config: TrainConfig, *, ids: NDArray[np.int64] | None = None
) -> tuple[int, TrainConfig]:
    """Return the number of classes and the settings with what the first image tells.

    Raises:
        ShardsieveError: As `count_classes`, which is given `ids`, and as `check_augmenting`.
        ValueError: As `check_augmenting`.
    """
    classes = count_classes(store, config.pseudo_labels, ids=ids)
    known = with_known_images(store, config)
    least = min([known.size or 1, *(pixels for _, pixels in known.resolutions)])
    check_size(known.model, least)
    check_augmenting(store, known)
    return classes, known


def score_seeds(
    store: Store,
    seeds: NDArray[np.int64],
    config: TrainConfig,
    *,
    folder: str | Path,
    name: str = "seed",
    window: int = 10,
    scores: Sequence[str] | None = None,
    clean_pass: bool = False,
    held_out: NDArray[np.int64] | None = None,
    snapshots: int = 1,
    adversary: Adversary | None = None,
    checkpoint_steps: int = 0,
    accelerator: Accelerator,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on the seed subset, save its dynamics, and store scores of the seeds.

    Writes `dynamics/NAME` and the scores `NAME_dyn_unc`, `NAME_tdds`, `NAME_el2n` and so on, NaN
    for the rest; leaves the network in the folder's `model.pt`. Started again after a kill it goes
    on from the last checkpoint, also inside an epoch; when it is done it trains no more, and only
    computes scores that are not stored yet.

    Seeds held out of training are watched by a clean pass after every epoch: what the network says
    of them is not memorised. Their dynamics and scores stand under `NAME_held_out`.

    Args:
        store: Open for writing.
        seeds: int64 (m,), sample ids to train on.
        config: Of the seed run.
        folder: Of the run; it must be free or hold this very run.
        name: Of the dynamics, and prefix of the scores.
        window: J of the windowed scores, less than the epochs.
        scores: What to store, as in `shardsieve.scores.from_signals`; None stores every score that
            the signals allow. `grand_last_layer` needs a model that ends in a linear layer.
        clean_pass: Record a second, undisturbed forward pass instead of the training one.
        held_out: int64, sample ids to hold out, others than the seeds; see `hold_out`.
        snapshots: Networks to leave in the folder, the last and so many less one before it.
        adversary: Train on attacked images and record its kind of predictions.
        checkpoint_steps: Steps between checkpoints inside an epoch; 0 makes one per epoch.
        accelerator: From `make_accelerator`.
        progress: Called with steps done, steps in all, and what was read.

    Returns:
        The result: steps, samples, seconds, bytes, and seeds trained on.

    Raises:
        ShardsieveError: If labels are missing or all alike, or the folder holds another run.
        ValueError: If there are too few epochs for the window, or a score is unknown.
    """
    checked_name(name)
    scored = _check_scores(config, window, scores, clean_pass, adversary)
    num_classes, config = on_all(accelerator, lambda: _several_classes(store, config))
    kept_epochs = set(snapshot_epochs(config.epochs, snapshots)) - {config.epochs}
    keep, run = KeepSet.from_ids(store, seeds), RunFolder(folder)
    identity: dict[str, Any] = {"kind": "score", "store": store.fingerprint, "seeds": keep.digest}
    identity |= {"name": name, "window": window, "clean_pass": clean_pass, **config.to_dict()}
    identity |= identity_of(store, config.pseudo_labels)
    # Named only where they are used, so that runs of earlier releases go on.
    if held_out is not None:
        identity["held_out"] = KeepSet.from_ids(store, held_out).digest
    identity |= {"snapshots": snapshots} if snapshots > 1 else {}
    identity |= {"adversary": adversary.to_dict()} if adversary is not None else {}
    watched = {name: seeds}
    if held_out is not None:
        watched[f"{name}_held_out"] = held_out
    finished = enter_run(accelerator, run, identity)
    if finished is not None and watched.keys() <= set(on_main(accelerator, lambda: store.dynamics)):
        how: dict[str, Any] = {"window": window}
        on_main(accelerator, lambda: [add_scores(store, one, scores, **how) for one in watched])
        return finished
    on_main(accelerator, lambda: check_names(store, watched, scored))
    model = fresh_model(config, num_classes, accelerator, recorded=True)
    how = {"folder": run, "checkpoint_steps": checkpoint_steps}
    trainer = Trainer(model, store, keep, config, accelerator, adversary=adversary, **how)
    on_main(accelerator, lambda: run.claim(identity))
    recorders = {
        one: Recorder(ids, num_classes, signals=signals_for(scores)) for one, ids in watched.items()
    }
    marks: dict[str, Any] = {"clean_pass": clean_pass, "kept_epochs": kept_epochs}
    _train(trainer, store, run, recorders, **marks, progress=progress)
    result = _result(trainer, len(keep))
    told = _beside(trainer, progress, "score")

    def finish() -> None:
        made = _made(config, keep, clean_pass, adversary)
        made |= {"steps": result["steps"], "cost": result["cost"]}
        for one, recorder in recorders.items():
            recorder.made = made if one == name else made | {"view": "held out"}
            recorder.save(store, one)
            put_seed_scores(store, one, recorder, scores, window=window, progress=told)
        save_network(run, trainer.network, config, num_classes)
        run.write_json(RESULT, result)
        run.forget_checkpoints()

    on_main(accelerator, finish)
    accelerator.wait_for_everyone()
    return result


def _several_classes(store: Store, config: TrainConfig) -> tuple[int, TrainConfig]:
    classes, known = known_task(store, config)
    if classes < 2:
        raise ShardsieveError(
            f"labels must tell at least 2 classes apart, got 0 for every sample of {store.path}; "
            "name the member that holds them with `shardsieve index --label-member`"
        )
    return classes, known


def _check_scores(
    config: TrainConfig,
    window: int,
    scores: Sequence[str] | None,
    clean_pass: bool,
    adversary: Adversary | None,
) -> list[SeedScore]:
    """Return the scores to make; refuse what could only fail after the training."""
    signals = signals_for(scores)
    made = check_specs(config.epochs, window, scores)
    if adversary is not None and clean_pass:
        raise ValueError(
            "clean_pass must not come with an adversary, got both; "
            "record its clean predictions with predictions='clean'"
        )
    if adversary is not None and "grand" in signals:
        raise ValueError("grand_last_layer must come without an adversary, got both")
    return made


def _made(
    config: TrainConfig, keep: KeepSet, clean_pass: bool, adversary: Adversary | None
) -> dict[str, Any]:
    paradigm = "supervised" if config.pseudo_labels is None else "unsupervised"
    made: dict[str, Any] = {"paradigm": paradigm, "model": config.model}
    made |= {"epochs": config.epochs, "seeds": len(keep), "seeds_digest": keep.digest}
    made |= {"seed": config.seed, "view": "clean" if clean_pass else "training"}
    if adversary is not None:
        made |= {"paradigm": "adversarial", "view": adversary.predictions}
        made["adversary"] = adversary.to_dict()
    return made | {"training": config.to_dict()}


def _train(
    trainer: Trainer,
    store: Store,
    run: RunFolder,
    recorders: Mapping[str, Recorder],
    *,
    clean_pass: bool,
    kept_epochs: set[int],
    progress: Progress | None,
) -> None:
    """Train; the first recorder watches the training unless there is a clean pass for it too."""
    config, first = trainer.config, next(iter(recorders))
    told = _beside(trainer, progress, "clean pass: batch")
    for name, recorder in recorders.items():
        if name in trainer.extra:
            recorder.load_state_dict(trainer.extra[name])
    trainer.remember = lambda: {name: one.state_dict() for name, one in recorders.items()}
    clean = {}
    for name, recorder in recorders.items():
        if clean_pass or name != first:
            samples = KeepSet.from_ids(store, recorder.ids)
            loader = make_loader(store, samples, config, in_order=True)[0]
            seen = Cost(forward=len(samples), nbytes=samples.nbytes(store))
            clean[name] = trainer.accelerator.prepare(loader), seen
    with ExitStack() as stack:
        stack.callback(let_go, trainer.accelerator, *(loader for loader, _ in clean.values()))
        watchers = {
            # A clean pass asks the network that is saved, which may be an average.
            name: stack.enter_context(
                Watcher(recorder, trainer.network if name in clean else trainer.stepper.bare)
            )
            for name, recorder in recorders.items()
        }
        for epoch in trainer.epochs(None if clean_pass else watchers[first], progress):
            for name, (loader, seen) in clean.items():
                begin = time.perf_counter()
                _watch(trainer, loader, watchers[name], told)
                trainer.done.evaluation += seen + trainer.spent(begin)
            for recorder in recorders.values():
                recorder.end_epoch()
            if epoch + 1 in kept_epochs and trainer.accelerator.is_main_process:
                classes = recorders[first].num_classes
                save_network(run, trainer.network, config, classes, epoch=epoch + 1)


def _watch(
    trainer: Trainer, loader: Any, watcher: Watcher, told: Callable[[int, int], None]
) -> None:
    model = trainer.stepper.evaluated().eval()
    with torch.inference_mode(), trainer.accelerator.autocast():
        for number, batch in enumerate(loader, start=1):
            images = normalised(batch.images, trainer.config.normalise)
            watcher.record(batch.ids, model(images), batch.labels)
            told(number, len(loader))


def _beside(trainer: Trainer, progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Return what says how far something else is while the steps stand still."""

    def told(done: int, total: int) -> None:
        if progress:
            progress(trainer.done.steps, trainer.planned, f"{what} {done} of {total}")

    return told


def _result(trainer: Trainer, seeds: int) -> dict[str, Any]:
    cost = trainer.done.training + trainer.done.evaluation
    return {
        "steps": trainer.done.steps,
        "samples": trainer.done.samples,
        "seconds": round(cost.seconds, 3),
        "bytes": cost.nbytes,
        "seeds": seeds,
        "unreadable": trainer.unreadable(),
        "cost": cost.to_dict(),
    }
