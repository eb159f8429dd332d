"""Start something on one or two ranks, and stop or kill it with all its processes."""

import signal
import subprocess
import sys
import time

import psutil
from launching import ROOT, TWO_CPUS

TOOL = str(ROOT / "tools/train_subset.py")
ALONE = [sys.executable, TOOL]
ON_TWO = [*TWO_CPUS, TOOL]


def stopped(command, ready, number, timeout=200):
    """Start a command and send a signal when ready; return its exit status.

    SIGKILL goes to every process at once, as when a machine is lost: the launcher's ranks live in
    sessions of their own, and would outlive it.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = [psutil.Process(process.pid)]
    try:
        deadline = time.monotonic() + timeout
        while process.poll() is None and not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        family += family[0].children(recursive=True) if process.poll() is None else []
        if number == signal.SIGKILL:
            kill(family)
        else:
            process.send_signal(number)
        return process.wait(timeout)
    finally:
        kill(family)
        process.wait()


def kill(family):
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family[1:], timeout=20)
