"""Start scripts and the program as real processes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
TWO_CPUS = [*LAUNCH, "--config_file", str(ROOT / "configs/two_cpu.yaml")]


def on_two_ranks(script, *arguments):
    """Run a script on two CPU processes and wait for both."""
    command = [*TWO_CPUS, str(ROOT / script), *map(str, arguments)]
    subprocess.run(command, check=True, timeout=300)


def killed_after(command, ready, timeout=120):
    """Start a command, kill it with SIGKILL as soon as `ready()` holds; return its exit status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = timeout * 100
        while process.poll() is None and not ready() and deadline:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                deadline -= 1
    finally:
        process.kill()
        process.wait()
    return process.returncode
