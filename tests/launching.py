"""Start scripts and the program as real processes."""

import contextlib
import pathlib
import random
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def free_port():
    """A port that nobody has, nor is given: the system takes those above for whoever asks for any.

    Accelerate's own choice is one of them, and may be taken before its processes listen.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            return port


PORT = str(free_port())
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", PORT]
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


def killed_at(pattern, command):
    """Run a Python command that kills itself with SIGKILL once a file or folder is there.

    It happens at its next use of a file, however slow the machine is: somebody who looks on from
    outside may come too late. Returns its exit status.
    """
    dying = [sys.executable, str(ROOT / "tests/dying.py"), str(pattern), *command[1:]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(dying, timeout=300, **quiet).returncode
