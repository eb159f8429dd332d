"""What a run tells TensorBoard, W&B and other trackers, through Accelerate."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from shardsieve.train.config import TrainConfig
from shardsieve.train.runfolder import RunFolder


def start_trackers(
    accelerator: Accelerator, run: RunFolder, identity: Mapping[str, Any], config: TrainConfig
) -> None:
    """Start what the accelerator logs with, on the main process alone: others' do nothing."""
    if accelerator.log_with and accelerator.is_main_process:
        with run.told_about_disk():
            how = tracked_as(run, identity)
            accelerator.init_trackers("shardsieve", config=_plain(config), init_kwargs=how)


def log_epoch(accelerator: Accelerator, run: RunFolder, row: dict[str, Any], steps: int) -> None:
    """Log an epoch's figures at the step that it ended with."""
    with run.told_about_disk():
        accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=steps)


def finish_trackers(accelerator: Accelerator, run: RunFolder) -> None:
    """Finish the trackers, but not the process group: steps may follow."""
    with run.told_about_disk():
        for tracker in accelerator.trackers:
            tracker.finish()


def tracked_as(run: RunFolder, identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of trackers: W&B keeps its files with the run, and goes on with it."""
    logs = run.path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    which = json.dumps([str(run.path.resolve()), identity], sort_keys=True)
    name = hashlib.blake2b(which.encode(), digest_size=8).hexdigest()
    return {"wandb": {"dir": str(logs), "name": run.path.name, "id": name, "resume": "allow"}}


def _plain(config: TrainConfig) -> dict[str, Any]:
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
