"""Train on a keep set, from a fresh network to a result that says what it took."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from shardsieve._errors import ShardsieveError
from shardsieve.cost import Cost
from shardsieve.keepset import KeepSet, select
from shardsieve.policy.base import Policy
from shardsieve.store.store import Store
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import save_network
from shardsieve.train.evaluation import need_matching
from shardsieve.train.fresh import fresh_model
from shardsieve.train.labels import check_test, identity_of, labels_digest
from shardsieve.train.launch import on_main
from shardsieve.train.ledger import NOTHING, FullRun, Overhead, ledger
from shardsieve.train.loop import Trainer
from shardsieve.train.machines import check_same, enter_run, on_all
from shardsieve.train.progress import Progress
from shardsieve.train.runfolder import RESULT, RunFolder
from shardsieve.train.seeding import known_task
from shardsieve.train.tracking import finish_trackers, log_epoch, start_trackers

LEARNED = "learned.pt"

_LOG = logging.getLogger("shardsieve")


def train_subset(
    store: Store,
    keep: KeepSet | Policy,
    config: TrainConfig,
    *,
    folder: str | Path,
    accelerator: Accelerator,
    adversary: Adversary | None = None,
    test: Store | None = None,
    evaluate_every: int = 0,
    checkpoint_steps: int = 0,
    policy_score: str | None = None,
    overhead: Overhead = NOTHING,
    full: FullRun | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a fresh network on a keep set; go on from the folder's checkpoint if it has one.

    The folder gets `run.json` (what run it is), checkpoints, `history.jsonl` (one line per
    epoch), `model.pt` and, at the end, `result.json`.

    Args:
        store: Of the training samples; open for writing if `policy_score` is given.
        keep: Which of them, or the policy that chooses them for every epoch.
        config: Settings.
        folder: Of the run; it must be free or hold this very run.
        accelerator: From `make_accelerator`.
        adversary: Trains on attacked images; None trains plainly. Evaluation is of clean images.
        test: Store of the samples to evaluate on; None evaluates nothing.
        evaluate_every: Epochs between evaluations; 0 evaluates at the end only.
        checkpoint_steps: Steps between checkpoints inside an epoch; 0 makes one per epoch.
        policy_score: Name of a score to store: what the policy learned.
        overhead: What the scores took, for the ledger.
        full: The run on everything to compare with; None estimates what it would take.
        progress: Called with steps done, steps in all, and what was read.

    Returns:
        The result: accuracy in `[0, 1]`, steps, samples, seconds and bytes per phase, and `cost`,
        the ledger.

    Raises:
        ShardsieveError: If labels are missing, `test` has none or the folder holds another run.
        ValueError: If nothing is kept, or the policy's schedule is not of the run's length.
        Stopped: After SIGTERM, when the state is saved.
    """
    how: dict[str, Any] = {"matched": config.pseudo_labels is not None}
    checked = partial(_checked, store, keep, config, policy_score, test, **how)
    num_classes, config = on_all(accelerator, checked)
    run = RunFolder(folder)
    identity = _identity(store, keep, config, test, adversary)
    finished = enter_run(accelerator, run, identity)
    if finished is not None:
        _hand_over(run, store, keep, policy_score, accelerator)
        return finished
    unlike = _unlike(full, identity, accelerator)
    accelerator.wait_for_everyone()
    model = fresh_model(config, num_classes, accelerator)
    how = {"folder": run, "checkpoint_steps": checkpoint_steps}
    trainer = Trainer(model, store, keep, config, accelerator, adversary=adversary, **how)
    # Stores that are copies of each other may hold other scores.
    check_same(accelerator, {"keep set": trainer.keep.digest})
    on_main(accelerator, lambda: run.claim(identity))
    start_trackers(accelerator, run, identity, config)
    _train(trainer, run, test, evaluate_every, progress)
    if policy_score is not None and isinstance(keep, Policy):
        learned = torch.from_numpy(keep.learned())  # every rank takes part
        if accelerator.is_main_process:
            run.save(LEARNED, {"learned": learned})
        accelerator.wait_for_everyone()
    _hand_over(run, store, keep, policy_score, accelerator)
    result = _result(trainer, overhead, full and full.training, unlike)
    if accelerator.is_main_process:
        save_network(run, trainer.network, config, num_classes)
        run.write_json(RESULT, result)
        run.forget_checkpoints()
    accelerator.wait_for_everyone()
    finish_trackers(accelerator, run)
    return result


def _identity(
    store: Store,
    keep: KeepSet | Policy,
    config: TrainConfig,
    test: Store | None,
    adversary: Adversary | None,
) -> dict[str, Any]:
    """Return what makes a run this one: a folder that holds another is refused."""
    identity: dict[str, Any] = {"kind": "train", "store": store.fingerprint, **_of(keep)}
    identity |= {"test": test.fingerprint if test else None, **config.to_dict()}
    identity |= identity_of(store, config.pseudo_labels)
    identity |= {"test_labels_digest": labels_digest(test)} if test else {}
    return identity | ({"adversary": adversary.to_dict()} if adversary is not None else {})


def _train(
    trainer: Trainer,
    run: RunFolder,
    test: Store | None,
    evaluate_every: int,
    progress: Progress | None,
) -> None:
    """Train to the end, and log every epoch, evaluated where that is due."""
    everything = select(test, keep_fraction=1.0) if test else None
    for epoch in trainer.epochs(progress=progress):
        row, last = trainer.done.history[-1], epoch + 1 == trainer.config.epochs
        due = last or (evaluate_every and (epoch + 1) % evaluate_every == 0)
        if due and test is not None and everything is not None:
            row["accuracy"] = round(trainer.evaluate(test, everything), 6)
        log_epoch(trainer.accelerator, run, row, trainer.done.steps)


def _checked(
    store: Store,
    keep: KeepSet | Policy,
    config: TrainConfig,
    policy_score: str | None,
    test: Store | None,
    *,
    matched: bool,
) -> tuple[int, TrainConfig]:
    """Return what `known_task` does.

    What could only fail after the training is refused.
    """
    classes, known = known_task(
        store, config, ids=keep.ids() if isinstance(keep, KeepSet) else None
    )
    if test is not None:
        check_test(test, store, None if matched else classes)
        if matched:
            need_matching()
    if policy_score is not None:
        if not isinstance(keep, Policy):
            raise ValueError("policy_score must come with a policy; a keep set learns nothing")
        keep.check_score(store, policy_score)
    scheduled = keep.settings().get("num_epochs") if isinstance(keep, Policy) else None
    if scheduled is not None and scheduled > config.epochs:
        raise ValueError(
            f"the policy's num_epochs must be the run's {config.epochs}, got {scheduled}; "
            "the end of its schedule would never come"
        )
    return classes, known


def _hand_over(
    run: RunFolder,
    store: Store,
    keep: KeepSet | Policy,
    name: str | None,
    accelerator: Accelerator,
) -> None:
    """Store what the policy of a run learned, from its folder."""
    if name is None or not isinstance(keep, Policy):
        return

    def handed_over() -> None:
        held = run.load(LEARNED)
        if held is None:
            raise ShardsieveError(
                f"run {run.path} was finished without policy_score and its policy is gone; "
                "leave policy_score out or train in another folder"
            )
        keep.put_learned(store, name, held["learned"].numpy())

    on_main(accelerator, handed_over)


def _unlike(
    full: FullRun | None, identity: Mapping[str, Any], accelerator: Accelerator
) -> list[str]:
    """Return the settings in which the full run differs, and warn of them before any training."""
    names = full.unlike(identity) if full else []
    if names and accelerator.is_main_process:
        _LOG.warning(
            "the full run differs in %s; its costs are those of its own settings", ", ".join(names)
        )
    return names


def _of(keep: KeepSet | Policy) -> dict[str, Any]:
    if isinstance(keep, KeepSet):
        return {"keep": keep.digest, "policy": None}
    return {"keep": None, "policy": keep.settings()}


def _result(
    trainer: Trainer, overhead: Overhead, full: Cost | None, unlike: list[str]
) -> dict[str, Any]:
    done, samples, policy = trainer.done, len(trainer.store), trainer.sampler.policy
    counted = {"seen": done.samples, "samples": samples, "epochs": trainer.config.epochs}
    cost = ledger(done.training, overhead, **counted, full=full)
    cost["full_run"] |= {"unlike": unlike} if unlike else {}
    return {
        "accuracy": done.history[-1].get("accuracy"),
        "kept": len(trainer.keep),
        "of": samples,
        "policy": policy.settings() if policy else None,
        "losses_not_finite": policy.not_finite if policy else None,
        "epochs": done.epoch,
        "steps": done.steps,
        "samples": done.samples,
        "unreadable": trainer.unreadable(),
        "reads_since_start": trainer.reads(),
        "processes": trainer.accelerator.num_processes,
        "phases": {
            name: {"seconds": round(took.seconds, 3), "bytes": took.nbytes}
            for name, took in (("train", done.training), ("evaluate", done.evaluation))
        },
        "cost": {**cost, "evaluation": done.evaluation.to_dict()},
    }
