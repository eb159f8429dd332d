"""Run a module or a script, and die by SIGKILL at the first use of a file once one is there."""

import glob
import os
import runpy
import signal
import sys


def main(pattern, *command):
    """Run `-m MODULE ...` or `SCRIPT ...`."""

    def die(event, arguments):
        # `glob` looks at names alone: it uses no file itself.
        if event in ("open", "os.mkdir", "os.rename") and glob.glob(pattern):  # noqa: PTH207
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    sys.argv = list(command[command[0] == "-m" :])
    run = runpy.run_module if command[0] == "-m" else runpy.run_path
    run(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
