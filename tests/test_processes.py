"""Workers end with the process that started them, also when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from goods.files import ROOT, is_alive
from goods.processes import in_parallel

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
