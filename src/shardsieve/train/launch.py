"""The one way an `Accelerator` is made here."""

import importlib.util
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from shardsieve._errors import ShardsieveError

T = TypeVar("T")

# The main process may extrapolate or index for hours while the others wait.
_PATIENCE = timedelta(hours=12)


def make_accelerator(folder: Path | None = None, *, precision: str = "no") -> Accelerator:
    """Return an accelerator that follows `accelerate launch`.

    Args:
        folder: Where TensorBoard's files go, when it is installed; None tracks nothing.
        precision: `no`, `bf16` or `fp16`; `no` leaves it to the launcher's configuration.
    """
    tracked = folder is not None and importlib.util.find_spec("tensorboard") is not None
    accelerator = Accelerator(
        # Without it, processes that share a machine without a GPU would not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=None if precision == "no" else precision,
        log_with="tensorboard" if tracked else None,
        project_dir=str(folder) if tracked else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ShardsieveError(
            f"{launched} processes were launched but each runs alone; "
            "launch them with `accelerate launch --config_file configs/two_cpu.yaml` or torchrun"
        )
    return accelerator


def on_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Return what the main process makes, on every process."""
    made = [make() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]
