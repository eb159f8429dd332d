"""Helper processes, and Ctrl-C: what must end ends, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import range_server
from tars import write_shards

import shardsieve as ss
from shardsieve.io import clients
from shardsieve.io.helper import Helper


def test_a_helper_outlives_a_ctrl_c():
    helper = Helper(1)
    call = (clients.is_remote, ("s3://a/b",))
    with helper._process as process:
        assert helper.call_all([call]) == [True]
        process.send_signal(signal.SIGINT)
        assert helper.call_all([call, call]) == [True, True]


def test_an_answer_that_nobody_waited_for_is_not_the_next_ones(tmp_path):
    helper, waits, main = Helper(1), tmp_path / "waits", threading.main_thread().ident
    os.mkfifo(waits)

    def interrupt():
        with waits.open("wb"):  # the call is under way
            signal.pthread_kill(main, signal.SIGUSR1)
            stopped.wait(60)

    stopped, before = threading.Event(), signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with helper._process:
            with pytest.raises(KeyboardInterrupt):
                helper.call_all([(Path.read_bytes, (waits,))])
            stopped.set()
            assert helper.call_all([(clients.is_remote, ("s3://a/b",))]) == [True]
    finally:
        stopped.set()
        signal.signal(signal.SIGUSR1, before)


HELPED = """
import sys
sys.path.insert(0, sys.argv[1])
from shardsieve.io.helper import Helper
from shardsieve.io.clients import is_remote
with (helper := Helper(1))._process:
    assert helper.call_all([(is_remote, ("s3://a/b",))]) == [True]
"""


def test_a_helper_finds_what_its_parent_imports(tmp_path):
    (tmp_path / "random.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "train.py"
    script.write_text(HELPED)
    source_folder = str(Path(ss.__file__).parents[1])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(script), source_folder]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)


KILLED = """
import os, pickle, select, signal
from shardsieve.io.helper import Helper
process = Helper(2)._process
requests = process.stdin
pickle.dump([(bytes, (50_000_000,))], requests)
requests.flush()
requests.write(pickle.dumps([(bytes, (5,))] * 1000)[:-100])
requests.flush()
select.select([process.stdout], [], [])  # an answer is under way, too long for the pipe
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_helper_whose_parent_was_killed_says_nothing():
    found = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, timeout=200)
    assert (found.returncode, found.stderr) == (-signal.SIGKILL, b"")


def refused(helper, calls):
    with pytest.raises(ss.CorruptShardError, match=r"has ended, .*; start again"):
        helper.call_all(calls)


def test_a_helper_ends_with_the_process_that_asked_also_at_work(tmp_path):
    helper, begun = Helper(1), tmp_path / "begun"
    calls = [(Path.touch, (begun,)), (time.sleep, (600,))]
    asking = threading.Thread(target=refused, args=(helper, calls))
    asking.start()
    while not begun.exists():
        time.sleep(0.01)
    helper._process.stdin.close()
    assert helper._process.wait(60) == 0
    asking.join(60)
    helper._process.stdout.close()


INTERRUPTED = """
import signal, sys, time
import shardsieve as ss
from shardsieve.io import clients, retries
# A shell that starts the tests in the background has them, and so this program, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
retries.FIRST_WAIT = 1000
clients._TIMEOUTS["read_timeout"] = "1h"
data = ss.ShardDataset(ss.open_store(sys.argv[1]))
shard = data.store.urls[0]

def work():
    data.look_ahead(data.store.ids()[2:3])
    time.sleep(3600)

for call in (
    lambda: data[1],
    lambda: ss.open_store(sys.argv[1]),
    lambda: ss.index(shard, sys.argv[1] + ".new"),
    lambda: ss.measure_storage(shard),
    work,
):
    print("begins", flush=True)
    sys.stdin.readline()
    try:
        call()
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


def test_one_ctrl_c_ends_whatever_waits_for_objects_and_so_does_the_programs_end(tmp_path):
    (path,) = write_shards(tmp_path / "d", [9])
    with range_server(tmp_path / "d") as server:
        ss.index(f"{server.url}/{path.name}", tmp_path / "s.zarr")
        command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "s.zarr")]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, **pipes) as program:
            try:
                for silent in (False, True, True, True, True):
                    assert program.stdout.readline() == b"begins\n"
                    # Without silence it waits to read again, else for its first byte.
                    server.silent, server.faults, before = silent, 1.0, server.asked
                    program.stdin.write(b"\n")
                    program.stdin.flush()
                    while server.asked == before and program.poll() is None:
                        time.sleep(0.01)
                    program.send_signal(signal.SIGINT)
                    assert program.stdout.readline() == b"stopped\n"
                assert program.communicate(timeout=120) == (b"", b"")
                assert program.returncode == 0
            finally:
                program.kill()
