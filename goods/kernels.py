"""Jupyter's kernels: one that is started so that its end is known, and what a process sees that is one."""

from __future__ import annotations

import ast
import signal
import sys
from collections.abc import Mapping
from typing import Any

from goods.machine import memory_of_machine, peak_memory

SIGKILL = 9  # as signal has it, but on Windows
LESS_MEMORY = "a smaller batch_size or eval_batch_size, fewer num_workers, or --jobs 1"


def shell() -> Any:
    """IPython's shell where this process is a kernel, else None."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def left_by_startup(namespace: Mapping[str, Any]) -> set[str]:
    """Names that no cell has given a value: of the files that IPython runs at its start, not of the notebook."""
    found = shell()
    before = set(getattr(found, "user_ns_hidden", ())) if found is not None else set()
    return before - {name for source in namespace.get("In", ()) for name in _given(source)}


def _given(source: str) -> set[str]:
    """The names that a cell gives a value."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # of a cell that failed
        return set()
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return names | {node.name for node in nodes if isinstance(node, defined)} | {
        (alias.asname or alias.name).partition(".")[0] for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip


def watched_kernel() -> Any:
    """A class of kernel managers, of which `exit_status` says how its kernel ended, None while it runs."""
    from jupyter_client.manager import AsyncKernelManager

    class Watched(AsyncKernelManager):
        exit_status: int | None = None

        async def is_alive(self) -> bool:
            process = getattr(getattr(self, "provisioner", None), "process", None)  # an older client has none
            alive = await super().is_alive()
            if not alive and process is not None:
                Watched.exit_status = process.returncode
            return alive

    return Watched


def death_sentence(status: int | None) -> str:
    """How a kernel ended that no cell has ended, and the memory that it had."""
    most, there = peak_memory(of_children=True) / 1e9, memory_of_machine() / 1e9
    had = f"it had {most:.1f} GB of memory, of this machine's {there:.1f} GB"
    if status == -SIGKILL:
        return (f"the kernel was killed (SIGKILL), as the system does when memory runs out; {had}. If that is near: "
                f"{LESS_MEMORY}")  # fmt: skip
    if status is not None and status < 0:
        return f"the kernel crashed ({_signal_name(-status)}), which is no error of a cell but of a library; {had}"
    ended = "" if status is None else f" with status {status}"
    return f"the kernel ended{ended} within a cell; {had}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
