"""Start scripts and the program as real processes."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
TWO_CPUS = [*LAUNCH, "--config_file", str(ROOT / "configs/two_cpu.yaml")]


def launch(ranks, script, *arguments):
    """The command that runs a script on so many CPU processes."""
    return [*TWO_CPUS, "--num_processes", str(ranks), str(ROOT / script), *map(str, arguments)]


def on_two_ranks(script, *arguments):
    """Run a script on two CPU processes and wait for both."""
    on_ranks(2, script, *arguments)


def on_ranks(ranks, script, *arguments):
    """Run a script on so many CPU processes and wait for all."""
    alone = [sys.executable, str(ROOT / script), *map(str, arguments)]
    command = launch(ranks, script, *arguments) if ranks > 1 else alone
    subprocess.run(command, check=True, timeout=300)


def killed_after(command, ready, timeout=120):
    """Start a command, kill it and all that it started with SIGKILL as soon as `ready()` holds.

    Returns its exit status.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = timeout * 100
        while process.poll() is None and not ready() and deadline:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                deadline -= 1
    finally:
        for pid in [process.pid, *started_by(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def started_by(pid):
    """The processes that a process started, and those that these started: launchers detach them."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]
