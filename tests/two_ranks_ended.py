"""One of two real processes: what is left of the group once the processes have ended it."""

from pathlib import Path

import torch

from shardsieve.train.ending import end_processes
from shardsieve.train.launch import make_accelerator


def threads():
    """Names of the group's threads."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main():
    accelerator = make_accelerator()
    network = accelerator.prepare(torch.nn.Linear(2, 1))
    network(torch.ones(1, 2)).sum().backward()
    network.itself = [network]
    assert threads()
    # The network would end the group while holding Python's lock.
    end_processes()
    assert threads()
    accelerator.free_memory()


if __name__ == "__main__":
    main()
    # A thread that Python finds at its end is aborted, and the process with it.
    end_processes()
    assert not threads()
