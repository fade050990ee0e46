"""What to do, for the end of a sentence: the step that costs least, named as it is given."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import sys
from pathlib import Path

from goods.errors import ParameterError
from goods.files import ROOT, resolve
from goods.params import Params


def train_again(file: Path) -> str:
    """How the one fold that a damaged file is of is trained again."""
    folders = [name for name in file.parts[:-1] if name == "refit" or re.fullmatch(r"fold\d+", name)]
    if not folders:
        return "train the fold again: retrain=true"
    if folders[-1] == "refit":
        return "train the refit again: retrain=true refit=true, --steps refit"
    return f"train the fold again: retrain=true, --folds {folders[-1].removeprefix('fold')}"


def other_name(run: Path) -> str:
    """Where a run's name is taken: nothing of it has to go."""
    number = next(n for n in itertools.count(2) if not run.with_name(f"{run.name}-{n}").exists())
    return f"choose another name for run, such as run={run.name}-{number}"


def _names_in(outputs_dir: str | Path) -> list[str]:
    """The names of the runs that are there."""
    return sorted(path.parent.name for path in resolve(outputs_dir).glob("*/run.json"))


def no_such_run(name: str, outputs_dir: str | Path) -> str:
    """The sentence for a run that isn't there, with the nearest name that is."""
    there = _names_in(outputs_dir)
    near = difflib.get_close_matches(name, there, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(there) or 'none'}"
    return f"there is no run '{name}' in {outputs_dir}; {advice}"


def check_named_runs(p: Params) -> None:
    """Raises ParameterError when `runs` or `pseudo_from` names a run that isn't there."""
    for parameter, name in [*(("runs", name) for name in p.runs), ("pseudo_from", p.pseudo_from)]:
        if name and name not in _names_in(p.outputs_dir):
            raise ParameterError(f"{parameter}: {no_such_run(name, p.outputs_dir)}")


def command(script: str, **options: object) -> str:
    """A call of one of the project's scripts as it can be typed here, by the Python that runs now."""
    inside = os.path.relpath(sys.executable, ROOT)
    python = "python" if inside.startswith("..") or os.path.isabs(inside) else inside
    return " ".join([python, script, *(f"--{name} {value}" for name, value in options.items())])
