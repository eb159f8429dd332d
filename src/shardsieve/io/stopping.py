"""Threads whose reads end when nobody waits for them any more."""

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

A = TypeVar("A")
P = ParamSpec("P")
_Task = tuple["Future[Any]", Callable[[], Any]]

# A request that stands still is not waited for when the program ends, one that is answered is.
_FAREWELL = 2.0
_here: Any = threading.local()


class StoppingPool:
    """Threads of which `stop` drops what has not begun; what has gives up at its next request.

    Unlike those of `ThreadPoolExecutor` they are daemons, as a request cannot be interrupted: the
    end of the program stops them all and waits for two seconds at most.

    Attributes:
        pid: The process whose threads they are; one that was forked has none of them.
    """

    def __init__(self, threads: int) -> None:
        self._most, self._threads, self.pid = threads, list[threading.Thread](), os.getpid()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._stop, self._idle = threading.Event(), threading.Semaphore(0)
        _POOLS.add(self)

    def submit(self, call: Callable[P, A], *arguments: P.args, **named: P.kwargs) -> "Future[A]":
        """Return the future of a call that begins as soon as a thread is free.

        Raises:
            RuntimeError: If the pool was stopped.
        """
        if self._stop.is_set():
            raise RuntimeError("the pool must take no calls once it was stopped")
        future: Future[A] = Future()
        self._tasks.put((future, lambda: call(*arguments, **named)))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._most:
            work = (self._tasks, self._stop, self._idle)
            self._threads.append(threading.Thread(target=_work, args=work, daemon=True))
            self._threads[-1].start()
        return future

    def stop(self, *, wait: bool) -> None:
        """Let the threads go; `wait` for their last requests, or do not."""
        self._stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            self.join(None)

    def join(self, seconds: float | None) -> None:
        """Wait for threads that were let go, at most so many seconds for all of them."""
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(end - time.monotonic(), 0))


_POOLS: WeakSet[StoppingPool] = WeakSet()


@atexit.register
def _end_all() -> None:
    pools = [pool for pool in _POOLS if pool.pid == os.getpid()]
    for pool in pools:
        pool.stop(wait=False)
    end = time.monotonic() + _FAREWELL
    for pool in pools:
        pool.join(max(end - time.monotonic(), 0))


def _work(
    tasks: "SimpleQueue[_Task | None]", stop: threading.Event, idle: threading.Semaphore
) -> None:
    """Make calls until None comes. It holds no pool: one that is forgotten is not kept."""
    _here.stop = stop
    while (task := tasks.get()) is not None:
        future, call = task
        if stop.is_set():
            future.cancel()
        if future.set_running_or_notify_cancel():
            tell = _made(future, call)
            idle.release()  # first: who hears the answer and asks again finds this thread free
            tell()
            del tell
        else:
            idle.release()
        del task, future, call  # or the last answer would be kept until the next one


def _made(future: "Future[Any]", call: Callable[[], Any]) -> Callable[[], None]:
    """Make a call and return what tells its outcome."""
    try:
        return partial(future.set_result, call())
    except BaseException as error:  # noqa: BLE001  # raised where it is waited for
        return partial(future.set_exception, error)


def interruptible(call: Callable[[], A]) -> A:
    """Return what a call returns; in the main thread a Ctrl-C does not wait for it."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    pool = StoppingPool(1)
    try:
        return pool.submit(call).result()
    finally:
        pool.stop(wait=False)


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
