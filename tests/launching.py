"""Launch scripts and the program as users do; `forks` is quicker where that does not matter."""

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


def on_two_ranks(script):
    """Run a script on two CPU processes, as a user launches them, and wait for both."""
    subprocess.run([*TWO_CPUS, str(script)], check=True, timeout=300)
