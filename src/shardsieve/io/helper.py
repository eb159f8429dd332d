"""Reads objects for a process that was forked too late to read them itself.

A loader's workers are forked by default, and obstore's threads do not survive that. Such a worker
starts one helper process and asks it for whole lists of reads at once.
"""

import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from shardsieve._errors import CorruptShardError, ShardsieveError
from shardsieve.io.objects import Fetched, fetch

Read = tuple[str, int, int]


class Helper:
    """A process that fetches; it ends with the one that started it."""

    def __init__(self, in_flight: int) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shardsieve.io.helper", str(in_flight)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def fetch_all(self, reads: Sequence[Read]) -> list[Fetched]:
        """Return the bytes of every read, in order; several threads may ask, one is answered.

        Raises:
            CorruptShardError: If one cannot be read.
        """
        stdin, stdout = self._pipes()
        try:
            with self._turn:
                pickle.dump(list(reads), stdin)
                stdin.flush()
                answer = pickle.load(stdout)  # our own process
        except (EOFError, OSError) as error:
            raise CorruptShardError("the process that reads objects has ended") from error
        if isinstance(answer, str):
            raise CorruptShardError(answer)
        return [Fetched(*one) for one in answer]

    def close(self) -> None:
        """End the process."""
        for pipe in self._pipes():
            pipe.close()
        self._process.wait(timeout=60)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:  # pragma: no cover
            raise AssertionError
        return stdin, stdout


def serve(requests: IO[bytes], answers: IO[bytes], in_flight: int) -> None:
    """Answer lists of reads until the other side is gone."""
    with ThreadPoolExecutor(in_flight) as pool:
        while True:
            try:
                reads = pickle.load(requests)  # our own parent
            except EOFError:
                return
            try:
                answer: Any = [tuple(f) for f in pool.map(lambda read: fetch(*read), reads)]
            except ShardsieveError as error:
                answer = str(error)
            except Exception as error:  # noqa: BLE001  # said by the other side
                answer = f"cannot read objects: {type(error).__name__}: {error}"
            pickle.dump(answer, answers)
            answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
