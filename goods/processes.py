"""Processes that end with the one that started them, however that went."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

POLL_SECONDS = 0.5
R = TypeVar("R")


@functools.cache  # once per process
def end_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps the number of a parent that is gone
        threading.Thread(target=watch, daemon=True).start()


def speak_plainly() -> None:
    """What this process prints goes out whatever the terminal takes: where a sign can't be shown, its code is."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def in_parallel(call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], jobs: int) -> list[Any]:
    """call(*each) of all arguments, in `jobs` processes (one job: in this one); the results in their order."""
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs)(delayed(_called)(os.getpid(), call, *each) for each in arguments)


def on_one_thread(call: Callable[..., R]) -> Callable[..., R]:
    """The function, with linear algebra on one thread: where matrices are small, more only wait for one another, and
    beside other work a hundred times as long as the sum takes."""

    @functools.wraps(call)
    def limited(*arguments: Any, **named: Any) -> R:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return call(*arguments, **named)

    return limited


def _called(parent: int, call: Callable[..., Any], *arguments: Any) -> Any:
    if os.getpid() != parent:  # joblib's workers outlive a parent that is killed, and would go on training
        end_with_parent()
    return call(*arguments)
