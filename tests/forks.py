"""Start scripts and the program as forks of one process that has imported the libraries already.

They run as `python SCRIPT` and `python -m MODULE` do, several of them as ranks, with the variables
that `accelerate launch` sets. Importing torch and accelerate anew, for a launcher and for every
rank, takes longer than what most tests have them do.
"""

import glob
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
from launching import ROOT

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "accelerate",
        "faiss",
        "ffcv.loader",
        "shardsieve.cli",
        "shardsieve.commands.building",
        "shardsieve.commands.running",
        "shardsieve.train.subset",
        "sklearn.ensemble",
        "torch._dynamo",
        "torch_geometric.nn",
        "torchdata.stateful_dataloader",
        "webdataset",
    ]
)


def start(*command, ranks=1, machines=1, dies_at=None, out=os.devnull, err=os.devnull):
    """Start `SCRIPT ARGUMENT...` or `-m MODULE ARGUMENT...` on so many ranks; return the processes.

    They are told that they run on so many machines, and all run on this one. What they print is
    added to the files `out` and `err`. With `dies_at`, a pattern of names, each kills itself with
    SIGKILL once a file or folder of such a name is there.
    """
    command = [*map(str, command)]
    if command[0] != "-m":
        command[0] = str(ROOT / command[0])
    meeting, processes = _meeting() if ranks > 1 else None, []
    for rank in range(ranks):
        told = _launched(rank, ranks, machines, meeting.port) if meeting else {}
        how = command, os.environ | told, Path.cwd(), [out, err], dies_at and str(dies_at)
        processes.append(_FORKS.Process(target=_run, args=how))
    for process in processes:
        process.start()
        process.meeting = meeting  # ends with them
    return processes


def run(*command, **how):
    """Run a command to its end and return what it printed; the failure of a rank is an error."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        statuses = ended(start(*command, **how, out=out.name, err=err.name))
        assert not any(statuses), f"{command} ended with {statuses}:\n{err.read()}"
        return out.read()


def wait_for(happened, processes):
    """Wait until something has happened; that a process ends before is an error, and ends all."""
    while not happened():
        if not all(process.is_alive() for process in processes):
            raise AssertionError(f"a process ended early: {ended(processes, timeout=0)}")
        time.sleep(0.01)


def ended(processes, timeout=300):
    """Wait for all processes and return their exit statuses; those who take too long are killed."""
    for process in processes:
        process.join(timeout)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def killed_at(pattern, *command):
    """The exit status of a command that kills itself with SIGKILL once a file or folder is there.

    It happens at its next use of a file, however slow the machine is: somebody who looks on from
    outside may come too late.
    """
    return ended(start(*command, dies_at=pattern))[0]


def kill(processes):
    """Kill processes and their children with SIGKILL, all at once, as when a machine is lost."""
    parents = [psutil.Process(process.pid) for process in processes]
    children = [child for parent in parents for child in parent.children(recursive=True)]
    for one in parents + children:
        one.suspend()  # or a rank may hear that another has gone, and end by itself
    for one in parents + children:
        one.kill()
    return ended(processes)


def _meeting():
    """A launcher's store: one rank may still ask it for something when the first has ended."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _launched(rank, ranks, machines, port):
    """What the launcher tells a rank."""
    machine, local = divmod(rank, ranks // machines)
    here = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": ranks, "GROUP_RANK": machine}
    here |= {"LOCAL_WORLD_SIZE": ranks // machines, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    here |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    return {name: str(value) for name, value in here.items()}


def _run(command, environment, folder, printed, dies_at):
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # that of a program started by itself
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    if dies_at:
        _die_at(dies_at)
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")


def _die_at(pattern):
    def die(event, arguments):
        # `glob` looks at names alone: it uses no file itself.
        if event in ("open", "os.mkdir", "os.rename") and glob.glob(pattern):  # noqa: PTH207
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
