"""The one way an `Accelerator` is made here."""

import importlib.util
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator, InitProcessGroupKwargs

# The main process may extrapolate or index for hours while the others wait.
_PATIENCE = timedelta(hours=12)


def make_accelerator(folder: Path | None = None, *, precision: str = "no") -> Accelerator:
    """Return an accelerator that follows `accelerate launch`.

    Args:
        folder: Where TensorBoard's files go, when it is installed; None tracks nothing.
        precision: `no`, `bf16` or `fp16`; `no` leaves it to the launcher's configuration.
    """
    tracked = folder is not None and importlib.util.find_spec("tensorboard") is not None
    return Accelerator(
        mixed_precision=None if precision == "no" else precision,
        log_with="tensorboard" if tracked else None,
        project_dir=str(folder) if tracked else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
