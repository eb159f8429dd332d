"""Reads objects for a process that was forked too late to read them itself.

A loader's workers are forked by default, and obstore's threads do not survive that. Such a worker
starts one helper process and asks it for whole lists of reads at once.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

from shardsieve._errors import CorruptShardError, ShardsieveError
from shardsieve.io.stopping import interruptible

Call = tuple[Callable[..., Any], tuple[Any, ...]]
_making = threading.Lock()


class Helper:
    """A process that makes calls for this one; it ends with it."""

    def __init__(self, in_flight: int) -> None:
        self._turn = threading.Lock()
        # It imports what this process does, not what happens to lie in the working directory.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shardsieve.io.helper", str(in_flight)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Return what every call returns, in order, or the `ShardsieveError` that it raises.

        Several threads may ask, one is answered.

        Raises:
            CorruptShardError: If the process is gone.
        """
        # Whoever stops to wait must leave no answer behind for the next one who asks.
        return interruptible(lambda: self._answered(calls))

    def _answered(self, calls: Sequence[Call]) -> list[Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # pragma: no cover
            raise AssertionError
        try:
            with self._turn:
                pickle.dump(list(calls), stdin)
                stdin.flush()
                answers: list[Any] = pickle.load(stdout)  # our own process
        except (EOFError, OSError) as error:
            raise CorruptShardError(
                "the process that reads objects has ended, maybe for want of memory; start again"
            ) from error
        return answers


def helper_here(in_flight: int) -> Helper:
    """Return this process' helper that makes so many calls at a time."""
    with _making:
        return _helper(in_flight, os.getpid())


@lru_cache
def _helper(in_flight: int, pid: int) -> Helper:
    return Helper(in_flight)


def serve(requests: IO[bytes], answers: IO[bytes], in_flight: int) -> None:
    """Answer lists of calls until the other side is gone, with no word more then."""
    pool = ThreadPoolExecutor(in_flight)

    def answer(calls: list[Call]) -> None:
        with suppress(BrokenPipeError):
            pickle.dump(list(pool.map(_answer, calls)), answers)
            answers.flush()

    while True:
        try:
            calls = pickle.load(requests)  # our own parent
        except (EOFError, pickle.UnpicklingError):
            os._exit(0)
        threading.Thread(target=answer, args=(calls,)).start()


def _answer(call: Call) -> Any:
    function, arguments = call
    try:
        return function(*arguments)
    except ShardsieveError as error:
        return error
    except Exception as error:  # noqa: BLE001  # raised by the other side
        return CorruptShardError(f"cannot read objects: {type(error).__name__}: {error}")


if __name__ == "__main__":
    # A Ctrl-C reaches all processes of a terminal; whether to stop is for our parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
