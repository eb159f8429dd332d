"""How a program ends that may have been one process of several; torch is not loaded for it."""

import hashlib
import os
import sys
from datetime import timedelta

_BRIEFLY = timedelta(seconds=5)


class Stopped(Exception):
    """A run was asked to stop and has saved its state; the same command goes on with it."""


def end_processes() -> None:
    """Leave the process group, if there is one: the last thing that a program does.

    A program that ends inside of it is aborted now and then, as its threads still run.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_process(error: BaseException) -> bool:
    """Return whether an error of this process says that another one has gone."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and isinstance(error, dist.DistError):
        return True
    # Gloo has no error of its own.
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def first_to_say(line: str) -> bool:
    """Return whether this process is the first of its machine to ask with this line.

    Alone, and where the launcher's store cannot be asked, every process is.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not host or not port.isdigit():
        return True
    import torch.distributed as dist

    name = hashlib.blake2b(line.encode(), digest_size=8).hexdigest()
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    machine = os.environ.get("GROUP_RANK", "0")
    try:
        store = dist.TCPStore(host, int(port), is_master=False, timeout=_BRIEFLY)  # type: ignore[attr-defined]
        return bool(store.add(f"shardsieve/said/{start}/{machine}/{name}", 1) == 1)
    except (RuntimeError, dist.DistStoreError):
        return True
