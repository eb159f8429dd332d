"""The one way an `Accelerator` is made here."""

import gc
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Some defaults in it are the group that there is when it is imported: better none, or that group
# lives on when the processes have left it.
import torch.distributed.nn
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    broadcast_object_list,
)

from shardsieve._errors import MissingDependencyError, ShardsieveError
from shardsieve.train.ending import hold_group

T = TypeVar("T")

# The main process may extrapolate or index for hours while the others wait.
_PATIENCE = timedelta(hours=12)
TRACKERS = ("tensorboard", "wandb")
DEFAULT_TRACKERS = ("tensorboard",)
# By the words of Accelerate's launcher and of its configuration files.
_SPLITTING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}


def make_accelerator(
    folder: Path | None = None,
    *,
    precision: str | None = None,
    track: tuple[str, ...] = DEFAULT_TRACKERS,
) -> Accelerator:
    """Return an accelerator that follows `accelerate launch`.

    Args:
        folder: Where the trackers' files go; None tracks nothing.
        precision: Of what is computed, as in `checked_precision`; None computes in full, whatever
            the launcher says.
        track: Some of `TRACKERS`. TensorBoard is left out where it is not installed.

    Raises:
        ValueError: If a tracker is unknown, or the precision is refused.
        MissingDependencyError: If one that was asked for is not installed.
        ShardsieveError: If the launcher splits networks over processes, or started other processes
            than Accelerate finds.
    """
    if precision is not None:
        checked_precision(precision)
    _refuse_split_networks()
    tracked = installed_trackers(track) if folder is not None else []
    launched = os.environ.get("WORLD_SIZE", "1")
    if not launched.isdecimal():
        raise ShardsieveError(
            f"WORLD_SIZE must be the number of processes that were launched, got {launched!r}; "
            "unset it, or launch them with `accelerate launch` or torchrun"
        )
    if AcceleratorState._shared_state:
        # It keeps one precision per process, and a chain of steps may have several.
        AcceleratorState._reset_state()
    with _told_about_port():
        accelerator = Accelerator(
            # Without it, processes that share a machine without a GPU would not find each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=precision or "no",
            log_with=tracked or None,
            project_dir=str(folder) if tracked else None,
            # The loaders' batches are pinned: no step waits until the device has taken the next.
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            # The settings' own `accumulate` weighs batches: a number in the environment would
            # divide every loss once more.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    if int(launched) != accelerator.num_processes:
        raise ShardsieveError(
            f"{launched} processes were launched but each runs alone; "
            "launch them with `accelerate launch --config_file configs/two_cpu.yaml` or torchrun"
        )
    if accelerator.num_processes > 1:
        hold_group(dist.group.WORLD)
    return accelerator


def _refuse_split_networks() -> None:
    for name, word in _SPLITTING.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ShardsieveError(
                f"every process must hold a whole network, got {word} from the launcher; "
                "use `accelerate launch --multi_gpu`, or distributed_type MULTI_GPU in its file"
            )


@contextmanager
def _told_about_port() -> Iterator[None]:
    try:
        yield
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ShardsieveError(
            f"MASTER_PORT {os.environ.get('MASTER_PORT')} is in use on this machine; choose another"
        ) from error


def let_go(accelerator: Accelerator, *prepared: Any) -> None:
    """Let Accelerate forget what it prepared: it keeps every loader with its workers and files.

    Args:
        accelerator: That prepared it.
        prepared: Loaders and optimisers; networks with what was wrapped around.
    """
    gone = {id(one) for one in prepared}
    for held in (accelerator._dataloaders, accelerator._models, accelerator._optimizers):
        held[:] = [one for one in held if id(one) not in gone]
    # The workers of a loader end with its iterator, which may be in a cycle. Without workers an
    # evaluation would take several times as long for nothing.
    if multiprocessing.active_children():
        gc.collect()


def checked_precision(precision: str) -> str:
    """Return a precision: `no`, `bf16` or `fp16`. The settings decide, a launcher may only agree.

    Raises:
        ValueError: If the launcher was told another one, or no device here computes in it.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", precision):
        raise ValueError(
            f"precision must be {launcher}, as the launcher's mixed_precision, got {precision!r}; "
            f"set precision to {launcher}, or launch with --mixed_precision no"
        )
    if precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("precision must be bf16 or no without a GPU, got 'fp16'")
    return precision


def on_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Return what the main process makes, on every process; what it refuses, all of them raise."""
    made: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            made[0] = make()
        except (ShardsieveError, ValueError) as error:
            made[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    found: T = made[0]
    return found


def installed_trackers(track: tuple[str, ...]) -> list[str]:
    """Return the trackers to use; see `make_accelerator`."""
    found = []
    for name in track:
        if name not in TRACKERS:
            raise ValueError(
                f"track must be among {', '.join(TRACKERS)}, got {name!r}; leave it empty for none"
            )
        if importlib.util.find_spec(name) is not None:
            found.append(name)
        elif name not in DEFAULT_TRACKERS:
            raise MissingDependencyError(f"tracking with {name} needs it: pip install {name}")
    return found
