"""What a run was made with: versions, processor, memory, the commit of this project. Light, no torch."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from goods.files import ROOT

PACKAGES = "torch transformers accelerate safetensors numpy pandas scikit-learn pillow papermill".split()


def environment() -> dict[str, Any]:
    """Versions and machine, so that a run can be made again; what can't be told is left out or None."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    machine = {"processor": processor(), "cpus": os.cpu_count(), "memory_gib": memory_gib(), "commit": commit()}
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


def memory_gib() -> float | None:
    """The machine's memory, GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None


def peak_ram_gib() -> float | None:
    """The most memory that this process has held so far, GiB; None where the system doesn't count it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, and on macOS bytes
    return round(peak / 2 ** (30 if sys.platform == "darwin" else 20), 2)


def used(seconds: float) -> dict[str, Any]:
    """What a training took, for a fold's metrics.json: its seconds, and the peak of its process's memory."""
    peak = peak_ram_gib()
    return {"seconds": round(seconds, 1)} | ({} if peak is None else {"peak_ram_gib": peak})
