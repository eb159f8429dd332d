"""Score the seed subset by training on it."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import nn

from shardsieve._errors import ShardsieveError
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet
from shardsieve.order import random_bits
from shardsieve.scores import dynamic_uncertainty, tdds_from_divergence
from shardsieve.selection import keep_random, keep_stratified
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import save_network
from shardsieve.train.images import fixed_size, normalised
from shardsieve.train.loading import make_loader
from shardsieve.train.loop import Trainer
from shardsieve.train.nets import load_model
from shardsieve.train.progress import Progress
from shardsieve.train.recorder import Recorder
from shardsieve.train.runfolder import RESULT, RunFolder
from shardsieve.train.splits import snapshot_epochs


def draw_seeds(
    store: Store, fraction: float, *, seed: int = 0, per_class: bool = False
) -> NDArray[np.int64]:
    """Return the ids of a seed subset, ascending: uniform, or the same share of every class."""
    if per_class:
        lots = random_bits(len(store), seed, 0x5EED).astype(np.float64)
        rows = keep_stratified(lots, store.labels(), fraction)
    else:
        rows = keep_random(len(store), fraction, seed=seed)
    return store.ids()[rows]


def with_known_images(store: Store, config: TrainConfig) -> TrainConfig:
    """Return the settings with size and channels filled in from the store's first sample."""
    if config.size is not None and config.channels is not None:
        return config
    size, channels = fixed_size(store)
    return replace(config, size=config.size or size, channels=config.channels or channels)


def count_classes(store: Store) -> int:
    """Return the number of classes: the largest label plus one.

    Raises:
        ShardsieveError: If a sample has no label.
    """
    labels = store.labels()
    missing = int((labels < 0).sum())
    if missing:
        raise ShardsieveError(
            f"{missing} of {len(labels)} samples of {store.path} have no label; pack them with a "
            "`cls` member, or name the member with `shardsieve index --label-member`"
        )
    return int(labels.max()) + 1


def score_seeds(
    store: Store,
    seeds: NDArray[np.int64],
    config: TrainConfig,
    *,
    folder: str | Path,
    name: str = "seed",
    window: int = 10,
    clean_pass: bool = False,
    held_out: NDArray[np.int64] | None = None,
    snapshots: int = 1,
    accelerator: Accelerator,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on the seed subset, save its dynamics, and store three seed scores.

    Writes `dynamics/NAME` and the scores `NAME_dyn_unc`, `NAME_tdds` and `NAME_el2n` (mean error
    norm over all epochs), NaN for the rest; leaves the network in the folder's `model.pt`. Started
    again after a kill it goes on from the last finished epoch; when it is done it does nothing.

    Seeds held out of training are watched by a clean pass after every epoch: what the network says
    of them is not memorised. Their dynamics and scores stand under `NAME_held_out`.

    Args:
        store: Open for writing.
        seeds: int64 (m,), sample ids to train on.
        config: Of the seed run.
        folder: Of the run; it must be free or hold this very run.
        name: Of the dynamics, and prefix of the scores.
        window: J of Dynamic Uncertainty and TDDS, less than the epochs.
        clean_pass: Record a second, undisturbed forward pass instead of the training one.
        held_out: int64, sample ids to hold out, others than the seeds; see `hold_out`.
        snapshots: Networks to leave in the folder, the last and so many less one before it.
        accelerator: From `make_accelerator`.
        progress: Called with (steps done, steps in all).

    Returns:
        The result: steps, samples, seconds, bytes, and seeds trained on.

    Raises:
        ShardsieveError: If labels are missing or the folder holds another run.
        ValueError: If there are too few epochs for the window.
    """
    if window < 3:
        raise ValueError(f"window must be at least 3 for TDDS, got {window}; 10 is usual")
    if config.epochs <= window:
        raise ValueError(
            f"epochs must be more than window={window}, got {config.epochs}; train longer or "
            "pass a smaller window"
        )
    num_classes, config = count_classes(store), with_known_images(store, config)
    kept_epochs = set(snapshot_epochs(config.epochs, snapshots))
    keep, run = KeepSet.from_ids(store, seeds), RunFolder(folder)
    identity: dict[str, Any] = {"kind": "score", "store": store.fingerprint, "seeds": keep.digest}
    identity |= {"name": name, "window": window, "clean_pass": clean_pass, **config.to_dict()}
    # Named only where they are used, so that runs of earlier releases go on.
    if held_out is not None:
        identity["held_out"] = KeepSet.from_ids(store, held_out).digest
    identity |= {"snapshots": snapshots} if snapshots > 1 else {}
    run.refuse_another(identity)
    finished = run.result()
    if finished is not None and f"{name}_dyn_unc" in store.scores:
        return finished
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.claim(identity)
    recorders = {name: Recorder(seeds, num_classes)}
    if held_out is not None:
        recorders[f"{name}_held_out"] = Recorder(held_out, num_classes)
    trainer = _train(
        store,
        keep,
        config,
        accelerator,
        run,
        recorders,
        clean_pass=clean_pass,
        kept_epochs=kept_epochs,
        progress=progress,
    )
    result = _result(trainer, len(keep))
    if accelerator.is_main_process:
        made: dict[str, Any] = {"model": config.model, "epochs": config.epochs}
        made |= {"steps": result["steps"], "seeds": len(keep), "seed": config.seed}
        made["cost"] = result["cost"]
        for one, recorder in recorders.items():
            recorder.save(store, one)
            view = "held out" if one != name else "clean" if clean_pass else "training"
            _put_scores(store, one, recorder, window, {**made, "view": view})
        save_network(run, trainer.network, config, num_classes)
        run.write_json(RESULT, result)
        run.forget_checkpoints()
    accelerator.wait_for_everyone()
    return result


def _train(
    store: Store,
    keep: KeepSet,
    config: TrainConfig,
    accelerator: Accelerator,
    run: RunFolder,
    recorders: dict[str, Recorder],
    *,
    clean_pass: bool,
    kept_epochs: set[int],
    progress: Progress | None,
) -> Trainer:
    set_seed(config.seed)
    first, *held_out = recorders
    num_classes = recorders[first].num_classes
    model = load_model(config.model, num_classes, config.channels or 3)
    trainer = Trainer(model, store, keep, config, accelerator, folder=run)
    states = dict(zip(recorders, ("recorder", "held_out"), strict=False))
    for name, recorder in recorders.items():
        if states[name] in trainer.extra:
            recorder.load_state_dict(trainer.extra[states[name]])
    watched = [first, *held_out] if clean_pass else held_out
    loaders = {}
    for name in watched:
        samples = KeepSet.from_ids(store, recorders[name].ids)
        loaders[name] = accelerator.prepare(make_loader(store, samples, config, in_order=True)[0])
    for epoch in trainer.epochs(None if clean_pass else recorders[first], progress):
        for name, loader in loaders.items():
            begin = time.perf_counter()
            _watch(trainer.model, loader, recorders[name], config.normalise)
            seen = Cost(forward=len(recorders[name].ids))
            trainer.done.evaluation += seen + trainer.spent(begin)
        for name, recorder in recorders.items():
            recorder.end_epoch()
            trainer.extra[states[name]] = recorder.state_dict()
        if epoch + 1 in kept_epochs - {config.epochs} and accelerator.is_main_process:
            save_network(run, trainer.network, config, num_classes, epoch=epoch + 1)
    return trainer


def _watch(model: nn.Module, loader: Any, recorder: Recorder, normalise: str) -> None:
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            images = normalised(batch.images, normalise)
            recorder.record(batch.ids, model(images), batch.labels)


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


def _put_scores(
    store: Store, run: str, recorder: Recorder, window: int, made: dict[str, Any]
) -> None:
    # A sample that could not be read in some epoch has no score.
    seen = np.isfinite(recorder.signal("p_true")).all(axis=0)
    scores = {
        "dyn_unc": dynamic_uncertainty(recorder.signal("p_true")[:, seen], window),
        "tdds": tdds_from_divergence(recorder.signal("divergence")[1:, seen], window),
        "el2n": recorder.signal("el2n")[:, seen].astype(np.float64).mean(axis=0),
    }
    for name, measured in scores.items():
        values = np.full(len(store), math.nan)
        values[store.rows(recorder.ids[seen])] = measured
        how = {"definition": f"{name}(window={window})", **made, "measured": True}
        store.put_score(f"{run}_{name}", values, provenance=how)
