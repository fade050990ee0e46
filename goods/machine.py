"""This machine: versions, processor, the memory that it has and that is used, the project's commit. Light, no torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from goods.files import ROOT

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
PACKAGES = "torch transformers accelerate safetensors numpy pandas scikit-learn pillow papermill".split()


def environment() -> dict[str, Any]:
    """Versions and machine, so that a run can be made again; what can't be told is left out or None."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gib": in_gib(memory_of_machine()),
        "commit": commit(),
    }
    return {"python": sys.version.split()[0], "platform": platform.platform()} | machine | versions


@functools.cache
def commit() -> str | None:
    """The commit that this project stands at, with "+" where files differ from it; None where git can't tell."""
    if not (ROOT / ".git").exists():
        return None
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--match=", "--dirty=+"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def memory_of_machine() -> int:
    """Bytes of memory that this machine has, or that its container may take; 0 where nobody tells."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has none
        return 0
    for path in map(Path, CGROUPS):
        try:
            found = min(found, int(path.read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return found


def peak_memory(of_children: bool = False) -> int:
    """The most bytes that this process, or the largest of its ended children, has held; 0 where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows has none
        return 0
    most = resource.getrusage(resource.RUSAGE_CHILDREN if of_children else resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def give_back() -> None:
    """Hands back to the system what was freed: glibc keeps the memory of many small objects. Elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_gib(count: int) -> float | None:
    """Bytes as GiB; None for those that nobody tells."""
    return round(count / 2**30, 2) if count else None


def used(seconds: float) -> dict[str, Any]:
    """What a training took, for a fold's metrics.json: its seconds, and the peak of its process's memory."""
    peak = in_gib(peak_memory())
    return {"seconds": round(seconds, 1)} | ({} if peak is None else {"peak_ram_gib": peak})
