"""Train on a keep set, from a fresh network to a result that says what it took."""

import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from shardsieve.keepset import KeepSet, select
from shardsieve.store.store import Store
from shardsieve.train.config import TrainConfig
from shardsieve.train.encoder import save_network
from shardsieve.train.loop import Progress, Trainer, evaluate
from shardsieve.train.nets import load_model
from shardsieve.train.runfolder import RESULT, RunFolder
from shardsieve.train.seeding import count_classes, with_known_images


def train_subset(
    store: Store,
    keep: KeepSet,
    config: TrainConfig,
    *,
    folder: str | Path,
    accelerator: Accelerator,
    test: Store | None = None,
    evaluate_every: int = 0,
    checkpoint_steps: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a fresh network on a keep set; go on from the folder's checkpoint if it has one.

    The folder gets `run.json` (what run it is), `checkpoint.pt`, `history.jsonl` (one line per
    epoch), `model.pt` and, at the end, `result.json`.

    Args:
        store: Of the training samples.
        keep: Which of them.
        config: Settings.
        folder: Of the run; it must be free or hold this very run.
        accelerator: From `make_accelerator`.
        test: Store of the samples to evaluate on; None evaluates nothing.
        evaluate_every: Epochs between evaluations; 0 evaluates at the end only.
        checkpoint_steps: Steps between checkpoints inside an epoch; 0 makes one per epoch.
        progress: Called with (steps done, steps in all).

    Returns:
        The result: accuracy in `[0, 1]`, steps, samples, and seconds and bytes per phase.

    Raises:
        ShardsieveError: If labels are missing or the folder holds another run.
    """
    num_classes, config = count_classes(store), with_known_images(store, config)
    run = RunFolder(folder)
    identity: dict[str, Any] = {"kind": "train", "store": store.fingerprint, "keep": keep.digest}
    identity |= {"test": test.fingerprint if test else None, **config.to_dict()}
    run.refuse_another(identity)
    finished = run.result()
    if finished is not None:
        return finished
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.claim(identity)
    if accelerator.log_with:
        accelerator.init_trackers("tensorboard", config=_plain(config))
    set_seed(config.seed)
    model = load_model(config.model, num_classes, config.channels or 3)
    trainer = Trainer(
        model, store, keep, config, accelerator, folder=run, checkpoint_steps=checkpoint_steps
    )
    tester = _Tester(test, config, accelerator)
    for epoch in trainer.epochs(progress=progress):
        row, last = trainer.done.history[-1], epoch + 1 == config.epochs
        if last or (evaluate_every and (epoch + 1) % evaluate_every == 0):
            row |= tester(trainer)
        accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=trainer.done.steps)
    result = _result(trainer, tester, len(store))
    if accelerator.is_main_process:
        save_network(run, trainer.network, config, num_classes)
        run.write_json(RESULT, result)
        run.forget_checkpoint()
    accelerator.end_training()
    return result


class _Tester:
    """Evaluates, and adds up what it took."""

    def __init__(self, test: Store | None, config: TrainConfig, accelerator: Accelerator) -> None:
        self.test, self.config, self.accelerator = test, config, accelerator
        self.everything = select(test, keep_fraction=1.0) if test else None
        self.seconds, self.nbytes = 0.0, 0

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        if self.test is None or self.everything is None:
            return {}
        start = time.perf_counter()
        accuracy = evaluate(
            trainer.model, self.test, self.everything, self.config, self.accelerator
        )
        self.seconds += time.perf_counter() - start
        self.nbytes += self.everything.nbytes(self.test)
        return {"accuracy": round(accuracy, 6)}


def _result(trainer: Trainer, tester: _Tester, num_samples: int) -> dict[str, Any]:
    done = trainer.done
    return {
        "accuracy": done.history[-1].get("accuracy"),
        "kept": len(trainer.keep),
        "of": num_samples,
        "epochs": done.epoch,
        "steps": done.steps,
        "samples": done.samples,
        "unreadable": trainer.unreadable(),
        "reads_since_start": trainer.reads(),
        "processes": trainer.accelerator.num_processes,
        "phases": {
            "train": {"seconds": round(done.seconds, 3), "bytes": done.nbytes},
            "evaluate": {"seconds": round(tester.seconds, 3), "bytes": tester.nbytes},
        },
    }


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if value is not None}
