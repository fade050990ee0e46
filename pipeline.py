"""The notebooks in sequence through papermill: those that the run's kind takes, train once per fold.

    python pipeline.py --config params/demo.yaml
    python pipeline.py --config params/head.yaml --run hm --set data_dir=data/hm num_epochs=3 --folds 0 2

Knows the notebooks' order, parameters and files, nothing about models. A finished step whose inputs are unchanged is
skipped, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from goods.ensemble.verdict import verdict
from goods.errors import DamagedFileError, GoodsError
from goods.files import (
    ROOT,
    UNWRITABLE,
    file_hash,
    file_stamp,
    held,
    read_json,
    read_json_if_whole,
    sentence,
    write_json,
    write_text,
)
from goods.members import TRAINING, kind_of, notebooks_of, open_run, result_files, step_inputs
from goods.metric_names import SHOWN_AS, metric_first
from goods.params import DEFAULT_CONFIG, OUTPUTS, REFIT, RUNTIME_FIELDS, Params, load_run
from goods.processes import speak_plainly
from goods.run import DONE, Run, runs_in
from goods.settings import parse_settings
from goods.step import CANT_WRITE, CELL_SECONDS, STATUS
from goods.words import duration

STEPS = ("eda", "trust", "train", "baseline", "refit", "ensemble", "submission", "pseudo_label", "embed")
NOTEBOOKS = ROOT / "notebooks"
STARTED = time.time()
POLL_SECONDS = 0.2
GRACE_HOURS = 0.5  # for a step that stops in time to save what it has, before its cell is ended


class Step(NamedTuple):
    """One run of one notebook."""

    name: str
    fold: int | None = None

    def __str__(self) -> str:
        return self.name if self.fold is None else f"{self.name} fold {self.fold}"

    @property
    def file(self) -> str:
        """What its files in the run's notebooks folder are called: `train_fold2`."""
        return self.name if self.fold is None else f"{self.name}_fold{self.fold}"


@dataclass
class Running:
    """A step under way: its process, and the epochs of it that have been shown."""

    step: Step
    key: str
    slot: int
    process: subprocess.Popen
    began: float = field(default_factory=time.monotonic)
    shown: list[str] = field(default_factory=list)


# What a step depends on ----------------------------------------------------------------------------------------------


def notebook_source(name: str) -> list[list[Any]]:
    """A notebook's cells without outputs, as [type, tags, source].

    Raises GoodsError when it isn't a notebook, or has no cell tagged "parameters": papermill would run it all the same
    and the notebook's own defaults would win in silence.
    """
    path = NOTEBOOKS / f"{name}.ipynb"
    try:
        cells = [
            [cell.get("cell_type"), cell.get("metadata", {}).get("tags", []), "".join(cell.get("source", []))]
            for cell in read_json(path)["cells"]
        ]
    except (DamagedFileError, KeyError, TypeError, AttributeError):
        raise GoodsError(f"{path} is missing or is not a notebook; get it back from git") from None
    if not any("parameters" in tags for _, tags, _ in cells):
        raise GoodsError(f"{path} has no cell tagged 'parameters'; tag the one that holds config, run and fold")
    return cells


stamp = functools.cache(file_stamp)  # photos are looked at once, not once per fold


def step_key(step: Step, p: Params) -> str:
    """A hash over all that a step's result depends on: parameters, notebook, data, models, earlier results, code."""
    inputs = step_inputs(step.name, p)
    # By the way from the run to them: several runs have files of the same name, and outputs/ may move.
    hashed = {os.path.relpath(f, p.run_dir): file_hash(f) if f.is_file() else None for f in inputs.hashed}
    by_contents = set(kind_of(p).model_hashes(p))  # another path to the same files changes nothing
    parts = [
        step.file,
        p.model_dump(mode="json", exclude=(RUNTIME_FIELDS | by_contents) - {"data_dir"}),
        p.chosen_folds if step.name == "baseline" else [],
        [p.pseudo_precision, p.pseudo_cap] if step.name == "pseudo_label" else [],
        notebook_source(step.name),
        stamp(inputs.stamped),
        hashed,
        inputs.models,
        inputs.code,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# Processors ----------------------------------------------------------------------------------------------------------


@functools.cache
def gpus() -> list[str]:
    """The GPUs a fold can have for itself, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def step_environment(slot: int, jobs: int) -> dict[str, str]:
    """The environment of a step's process; with several jobs each has its own GPU and its share of the cores.

    `jobs`: as many as may run at once in the stage, whatever is due of it, so that a step computes the same again.
    """
    # First on jupyter's path: a kernel "python3" in the user's home may belong to another Python.
    kernels = [str(Path(sys.prefix, "share", "jupyter")), os.environ.get("JUPYTER_PATH", "")]
    environment = os.environ | {"JUPYTER_PATH": os.pathsep.join(filter(None, kernels))}
    environment.setdefault("GOODS_STARTED", str(STARTED))  # max_hours counts from here
    # Threads that wait give the core to others: where cores are shared, spinning ones cost a training 9 tenths.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
        if gpus():
            environment["CUDA_VISIBLE_DEVICES"] = gpus()[slot % len(gpus())]
    return environment


def cell_limit(p: Params) -> dict[str, str]:
    """How long a cell may run, for the environment of a step: p.max_cell_hours, or till a while after p.max_hours."""
    left = [] if p.max_hours is None else [max(0, p.max_hours - hours_so_far()) + GRACE_HOURS]
    hours = [*left, *([] if p.max_cell_hours is None else [p.max_cell_hours])]
    return {CELL_SECONDS: str(3600 * min(hours))} if hours else {}


def hours_so_far() -> float:
    """Hours since the pipeline's start, or since the session's where that says when it was."""
    return (time.time() - float(os.environ.get("GOODS_STARTED") or STARTED)) / 3600


# Running the steps ---------------------------------------------------------------------------------------------------


@dataclass
class Pipeline:
    """One call: what to run, and what came of it."""

    p: Params
    parameters: dict[str, Any]  # what every notebook gets
    stages: list[list[Step]]  # the steps of a stage may run side by side
    jobs: int | str  # a number, or "auto": one per GPU
    force: bool
    took: dict[Step, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stopped: list[Step] = field(default_factory=list)  # in time, their state saved
    warned: bool = False  # whether it was said what the first step found odd in the goods

    @functools.cached_property
    def disk(self) -> Run:
        """The run's files."""
        return Run.of(self.p)

    def file(self, step: Step, ending: str) -> Path:
        """One of the step's files in the run's notebooks folder."""
        return self.disk.notebooks / f"{step.file}{ending}"

    def written(self, step: Step) -> list[Path]:
        """The result files that a finished step has left."""
        return result_files(step.name, step.fold, self.p)

    def run(self) -> int:
        """Runs all stages, the only pipeline of this run; returns the exit status: 1 when a step failed."""
        with held(self.disk.pipeline_lock, f"run '{self.disk.name}'", [self.disk.folder, self.disk.notebooks]):
            open_run(self.p)  # not before: it may write run.json, which the holder's steps read
            for stage in self.stages:
                self.run_stage(stage)
                if self.failures or self.stopped:
                    break
        index = compare_runs(self.p)  # the run is in nobody's hands any more
        if self.failures:
            print("\n".join(["", *self.failures]), file=sys.stderr, flush=True)
            return 1
        if self.stopped:
            print("\nmax_hours are over and the state is saved; the same command goes on from there", flush=True)
            return 0
        print_summary(self, index)
        return 0

    def run_stage(self, steps: list[Step]) -> None:
        """Runs the steps that are due, `jobs` at a time, to the end of the last one."""
        waiting, jobs = self.due(steps), len(steps)
        if waiting and jobs > 1:  # asking for GPUs takes its time, so not for a single step
            jobs = min(jobs, max(1, len(gpus())) if self.jobs == "auto" else int(self.jobs))
        slots, running = list(range(jobs)), []
        try:
            while waiting or running:
                while waiting and slots:
                    if self.over(waiting[0][0]):
                        self.stopped += [step for step, _ in waiting]
                        waiting.clear()
                        break
                    running.append(self.start(*waiting.pop(0), slots.pop(0), jobs))
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if self.ended(job)]:
                    running.remove(job)
                    slots.append(job.slot)
                    if self.finish(job) == "refused":  # the same mistake would stop every other fold
                        waiting.clear()
        finally:
            stop(running)

    def begun(self) -> bool:
        """Whether a fold is trained or has stopped in time: a later one that finds the time over is no error."""
        return bool(self.stopped) or any(step.name in TRAINING for step in self.took)

    def over(self, step: Step) -> bool:
        """Whether max_hours are over for a fold that has not started; the first one says so itself, as an error."""
        most = self.p.max_hours
        return step.name in TRAINING and self.begun() and most is not None and hours_so_far() > most

    def due(self, steps: list[Step]) -> list[tuple[Step, str]]:
        """The steps to run, each with its key; the others are unchanged."""
        due = []
        for step in steps:
            key = step_key(step, self.p)
            done = read_json_if_whole(self.file(step, DONE))
            there = all(path.is_file() for path in (self.file(step, ".ipynb"), *self.written(step)))
            again = self.force or (self.p.retrain and step.name in TRAINING)
            whole = done.get("key") == key and isinstance(done.get("seconds"), int | float)
            if whole and there and not again:
                self.took[step] = f"{duration(done['seconds'])}, earlier"
                print(f"{step!s:<13} skipped, unchanged", flush=True)
            else:
                due.append((step, key))
        return due

    def start(self, step: Step, key: str, slot: int, jobs: int) -> Running:
        """Starts papermill on the step's notebook; the one of an earlier call stays until this one has ended well."""
        for ending in (DONE, ".status.json"):  # a step that is killed must not count as done
            self.file(step, ending).unlink(missing_ok=True)
        parameters = self.parameters | ({} if step.fold is None else {"fold": step.fold})
        settings = self.file(step, ".yaml")
        write_text(settings, yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True))
        source, executed = NOTEBOOKS / f"{step.name}.ipynb", self.file(step, ".ipynb")
        command = [sys.executable, "-m", "goods.step", source, executed, settings, *self.written(step)]
        print(f"{step!s:<13} started", flush=True)
        with self.file(step, ".log").open("w", encoding="utf-8") as log:
            environment = step_environment(slot, jobs) | {STATUS: str(self.file(step, ".status.json"))}
            environment |= cell_limit(self.p)
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
        return Running(step, key, slot, process, shown=epoch_lines(step, self.disk))

    def ended(self, job: Running) -> bool:
        """Shows how a step gets on; True when its process is gone."""
        gone = job.process.poll() is not None
        show_epochs(job, self.disk, self.p.metric)
        return gone

    def finish(self, job: Running) -> str:
        """Records how a step ended; returns its outcome: done, stopped, refused or failed."""
        step, seconds, exit_status = job.step, time.monotonic() - job.began, job.process.returncode
        status = read_json_if_whole(self.file(step, ".status.json"))
        missing = [path for path in self.written(step) if not path.is_file()]
        if exit_status == 0 and not status and not missing:
            write_json(self.file(step, DONE), {"key": job.key, "seconds": round(seconds, 3)})
            self.took[step] = duration(seconds)
            print(f"{step!s:<13} done in {duration(seconds)}{fold_score(step, self.disk, self.p.metric)}", flush=True)
            for line in () if self.warned else read_json_if_whole(self.disk.data_report).get("warnings", ()):
                print(f"  goods: {line}", flush=True)
            self.warned = True
            return "done"
        if status.get("outcome") == "stopped" or (status.get("outcome") == "not begun" and self.begun()):
            self.stopped.append(step)
            state = ", its state saved" if status["outcome"] == "stopped" else ", before its first step"
            print(f"{step!s:<13} stopped after {duration(seconds)}{state}", flush=True)
            return "stopped"
        log = self.file(step, ".log")
        reason = status.get("message") or f"its process ended with status {exit_status}: {last_line(log)}"
        if refused := UNWRITABLE.get(exit_status - CANT_WRITE):
            reason = f"{refused[0]}: its notebook can't be written to {shown(self.disk.notebooks)}"
        elif exit_status == 0 and not status:
            reason = f"the notebook ended without writing {shown(missing[0])}"
        seen = next((path for path in (self.file(step, ".unfinished.ipynb"), log) if path.is_file()), log)
        self.failures.append(f"{step} failed: {reason}\n  see {shown(seen)}")
        print(f"{step!s:<13} failed after {duration(seconds)}", flush=True)
        return status.get("outcome", "failed")


def stop(running: list[Running]) -> None:
    """Ends the processes of steps under way; their kernels end when they see their papermill gone."""
    for job in running:
        job.process.terminate()
    for job in running:
        try:
            job.process.wait(10)
        except subprocess.TimeoutExpired:
            job.process.kill()


# What is shown -------------------------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def number(value: Any) -> str:
    """A score with three decimals; a dash when there is none."""
    return f"{value:.3f}" if isinstance(value, (int, float)) else "-"


def epoch_lines(step: Step, run: Run) -> list[str]:
    """The whole lines of the log of a fold's training, under way or ended."""
    if (number := REFIT if step.name == "refit" else step.fold) is None:
        return []
    log = run.fold(number).latest_log
    if not log.is_file():
        return []
    text = log.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def show_epochs(job: Running, run: Run, metric: str) -> None:
    """Prints the epochs that a fold's log has gained; a log begun anew is shown from its start."""
    lines = epoch_lines(job.step, run)
    new = lines[len(job.shown) :] if lines[: len(job.shown)] == job.shown else lines
    job.shown = lines
    for line in new:
        try:
            epoch = dict(json.loads(line))
        except (ValueError, TypeError):
            continue
        what = "refit" if job.step.fold is None else f"fold {job.step.fold}"
        parts = [f"  {what}", f"epoch {epoch.get('epoch', '?')}/{epoch.get('epochs', '?')}"]
        for key, label in (("train_loss", "loss"), (metric, SHOWN_AS[metric])):
            parts += [f"{label} {number(epoch[key])}"] if key in epoch else []
        parts += [duration(epoch["seconds"])] if isinstance(epoch.get("seconds"), (int, float)) else []
        print("  ".join(parts), flush=True)


def fold_score(step: Step, run: Run, metric: str) -> str:
    """What a fold scored, to end its line with."""
    scores = {} if step.fold is None else run.fold(step.fold).scores()
    main = next((name for name in OUTPUTS if isinstance(scores.get(name), dict)), None)
    return f", {main} {SHOWN_AS[metric]} {number(scores[main].get(metric))}" if main else ""


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "its log is empty"


def compare_runs(p: Params) -> Path | None:
    """Makes index.html of all runs anew, where one has come to its end; returns it. No run fails for its sake."""
    folder = p.run_dir.parent
    if not any(run.put_together for run in runs_in(folder)):  # nothing has a score yet
        return None
    try:
        from goods.compare_page import write_index  # half a second, for pandas above all

        return write_index(folder)[0]
    except Exception as error:  # whatever lies in that folder
        print(f"\n{shown(folder)} could not be compared: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def print_summary(pipeline: Pipeline, index: Path | None) -> None:
    """The short table at the end: scores, seconds per step, files."""
    run = pipeline.disk
    scores = read_json_if_whole(run.metrics)
    rows = [(name, scores[name]) for name in OUTPUTS if isinstance(scores.get(name), dict)]
    if said := verdict(scores, pipeline.p.metric):
        print(f"\n{said}")
    if rows:
        columns = metric_first(pipeline.p.metric, "accuracy", "macro_f1")
        print("\nout of fold  " + "".join(f"{SHOWN_AS[column]:>13}" for column in columns))
        for name, score in rows:
            print(f"{name:<13}" + "".join(f"{number(score.get(column)):>13}" for column in columns))
    if missing := scores.get("missing_folds"):
        lost, kept = " ".join(map(str, missing)), pipeline.p.n_folds - len(missing)
        print(f"of {kept} of {pipeline.p.n_folds} folds; --folds {lost} adds the others")
    print("\nstep          time")
    for step, took in pipeline.took.items():
        print(f"{step!s:<13} {took}")
    print("\nfiles")
    for path in (run.submission, run.submission_probs, run.report, run.notebooks, index):
        if path and path.exists():
            print(f"{shown(path)}{os.sep if path.is_dir() else ''}")


# Command line --------------------------------------------------------------------------------------------------------


def read_settings(texts: list[str]) -> dict[str, Any]:
    """The --set values; as in a notebook, null means "as the config says"."""
    own = {"config": "--config", "run": "--run", "fold": "--folds", "folds": "--folds"}
    settings = parse_settings(texts, own)
    return {name: value for name, value in settings.items() if value is not None or name not in Params.model_fields}


def read_steps(names: list[str]) -> list[str]:
    """The steps asked for, in the order they are run in."""
    for name in names:
        if names.count(name) > 1:
            raise GoodsError(f"--steps: step '{name}' is named twice")
        if name not in STEPS:
            near = difflib.get_close_matches(name, STEPS, n=1, cutoff=0)[0]
            raise GoodsError(f"--steps: there is no step '{name}', only {', '.join(STEPS)}; did you mean '{near}'?")
    return [name for name in STEPS if name in names]


def prepare(args: argparse.Namespace) -> Pipeline:
    """Checks all that was asked for, before anything runs."""
    if args.config is None:
        args.config = DEFAULT_CONFIG
        print(f"no --config is given, so this is the demo on the embedded sample, {DEFAULT_CONFIG}", flush=True)
    given = read_settings(args.set) | ({"run": args.run} if args.run else {})
    given |= {"folds": args.folds} if args.folds is not None else {}
    p = load_run(args.config, **given)
    names = read_steps(args.steps or notebooks_of(p))
    if args.folds and not {"train", "baseline"} & set(names):
        raise GoodsError("--folds says which folds to train, but none of the steps trains any; drop one of the two")
    if "refit" in names and not p.refit:
        raise GoodsError("--steps refit: set refit=true with it, so that the later steps predict with that model")
    if other := {"train", "baseline"} & set(names) - set(notebooks_of(p)):
        raise GoodsError(f"--steps {other.pop()}: not for kind {p.kind}; its steps are {' '.join(notebooks_of(p))}")
    for name in names:
        notebook_source(name)
    if Run.of(p).taken:  # then this only compares: what is refused is refused before anything is written
        open_run(p)
    stages = [[Step(name, fold) for fold in p.chosen_folds] if name == "train" else [Step(name)] for name in names]
    print(f"run {p.run} of {args.config} in {shown(p.run_dir)}", flush=True)
    return Pipeline(p, {"config": args.config, "run": p.run, **given}, stages, args.jobs, args.force)


def job_count(text: str) -> int | str:
    """The --jobs value: a number from 1 up, or auto."""
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 1 up nor auto")
    return text if text == "auto" else int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawTextHelpFormatter
    made = argparse.ArgumentParser(prog="pipeline.py", description=__doc__, formatter_class=formatter)
    add = made.add_argument
    add("--config", help=f"the experiment's YAML file (default: {DEFAULT_CONFIG}, the demo)")
    add("--run", help="name of the folder under outputs/ (default: the config's run, or its file name)")
    add("--folds", nargs="+", type=int, metavar="N", help="the folds to train (default: all)")
    add("--steps", nargs="+", metavar="STEP", help=f"some of: {' '.join(STEPS)} (default: all of the config's kind)")
    settings = {"nargs": "+", "default": [], "action": "extend", "metavar": "KEY=VALUE"}
    add("--set", **settings, help="parameters that differ from the config's")
    jobs = {"type": job_count, "default": "auto", "metavar": "N|auto"}
    add("--jobs", **jobs, help="folds side by side (default: auto, one per GPU, else one)")
    again = "run the steps again though nothing changed; a fold that is finished is then loaded\n"
    again += "by its notebook, not trained again (--set retrain=true does that)"
    add("--force", action="store_true", help=again)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the pipeline; returns the exit status: 0 done, 1 a step failed, 2 bad input, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    speak_plainly()
    try:
        return prepare(parser().parse_args(arguments)).run()
    except (GoodsError, OSError) as error:
        print(f"pipeline.py: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
