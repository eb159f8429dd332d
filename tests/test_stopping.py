"""The pool of threads that can be let go, and the end of a training on several processes."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.io.source import at_once
from shardsieve.io.stopping import StoppingPool, interruptible, pause, stopped
from shardsieve.train.ending import Stopped
from shardsieve.train.stopping import Stopping


@given(st.integers(1, 4), st.lists(st.integers(), max_size=20))
def test_every_call_is_answered_by_as_many_threads_as_are_allowed(threads, numbers):
    pool, names = StoppingPool(threads), set()

    def negated(number, *, times):
        names.add(threading.get_ident())
        return -number * times

    futures = [pool.submit(negated, number, times=2) for number in numbers]
    assert [future.result() for future in futures] == [-2 * number for number in numbers]
    assert len(names) <= threads
    pool.stop(wait=True)


def test_a_thread_that_is_free_is_used_again_and_one_more_is_made_where_none_is():
    pool, both = StoppingPool(8), threading.Barrier(2)
    first = {pool.submit(threading.get_ident).result()}
    meeting = [pool.submit(both.wait, 60) for _ in range(2)]
    assert sorted(future.result() for future in meeting) == [0, 1]
    assert len(pool._threads) == 2
    assert first <= {thread.ident for thread in pool._threads}
    pool.stop(wait=True)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_stopping_drops_what_has_not_begun_and_ends_a_pause():
    pool, begun = StoppingPool(1), threading.Event()

    def waits():
        begun.set()
        pause(3600)
        return stopped()

    under_way, waiting = pool.submit(waits), pool.submit(int)
    begun.wait()
    pool.stop(wait=True)
    assert under_way.result() is True
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="take no calls once it was stopped"):
        pool.submit(int)


def test_the_first_error_in_order_is_raised_once_nothing_is_under_way():
    under_way, late = [], threading.Event()

    def call(number):
        under_way.append(number)
        try:
            if number == 0:
                late.wait()
                raise ValueError("zero")
            late.set()
            pause(3600)
        finally:
            under_way.remove(number)

    with pytest.raises(ValueError, match="zero"):
        list(at_once(call, range(5), remote=True))
    assert under_way == []


def test_calls_at_once_leave_no_thread_behind():
    before = {*threading.enumerate()}
    assert [*at_once(str, range(5), remote=True)] == [*"01234"]
    with pytest.raises(TypeError):
        list(at_once(len, range(5), remote=True))
    assert {*threading.enumerate()} <= before


def test_who_asks_no_further_does_not_wait():
    hold = threading.Event()
    answers = at_once(lambda number: number or hold.wait(), [1, 0], remote=True)
    assert next(answers) == 1
    answers.close()
    assert not hold.is_set()
    hold.set()


def soon(happens):
    """Whether something happens within ten seconds."""
    end = time.monotonic() + 10
    while not happens() and time.monotonic() < end:
        time.sleep(0.01)
    return happens()


def test_a_pool_keeps_no_answer_and_hands_every_error_over():
    pool = StoppingPool(1)
    kept = weakref.ref(pool.submit(threading.Event).result())
    assert soon(lambda: kept() is None)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit).result(10)
    assert pool.submit(int).result(10) == 0
    pool.stop(wait=True)
    begin = time.monotonic()
    pause(0.05)
    assert time.monotonic() - begin >= 0.05


def test_what_can_be_interrupted_returns_and_raises_as_it_would():
    before = threading.active_count()
    assert interruptible(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
    pool = StoppingPool(1)
    inside = pool.submit(lambda: interruptible(threading.get_ident) == threading.get_ident())
    assert inside.result()  # a thread's own wait is nobody's to interrupt
    pool.stop(wait=True)
    assert soon(lambda: threading.active_count() == before)


ENDING = """
import threading, time
from shardsieve.io import stopping

stopping._FAREWELL = 0.3
pool, begun = stopping.StoppingPool(2), threading.Barrier(3)

def can_be_let_go():
    begun.wait()
    stopping.pause(3600)
    print("let go", flush=True)

def stands_still():
    begun.wait()
    time.sleep(3600)

pool.submit(stands_still)
pool.submit(can_be_let_go)
begun.wait()
"""


def test_the_end_of_a_program_lets_threads_go_and_waits_for_none_that_stands_still():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"let go\n", b"")


@pytest.mark.parametrize(("error", "waits"), [(None, 1), (Stopped, 1), (OSError, 0)])
def test_who_leaves_training_with_all_others_waits_for_the_sum_under_way(error, waits):
    work, two = mock.Mock(), SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    reduce = mock.patch("torch.distributed.all_reduce", return_value=work)
    with reduce, suppress(Stopped, OSError), Stopping(two) as stopping:
        for _ in range(9):
            assert not stopping.after_step()
        assert work.wait.call_count == 0
        if error is not None:
            raise error
    assert work.wait.call_count == waits


ONE = SimpleNamespace(device=torch.device("cpu"), num_processes=1)


def test_sigterm_is_heard_while_a_run_trains_and_by_its_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping(ONE) as stopping:
        assert not stopping.after_step()
        signal.raise_signal(signal.SIGTERM)
        assert stopping.after_step()
    assert signal.getsignal(signal.SIGTERM) is before
    heard = []

    def elsewhere():
        with Stopping(ONE) as stopping:
            heard.append(stopping.after_step())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_that_was_forked_meanwhile_dies_of_sigterm_as_any_other():
    with Stopping(ONE) as stopping:
        if not (worker := os.fork()):
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        status = os.waitpid(worker, 0)[1]
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert not stopping.after_step()


def test_several_processes_stop_eight_steps_after_they_were_summed_up():
    work, two = mock.Mock(), SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    with mock.patch("torch.distributed.all_reduce", return_value=work), Stopping(two) as stopping:
        assert not any(stopping.after_step() for _ in range(8))
        signal.raise_signal(signal.SIGTERM)
        assert [stopping.after_step() for _ in range(16)] == [False] * 15 + [True]
        assert work.wait.call_count == 2
