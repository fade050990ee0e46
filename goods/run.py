"""A run on disk: its parameters, its folds, what made it, and whether it may be gone on from."""

from __future__ import annotations

import difflib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from goods.errors import GoodsError
from goods.files import resolve, write_json, write_text
from goods.params import RUNTIME_FIELDS, Params


def open_run(p: Params) -> Path:
    """The run's folder, made on first use; it keeps the parameters and the versions that made it.

    Raises GoodsError when the name is already used by a run whose parameters differ in anything that changes results,
    or when the parameters name a run that isn't there.
    """
    path = p.run_dir / "params.yaml"
    if path.is_file():
        # A parameter that is younger than the run had its default then.
        before = Params().model_dump(mode="json") | load_recorded(path)
        now = p.model_dump(mode="json")
        differ = [n for n in Params.model_fields if n not in RUNTIME_FIELDS and before[n] != now[n]]
        if differ:
            changes = ", ".join(f"{n} was {before[n]!r} and is now {now[n]!r}" for n in differ)
            raise GoodsError(f"run '{p.run}' was made with other parameters: {changes}. "
                             f"Choose another name for run, or delete {p.run_dir}")  # fmt: skip
        return p.run_dir
    _check_named_runs(p)
    write_text(path, yaml.safe_dump(p.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    write_json(p.run_dir / "environment.json", environment())
    return p.run_dir


def _check_named_runs(p: Params) -> None:
    """Raises GoodsError when `runs` or `pseudo_from` names a run that isn't there, before this one records it."""
    there = sorted(path.parent.name for path in resolve(p.outputs_dir).glob("*/params.yaml"))
    for parameter, name in [*(("runs", name) for name in p.runs), ("pseudo_from", p.pseudo_from)]:
        if name and name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(there) or 'none'}"
            raise GoodsError(f"{parameter}: there is no run '{name}' in {p.outputs_dir}; {advice}")


def load_recorded(path: Path) -> dict[str, Any]:
    """The parameters a run was made with, from its params.yaml."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError):
        raise GoodsError(f"{path} can't be read; delete the run's folder to start it anew") from None


def deadline(p: Params) -> float | None:
    """The moment (seconds since 1970) at which to stop: max_hours after the pipeline's start, or after now."""
    return float(os.environ.get("GOODS_STARTED") or time.time()) + p.max_hours * 3600 if p.max_hours else None


def environment() -> dict[str, Any]:
    """Versions and machine, so that a run can be made again."""
    names = "torch transformers accelerate safetensors numpy pandas scikit-learn pillow papermill".split()
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"python": sys.version.split()[0], "platform": platform.platform(), "cpus": os.cpu_count(), **versions}


def saved_files(p: Params, *patterns: str) -> pd.DataFrame:
    """The run's files that match the patterns, with their sizes: the last table of a notebook."""
    files = [f for pattern in patterns for f in sorted(p.run_dir.glob(pattern))]
    return pd.DataFrame({"file": [str(f.relative_to(p.run_dir)) for f in files],
                         "kB": [round(f.stat().st_size / 1000, 1) for f in files]})  # fmt: skip
