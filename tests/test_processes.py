"""Workers end with the process that started them, also when it is killed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from goods.files import ROOT, is_alive
from goods.kernels import death_sentence
from goods.machine import memory_of_machine
from goods.processes import in_parallel, speak_plainly
from goods.step import ends_as

SLEEP = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from worker import work
from goods.processes import in_parallel
in_parallel(work, [(0,), (60,)], 2)
"""
WORK = """
import os, time

def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
"""


def test_a_terminal_that_knows_few_signs_stops_nothing(monkeypatch):
    """As PYTHONIOENCODING=ascii makes one."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    speak_plainly()
    print("Straße 茶")
    out.flush()
    assert out.buffer.getvalue() == b"Stra\\xdfe \\u8336\n"


def test_how_a_kernel_died_is_said_with_the_memory_there_is():
    machine = f"of this machine's {memory_of_machine() / 1e9:.1f} GB"
    for status, words in ((-9, "the kernel was killed (SIGKILL), as the system does when memory runs out; it had "),
                          (-11, "the kernel crashed (SIGSEGV), which is no error of a cell but of a library; it had "),
                          (3, "the kernel ended with status 3 within a cell; it had "),
                          (None, "the kernel ended within a cell; it had ")):  # fmt: skip
        assert death_sentence(status).startswith(words) and machine in death_sentence(status)
    assert memory_of_machine() > 10**8


def test_results_come_in_their_order():
    assert in_parallel(pow, [(2, 3), (3, 2), (5, 1)], 1) == [8, 9, 5]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="elsewhere a process can't see that its parent is gone")
def test_workers_of_a_killed_process_end(tmp_path):
    (tmp_path / "worker.py").write_text(WORK)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", SLEEP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(2)}
        assert parent.pid not in workers and all(map(is_alive, workers))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 15
        while any(map(is_alive, workers)) and time.monotonic() < until:
            time.sleep(0.1)
    assert not any(map(is_alive, workers))


def test_an_error_of_a_cell_is_told_in_words():
    of_torch = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
    for error in (MemoryError("10 GiB"), of_torch, OSError(12, "Cannot allocate memory")):
        message = ends_as(error)["message"]
        assert message.startswith("memory ran out: this machine has ") and "of which the notebook had" in message
    assert ends_as(RuntimeError("shapes differ"))["message"] == "RuntimeError: shapes differ"
    assert ends_as(OSError(28, "No space left on device"))["message"].startswith("the disk is full. Make room")
    assert ends_as(ZeroDivisionError("x"))["message"] == "ZeroDivisionError: x"
