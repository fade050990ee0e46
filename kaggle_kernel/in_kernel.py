"""What runs inside the kernel: finds what is attached, runs the pipeline, leaves what is worth keeping."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from goods.errors import GoodsError
from goods.files import ROOT, read_json_if_whole, resolve
from goods.members import kind_of, open_run
from goods.params import OUTPUTS, Params, load_run
from goods.places import PHOTO_ENDINGS, holds_tables
from goods.run import MARKERS, Run
from goods.training.tracking import answer_within, has_key, pick_mode

MOST_DEPTH = 8  # models/<owner>/<model>/<framework>/<variation>/<version> lies six deep
FREE_GB = 2.0  # the least to start with: executed notebooks, predictions and the weights of small models
SECRET = "WANDB_API_KEY"
SECRET_SECONDS = 10.0  # for Kaggle to hand out a secret
NEEDS_MODEL = "make kernel MODEL=owner/dataset, or owner/model/framework/variation/version"


def find_inputs(root: Path) -> dict[str, list[Path]]:
    """Folders below `root` by kind: "competition" (train and test tables), "model" (config.json and weights), "run".

    Mounts have moved between /kaggle/input/<slug> and several levels below it, so files tell, not paths. Each folder
    is listed once and those of photos are not entered: 100,000 files cost a second or less.
    """
    found = defaultdict(list)
    seen: set[str] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # one place mounted under two names
            continue
        seen.add(real)
        kind, inner = _look_into(folder)
        if kind:
            found[kind].append(folder)
        elif depth < MOST_DEPTH:
            waiting += [(folder / name, depth + 1) for name in inner]
    return {kind: sorted(found[kind]) for kind in ("competition", "model", "run")}


def _look_into(folder: Path) -> tuple[str, list[str]]:
    """The kind of a folder by its marker files (empty when it has none), and its folders that may hold others."""
    names, inner = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.lower().endswith(PHOTO_ENDINGS):
                    names.add(entry.name)
                    if "image" not in entry.name and not entry.name.startswith(".") and entry.is_dir():
                        inner.append(entry.name)
    except OSError:
        return "", []
    if holds_tables(names):
        return "competition", []
    if names >= MARKERS:
        return "run", []
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "model", []
    return "", inner


def the_competition(folders: Sequence[Path], root: Path) -> Path:
    """The one competition folder. Raises GoodsError when none or several are attached."""
    if not folders:
        raise GoodsError(f"no competition is attached: below {root} no folder has both train.csv and test.csv. "
                         "Add one (Add Input, or make kernel COMPETITION=slug) and accept its rules")  # fmt: skip
    if len(folders) > 1:
        raise GoodsError(f"{len(folders)} competitions are attached: {', '.join(map(str, folders))}. Remove all but "
                         'one, or name one in the parameters cell: settings = {"data_dir": "..."}')  # fmt: skip
    return folders[0]


def the_model(folders: Sequence[Path], name: str, root: Path) -> Path:
    """The folder with the backbone called `name`: its path, or the name in its config.json, holds all of its words.

    Raises GoodsError when none does, or several do.
    """
    words = _words(name)
    fitting = [folder for folder in folders if words <= _words(f"{folder.relative_to(root)} {_own_name(folder)}")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise GoodsError(f"the weights of {name} are attached more than once: {', '.join(map(str, fitting))}. "
                         "Remove all but one")  # fmt: skip
    attached = f"attached are those of another: {', '.join(map(str, folders))}" if folders else "none are attached"
    raise GoodsError(f"the config needs the weights of {name}, but {attached}. Attach a dataset or model of that name "
                     f"({NEEDS_MODEL})")  # fmt: skip


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", text.lower())) - {""}


def _own_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def earlier_run(folders: Sequence[Path], p: Params) -> Run | None:
    """The attached one of the runs called p.run that got furthest, or None."""
    recorded = {run: run.parameters() for run in map(Run, folders)}
    own = [run for run, was in recorded.items() if (was["run"], was["debug"]) == (p.run, p.debug)]
    done = {run: (len(run.trained()), sum(fold.resumable for fold in run.folds())) for run in own}
    return max(done, key=done.get, default=None)


class Session(NamedTuple):
    """What this session does."""

    p: Params
    command: list[str]
    working: Path
    scratch: Path


def prepare(kaggle: Path, config: str, run: str | None = None, folds: list[int] | None = None, **given: Any) -> Session:
    """Finds the inputs below kaggle/input and says what will be run; None means "as the config says".

    An attached output of this run is gone on from. In a scoring re-run (KAGGLE_IS_COMPETITION_RERUN) an attached
    run's trained folds only predict. Raises GoodsError when something needed isn't attached.
    """
    inputs, working, scratch = kaggle / "input", kaggle / "working", kaggle / "temp"
    _check_disk(working)
    attached = find_inputs(inputs)
    given = {name: value for name, value in given.items() if value is not None}
    if "data_dir" not in given:
        given["data_dir"] = str(the_competition(attached["competition"], inputs))
    given |= {"outputs_dir": str(working / "outputs")} | ({"run": run} if run else {})
    p = load_run(config, **given)
    kind = kind_of(p)
    if "model_name" in kind.models:
        _link_model(p, attached["model"], inputs)
    _link_runs(p, attached["run"])
    _link_cache(working, scratch)  # before a run is opened, which keeps the hash of the weights there
    before = earlier_run(attached["run"], p)
    steps = []
    if before and scoring_rerun() and before.trained():
        open_run(p)
        Run.of(p).adopt(p, before, with_test=False)
        steps = ["--steps", "ensemble", "submission"]
        print(f"scoring re-run: the folds {', '.join(map(str, before.trained()))} of {before.folder} predict")
    elif before:
        given["resume_from"] = str(before.folder)
        print(f"going on from {before.folder}")
    model = resolve(p.model_name).resolve() if "model_name" in kind.models else f"none, kind {kind.name}"
    print(f"competition: {p.data_dir}\nmodel: {model}\nrun: {p.run_dir}")
    command = [sys.executable, "pipeline.py", "--config", config, "--run", p.run, *steps]
    if folds is not None and not steps:
        command += ["--folds", *map(str, folds)]
    command += ["--set", *(f"{name}={json.dumps(value)}" for name, value in given.items() if name != "run")]
    return Session(p, command, working, scratch)


def scoring_rerun() -> bool:
    """Whether Kaggle runs the kernel again on the hidden test set."""
    return os.environ.get("KAGGLE_IS_COMPETITION_RERUN", "").lower() not in ("", "0", "false")


def _check_disk(working: Path) -> None:
    working.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(working).free / 1e9
    if free < FREE_GB:
        raise GoodsError(f"{working} has {free:.1f} GB left, and a run needs {FREE_GB:.0f} or more; "
                         "restart the session, or remove what earlier cells wrote there")  # fmt: skip


def _link_cache(working: Path, scratch: Path) -> None:
    """Puts the caches where no output is made of them."""
    cache = working / "outputs" / "cache"
    (scratch / "cache").mkdir(parents=True, exist_ok=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.unlink(missing_ok=True)
    cache.symlink_to(scratch / "cache", target_is_directory=True)


def _link_model(p: Params, folders: Sequence[Path], root: Path) -> None:
    """Puts the attached weights where the config expects them, so that a run has the same parameters everywhere."""
    path = resolve(p.model_name)
    if path.is_dir() and not path.is_symlink():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(the_model(folders, path.name, root), target_is_directory=True)


def _link_runs(p: Params, folders: Sequence[Path]) -> None:
    """Puts the attached runs that the parameters name where they are looked for, to be read. Raises GoodsError."""
    for name in filter(None, (*p.runs, p.pseudo_from)):
        place, run = resolve(p.outputs_dir) / name, earlier_run(folders, p.model_copy(update={"run": name}))
        if place.is_dir() and not place.is_symlink():  # made in this session
            continue
        if run is None:
            raise GoodsError(f"the config needs the run '{name}', and no attached output has it. Attach that of the "
                             "notebook that made it (Add Input, Your Work), or a dataset with its folder")  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(run.folder, target_is_directory=True)


def run(session: Session) -> None:
    """Runs the pipeline, showing its lines; at its end submission.csv lies at the root of the working folder.

    Caches and attached runs are no part of the output. Raises GoodsError with what the pipeline said when a step
    failed.
    """
    _link_cache(session.working, session.scratch)  # again, when the cell is run again
    try:
        status, lines = _stream(session.command, wandb_environment(session.p))
    finally:
        _tidy(Run.of(session.p))
    if status:
        failed = [line for line in lines if " failed: " in line] or lines[-1:]
        raise GoodsError("; ".join(failed) or f"the pipeline ended with status {status} and said nothing")
    if (submission := Run.of(session.p).submission).is_file():
        shutil.copyfile(submission, session.working / "submission.csv")
    else:
        print("to go on, attach this output to the next version: make kernel USER=... RESUME=yes, then make push")


def wandb_environment(p: Params) -> dict[str, str]:
    """The key of wandb from Kaggle's Secrets, for the pipeline's environment alone: no file and no cell shows it.

    Empty where tracking stays offline or needs no key from there; says in a line how it will be.
    """
    mode = pick_mode(p.wandb_mode, key_follows=True)
    if mode != "online" or has_key():
        print(f"wandb: {mode}")
    elif key := answer_within(SECRET_SECONDS, _read_secret):
        print(f"wandb: online, with the secret {SECRET}")
        return {SECRET: key}
    else:
        print(f"wandb: offline, no secret {SECRET} is attached (in the notebook's editor: Add-ons, Secrets)")
    return {}


def _read_secret() -> str:
    from kaggle_secrets import UserSecretsClient  # Kaggle's image has it

    return UserSecretsClient().get_secret(SECRET).strip()


def _stream(command: list[str], more: dict[str, str]) -> tuple[int, list[str]]:
    """Runs a command, showing its lines as they come; returns its exit status and its lines."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path} | more
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, errors="replace", **streams)
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
        return process.wait(), lines
    finally:
        if process.poll() is None:  # interrupted: the pipeline stops its steps
            process.terminate()
            process.wait()


def _tidy(run: Run) -> None:
    """Removes what nothing will read: links to attached runs, and what the run has no more use for."""
    for link in filter(Path.is_symlink, list(run.folder.parent.iterdir())):
        link.unlink()
    run.tidy()


def scores(session: Session) -> pd.DataFrame:
    """All metrics of the ensemble's outputs over all rows out of fold, the run's own first; empty before the end."""
    found = read_json_if_whole(Run.of(session.p).metrics)
    return pd.DataFrame({name: found[name] for name in OUTPUTS if name in found}).T.round(4)
