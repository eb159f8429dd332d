"""How a program ends that may have been one process of several; torch is not loaded for it."""

import gc
import hashlib
import os
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

_BRIEFLY = timedelta(seconds=5)
# The processes' group. A distributed network that outlives it elsewhere would end it while holding
# Python's lock, which a thread of the group may be waiting for.
_group: Any = None


class Stopped(Exception):
    """A run was asked to stop and has saved its state; the same command goes on with it."""


def hold_group(group: Any) -> None:
    """Keep the processes' group until `end_processes`."""
    global _group
    _group = group


def end_processes() -> None:
    """Leave the process group, if there is one, and end it: the last thing that a program does.

    A program that ends before it is aborted now and then, as threads of the group still run. While
    a distributed network is left, the group stays.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available():
        return
    if dist.is_initialized():
        dist.destroy_process_group()
    if _group is not None:
        gc.collect()  # networks in cycles
        if not any(_distributed(one) for one in gc.get_objects()):
            hold_group(None)


def _distributed(one: Any) -> bool:
    from torch.nn.parallel import DistributedDataParallel

    return issubclass(type(one), DistributedDataParallel)


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
    if os.environ.get("WORLD_SIZE", "1") == "1" or not host or not port.isdigit():
        return True
    import torch.distributed as dist

    name = hashlib.blake2b(line.encode(), digest_size=8).hexdigest()
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    machine = os.environ.get("GROUP_RANK", "0")
    said: list[int] = []

    def ask() -> None:
        with suppress(RuntimeError, dist.DistStoreError):
            store = dist.TCPStore(host, int(port), is_master=False, timeout=_BRIEFLY)  # type: ignore[attr-defined]
            said.append(store.add(f"shardsieve/said/{start}/{machine}/{name}", 1))

    # A stranger at this port that never answers would be listened to without end.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * _BRIEFLY.total_seconds())
    return said in ([], [1])
