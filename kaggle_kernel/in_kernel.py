"""What runs inside the kernel: finds what is attached, runs the pipeline, leaves what is worth keeping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from goods.errors import GoodsError
from goods.files import ROOT, read_json_if_whole
from goods.members import kind_of, open_run
from goods.params import OUTPUTS, Params, load_run
from goods.run import Run
from goods.training.tracking import answer_within, has_key, pick_mode
from kaggle_kernel import rerun
from kaggle_kernel.attached import (
    NEEDS_RUN,
    earlier_run,
    find_inputs,
    link_models,
    link_runs,
    link_vectors,
    the_competition,
)

FREE_GB = 2.0  # the least to start with: executed notebooks, predictions and the weights of small models
SECRET = "WANDB_API_KEY"
SECRET_SECONDS = 10.0  # for Kaggle to hand out a secret


class Session(NamedTuple):
    """What this session does: the command, or where all is trained already, a prediction alone."""

    p: Params
    command: list[str]
    working: Path
    scratch: Path
    predictor: Any = None


def prepare(kaggle: Path, config: str, run: str | None = None, folds: list[int] | None = None, **given: Any) -> Session:
    """Finds the inputs below kaggle/input and says what will be run; None means "as the config says".

    An attached output of this run is gone on from. An export of it predicts, and in a scoring re-run
    (KAGGLE_IS_COMPETITION_RERUN) so does whatever of it is trained: a finished run, a blend by its runs, or else the
    trained folds. Raises GoodsError when something needed isn't attached.
    """
    inputs, working, scratch = kaggle / "input", kaggle / "working", kaggle / "temp"
    _check_disk(working)
    attached = find_inputs(inputs)
    given = {name: value for name, value in given.items() if value is not None}
    if "data_dir" not in given:
        given["data_dir"] = str(the_competition(attached["competition"], inputs))
    given |= {"outputs_dir": str(working / "outputs")} | ({"run": run} if run else {})
    p = load_run(config, **given)
    _link_cache(working, scratch)  # before a run is opened, which keeps the hash of the weights there
    if predictor := rerun.attached_predictor(p, attached, inputs, scratch, scoring_rerun()):
        return Session(p, [], working, scratch, predictor)
    before, kind = earlier_run(attached["run"], p), kind_of(p)
    _check_pseudo_labels(p, before)
    link_models(p, kind.model_dirs(p), attached["model"], inputs)
    link_vectors(chain(*kind.vector_files(p).values()), inputs)
    link_runs(p, attached["run"])
    steps = []
    if before and scoring_rerun() and before.trained():
        open_run(p)
        Run.of(p).adopt(p, before, with_test=False)
        steps = ["--steps", "ensemble", "submission"]
        print(f"scoring re-run: the folds {', '.join(map(str, before.trained()))} of {before.folder} predict")
    elif before and not before.exported:
        given["resume_from"] = str(before.folder)
        print(f"going on from {before.folder}")
    read = [*kind.model_dirs(p).values(), *chain(*kind.vector_files(p).values())]
    models = [str(path.resolve()) for path in read] or [f"none, kind {kind.name}"]
    print(f"competition: {p.data_dir}\nmodel: {', '.join(models)}\nrun: {p.run_dir}")
    command = [sys.executable, "pipeline.py", "--config", config, "--run", p.run, *steps]
    if folds is not None and not steps:
        command += ["--folds", *map(str, folds)]
    command += ["--set", *(f"{name}={json.dumps(value)}" for name, value in given.items() if name != "run")]
    return Session(p, command, working, scratch)


def _check_pseudo_labels(p: Params, before: Run | None) -> None:
    """Raises GoodsError where a scoring re-run would train on labels of products that the hidden test set lacks."""
    if scoring_rerun() and p.pseudo_from and not (before and before.trained()):
        raise GoodsError(f"run '{p.run}' learns from pseudo-labels of the public test set, which can't be trained on "
                         f"the hidden one, and no attached output has it. {NEEDS_RUN}")  # fmt: skip


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


def run(session: Session) -> None:
    """Runs the pipeline, showing its lines, or predicts; at its end submission.csv lies at the working folder's root.

    Caches and attached runs are no part of the output. Raises GoodsError with what the pipeline said when a step
    failed.
    """
    _link_cache(session.working, session.scratch)  # again, when the cell is run again
    own = Run.of(session.p)
    try:
        if session.predictor:
            rerun.submit(session.p, session.predictor)
        else:
            _pipeline(session)
    finally:
        _tidy(own)
    if own.submission.is_file():
        shutil.copyfile(own.submission, session.working / "submission.csv")
    else:
        print("to go on, attach this output to the next version: make kernel USER=... RESUME=yes, then make push")


def _pipeline(session: Session) -> None:
    status, lines = _stream(session.command, wandb_environment(session.p))
    if status:
        failed = [line for line in lines if " failed: " in line] or lines[-1:]
        raise GoodsError("; ".join(failed) or f"the pipeline ended with status {status} and said nothing")


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
    run = session.predictor.run if session.predictor else Run.of(session.p)
    found = read_json_if_whole(run.metrics)
    return pd.DataFrame({name: found[name] for name in OUTPUTS if name in found}).T.round(4)
