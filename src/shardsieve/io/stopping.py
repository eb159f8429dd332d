"""Threads whose reads end when nobody waits for them any more."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_here: Any = threading.local()


class StoppingPool(ThreadPoolExecutor):
    """Threads of which `stop` drops what has not begun; what has gives up at its next request."""

    def __init__(self, threads: int) -> None:
        self._stop = threading.Event()
        super().__init__(threads, initializer=setattr, initargs=(_here, "stop", self._stop))

    def stop(self, *, wait: bool) -> None:
        """Let the threads go; `wait` for their last requests, or do not."""
        self._stop.set()
        self.shutdown(wait=wait, cancel_futures=True)


def stopped() -> bool:
    """Return whether this thread belongs to a pool that was stopped."""
    stop = getattr(_here, "stop", None)
    return stop is not None and stop.is_set()


def pause(seconds: float) -> None:
    """Wait, in a pool until it is stopped."""
    stop = getattr(_here, "stop", None)
    if stop is None:
        time.sleep(seconds)
    else:
        stop.wait(seconds)
