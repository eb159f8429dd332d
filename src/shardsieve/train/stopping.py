"""Stopping on SIGTERM: the processes of a run agree on the step after which they stop."""

import os
import signal
import threading
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from accelerate import Accelerator

from shardsieve.train.ending import Stopped

_EVERY = 8


class Stopping:
    """Listens for SIGTERM while it is entered.

    Alone, a process stops after the step under way. Several processes are told at different steps,
    and must stop at one: every 8 steps they sum up who was asked, and read the sum 8 steps
    later, when it has long been there.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._device = accelerator.device
        self._many = accelerator.num_processes > 1
        self._asked, self._steps = False, 0
        self._sum: tuple[torch.Tensor, Any] | None = None
        self._beside: Any = nullcontext()
        if self._many and self._device.type == "cuda":
            # In the stream of the steps a GPU would read the sum after all that it has been given.
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._beside = torch.cuda.stream(stream)
        self._owner, self._before = os.getpid(), None  # type: ignore[var-annotated]

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        together = kind is None or issubclass(kind, Stopped)
        if self._sum is not None and together:
            # No sum is left under way: its thread would still be at it as the program ends.
            with self._beside:
                self._sum[1].wait()
        self._sum = None

    def after_step(self) -> bool:
        """Return whether all processes stop now; every one must ask after every step."""
        if not self._many:
            return self._asked
        self._steps += 1
        if self._steps % _EVERY:
            return False
        stop = False
        if self._sum is not None:
            counted, work = self._sum
            with self._beside:
                work.wait()
                stop = bool(counted.item())
        counted = torch.full((1,), int(self._asked), device=self._device)
        self._sum = counted, dist.all_reduce(counted, async_op=True)
        return stop

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner:
            self._asked = True
            return
        # A loader's worker, forked with this handler: it dies as it would without it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
