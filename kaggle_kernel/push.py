"""Between here and Kaggle, by Kaggle's own command line, whose answers are read: it exits 0 when the server refuses.

python -m kaggle_kernel.push push          checks, then `kaggle kernels push`
python -m kaggle_kernel.push status        queued, running, complete, or why it failed
python -m kaggle_kernel.push output        brings the kernel's run, or that of --run, to outputs/
python -m kaggle_kernel.push weights       that run's models as a private dataset, as export makes them
python -m kaggle_kernel.push backbone      the encoders of the kernel's config as private datasets
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from slugify import slugify

from goods.cost.plan import KAGGLE_DISK_GB, plan_run
from goods.errors import GoodsError
from goods.export import export_run
from goods.files import ROOT, model_files, read_json_if_whole, sentence, write_json, write_text
from goods.members import kind_of
from goods.params import OUTPUTS
from goods.places import ids_beside
from goods.run import Run
from kaggle_kernel import build
from kaggle_kernel.machines import MACHINES, Machine, machine_problems

STAGE = ROOT / "build" / "kaggle"
MOST_BYTES = 1_000_000  # of main.ipynb; Kaggle's own limit is not documented
SESSION_HOURS = 12.0  # some competitions allow 9
SAVING_HOURS = 0.5  # of a session, for saving and for the output
DAY = 24 * 3600  # seconds that a log is followed at most
WEIGHTS_END = r"\.safetensors$"
TIMEOUT = 3600  # of a call of the command line, seconds; outputs can be large
BOOLEANS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
FIELDS = {"id", "id_no", "title", "code_file", "language", "kernel_type", "machine_shape", "keywords"}
FIELDS |= {"docker_image", "docker_image_pinning_type", *BOOLEANS, *build.SOURCES}

NO_ACCESS = ("Kaggle doesn't let you: accept the competition's rules on its page, and look whether the user name and "
             "the sources in kernel-metadata.json are right")  # fmt: skip
NOT_FOUND = "Kaggle has nothing of that name: look at the id and the sources in kernel-metadata.json"
# What the command line says when a call failed, and what to do about it.
FAILURES = (
    ("Authentication required", "Kaggle doesn't know you: make an API token at kaggle.com/settings/api and put it into "
                                "~/.kaggle/access_token, or say `kaggle auth login`"),
    ("don't have access", NO_ACCESS),
    ("resource was not found", NOT_FOUND),
    ("Cannot access kernel", "there is no such kernel, or it isn't yours: look at the id in kernel-metadata.json, and "
                             "push first"),
    ("Maximum batch GPU session count", "as many GPU sessions as you may have are running or held: stop one on "
                                        "kaggle.com (Your Work, Active Events), wait some minutes, and push again"),
    ("rate limited", "Kaggle has had too many calls from you: wait some minutes and give the same command again"),
    ("problem on Kaggle's side", "Kaggle has a problem of its own: give the same command again later"),
    ("Max retries exceeded", "no connection to Kaggle, or it broke off: look at the network, and give the same command "
                             "again; whether a version was made is shown by: make kaggle-status"),
    ("Connection aborted", "the connection to Kaggle broke off: give the same command again"),
)  # fmt: skip


def preflight(folder: Path, session_hours: float = SESSION_HOURS) -> list[str]:
    """Checks all that a push needs; returns what is worth knowing. Raises GoodsError with every problem at once."""
    metadata = read_metadata(folder)
    problems, notes = list(metadata_problems(metadata)), []
    machine = MACHINES.get(metadata.get("machine_shape"), MACHINES["NvidiaTeslaT4"])
    try:
        parameters = build.check(folder)
        size = (folder / build.NOTEBOOK).stat().st_size
        if size > MOST_BYTES:
            problems.append(f"{build.NOTEBOOK} has {size / 1e6:.1f} MB; one MB is the most that surely goes through")
        notes = check_plan(parameters, machine, session_hours)
    except GoodsError as error:
        problems.append(str(error))
    if problems:
        raise GoodsError("nothing was pushed:\n" + "\n".join(f"- {problem}" for problem in problems))
    return notes


def read_metadata(folder: Path) -> dict[str, Any]:
    """kernel-metadata.json. Raises GoodsError when it can't be read or has no id."""
    path = folder / build.METADATA
    try:
        metadata = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise GoodsError(f"{path} is missing or is not JSON; make it: make kernel USER=your-name") from None
    if not re.fullmatch(r"[\w-]+/[\w-]+", str(metadata.get("id"))) or build.NO_USER in str(metadata):
        raise GoodsError(f"{path} has no user name yet; put yours in: make kernel USER=your-name")
    return metadata


def metadata_problems(metadata: dict[str, Any]) -> Iterator[str]:
    """A sentence for each thing in kernel-metadata.json that the command line or the server would refuse or ignore."""
    for name in sorted(set(metadata) - FIELDS):
        yield f"kernel-metadata.json: nobody reads '{name}'; remove it"
    slug = metadata["id"].split("/")[1]
    title = str(metadata.get("title", ""))
    if not 5 <= len(title) <= 50 or slugify(title) != slug:
        yield f"title '{title}' must have 5 to 50 characters and give the slug {slug}, as in id, not {slugify(title)}"
    for name, value in (("code_file", build.NOTEBOOK), ("language", "python"), ("kernel_type", "notebook")):
        if metadata.get(name) != value:
            yield f"{name} is {metadata.get(name)!r}, but must be {value!r}"
    for name in BOOLEANS:
        if not isinstance(metadata.get(name), bool):
            yield f"{name} is {metadata.get(name)!r}, but must be true or false, without quotes"
    yield from machine_problems(metadata)
    for name, (pattern, what) in build.SOURCES.items():
        items = metadata.get(name, [])
        if not isinstance(items, list) or not all(re.fullmatch(pattern, str(item)) for item in items):
            yield f"{name} is {items!r}, but must be a list of {what}"
    if len(metadata.get("competition_sources", [])) != 1:
        yield "competition_sources must name one competition: make kernel USER=... COMPETITION=slug"
    if not metadata.get("dataset_sources") and not metadata.get("model_sources"):
        yield "no weights are attached: make kernel USER=... MODEL=owner/dataset"


def kernel_run(folder: Path) -> str:
    """The folder under outputs/ that the kernel's run writes."""
    parameters = build.read_parameters((folder / build.NOTEBOOK).read_text(encoding="utf-8"))
    return build.kernel_params(parameters).run_dir.name


def check_plan(parameters: dict[str, Any], machine: Machine, session_hours: float) -> list[str]:
    """What the run will cost on Kaggle. Raises GoodsError when a parameter is wrong or the run doesn't fit."""
    p, most = build.kernel_params(parameters), session_hours - SAVING_HOURS
    if not p.max_hours or p.max_hours > most:
        raise GoodsError(f"max_hours is {p.max_hours}, but a session ends after {session_hours:g} and what isn't saved "
                         f"then is lost: set max_hours to {most:g} or less")  # fmt: skip
    kind = kind_of(p)
    if kind.planned is None:
        return [f"no plan was made: kind {p.kind} has none"]
    configs = [folder / "config.json" for folder in kind.model_dirs(p).values()]
    if missing := [path for path in configs if not path.is_file()]:
        return [f"no plan was made: {missing[0]} is not here; that one file is enough, without the weights"]
    if missing := [path for files in kind.vector_files(p).values() for path in files if not path.is_file()]:
        return [f"no plan was made: {missing[0]} is not here"]

    plan = plan_run(p, machine.gpu, sides=kind.planned)
    if not plan.fits:
        raise GoodsError(f"the run doesn't fit one {machine.gpu}: {plan.advice}")
    disk = sum(plan.disk.values())
    if disk > KAGGLE_DISK_GB:
        raise GoodsError(f"the run would write {disk:.0f} GB, and a session may leave {KAGGLE_DISK_GB}: "
                         "tune=lora or optimizer=adafactor need less")  # fmt: skip
    hours = machine.hours(plan)
    took = f"{hours:.1f} hours on {machine}" if plan.hours else f"hours not known on {machine}"
    notes = [f"planned: {plan.total_gib:.1f} GiB of a {machine.gpu}, {took}, {disk:.1f} GB"]
    if hours > p.max_hours:
        notes.append(
            f"it will stop after {p.max_hours:g} hours with its state saved; to go on: make kernel USER=... RESUME=yes"
        )
    return [*notes, *quota_notes(min(hours, p.max_hours))]


def quota_notes(hours: float) -> list[str]:
    """What is left of the week's GPU hours, and whether a session of so many fits; nothing where Kaggle doesn't say."""
    try:
        rows = json.loads(call_kaggle("quota", "--format", "json"))
        row = next(row for row in rows if row["resource"] == "GPU")
        left, until = float(str(row["remaining"]).removesuffix("h")), str(row["refreshAt"])[:16]
    except (GoodsError, ValueError, KeyError, TypeError, StopIteration):  # an older client knows no quota
        return []
    said = f"GPU quota: {left:.1f} hours are left until {until}"
    return [f"{said}, and this session may take {hours:.1f}: it ends when they do" if hours > left else said]


def kaggle_command(*arguments: str) -> list[str]:
    """The command `kaggle ...`. Raises GoodsError where it isn't installed."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("kaggle", path=here)
    if program is None:
        raise GoodsError("Kaggle's command line is not installed: pip install kaggle six, or make .venv/installed")
    return [program, "-W", *arguments]


def call_kaggle(*arguments: str) -> str:
    """What `kaggle ...` says. Raises GoodsError with a sentence when it fails."""
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(kaggle_command(*arguments), timeout=TIMEOUT, **streams)
    except subprocess.TimeoutExpired:
        raise GoodsError(f"Kaggle has not answered within {TIMEOUT // 60} minutes; give the command again") from None
    said = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode:
        lines = said.splitlines() or ["nothing"]
        advice = next((sentence for words, sentence in FAILURES if words in said), "")
        raise GoodsError(f"{advice} (it said: {lines[0][:200]})" if advice else f"kaggle failed: {lines[-1][:500]}")
    return said


def push_answer(said: str) -> str:
    """The sentence with the version and where to see it. Raises GoodsError when the push was refused, or in part."""
    refused = re.findall(
        r"^The following are not valid (.+?) and could\s+not be added to the kernel: (.*)$", said, re.M
    )
    error = re.search(r"Kernel push error: (.*)", said)
    pushed = re.search(r"^Kernel version .*successfully (?:pushed|saved).*$", said, re.M)
    if error:
        advice = next((f": {sentence}" for words, sentence in FAILURES if words in error[1]), "")
        raise GoodsError(f"Kaggle refused the push: {error[1]}{advice}")
    if refused:
        what = "; ".join(f"{kind}: {names}" for kind, names in refused)
        raise GoodsError(f"Kaggle doesn't know, or you may not use, these {what}. It made a version without them, "
                         "which will fail: mend kernel-metadata.json, accept the rules, and push again")  # fmt: skip
    if not pushed:
        raise GoodsError(f"Kaggle's answer says nothing of a new version: {said[-300:] or 'it is empty'}")
    return pushed[0]


def push(folder: Path, session_hours: float = SESSION_HOURS, run: bool = True) -> str:
    """Pushes main.ipynb with the commit in its title, after all checks; returns what Kaggle said.

    Without `run` a version is saved and not run.
    """
    print(*preflight(folder, session_hours), sep="\n", flush=True)
    shutil.rmtree(STAGE, ignore_errors=True)
    notebook = build.make_notebook(build.check(folder), commit())
    write_text(STAGE / build.NOTEBOOK, notebook)
    shutil.copyfile(folder / build.METADATA, STAGE / build.METADATA)
    how = [] if run else ["--no-run"]
    return push_answer(call_kaggle("kernels", "push", "-p", str(STAGE), *how))


def commit() -> str:
    """The commit that the sources stand at, with a "+" when they have changed since; empty outside of git."""
    try:
        git = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 20}
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **git).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **git).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head + ("+" if head and changed else "")


def status(folder: Path, follow: bool = False) -> str:
    """The state of the kernel's last version; with `follow` its log is shown until it ends, if it is at work.

    Raises GoodsError when it failed.
    """
    slug = read_metadata(folder)["id"]
    said = call_kaggle("kernels", "status", slug)
    state = re.search(r'has status "(?:\w+\.)?(\w+)"', said)
    if not state:
        raise GoodsError(f"Kaggle's answer names no state: {said[-300:]}")
    if "ERROR" in state[1].upper() or "Failure message" in said:
        why = re.search(r'Failure message: "(.*)"', said, re.S)
        raise GoodsError(f"the last version failed: {why[1] if why else state[1]}; its log comes with: "
                         "make kaggle-output RUN=...")  # fmt: skip
    if follow and state[1].upper() == "RUNNING":
        print(f"{slug} is running; its log:", flush=True)
        subprocess.run(kaggle_command("kernels", "logs", "--follow", slug), stdin=subprocess.DEVNULL, timeout=DAY)
        return status(folder)
    return state[1].lower()


def fetch_output(folder: Path, run: str, weights: bool = False) -> str:
    """Brings outputs/<run> of the kernel's last version to outputs/: all but the weights, or with `weights` these, too.

    Weights are most of an output; they may come later. Raises GoodsError when the run isn't there.
    """
    home, slug = ROOT / "outputs" / run, read_metadata(folder)["id"]
    if home.exists() and not weights:
        raise GoodsError(f"{home} is there already; rename or delete it, so that two runs don't mix, or bring its "
                         "weights: make kaggle-output WEIGHTS=yes")  # fmt: skip
    stage = STAGE.with_name("kaggle-output")
    shutil.rmtree(stage, ignore_errors=True)
    if not home.exists():
        _fetch(slug, stage, rf"^(?!.*{WEIGHTS_END})")
        if not Run(stage / "outputs" / run).exists:
            there = sorted(path.name for path in (stage / "outputs").glob("*") if path.is_dir())
            raise GoodsError(f"the output of {slug} has no run '{run}', but {', '.join(there) or 'no runs at all'}; "
                             f"what it has, the log too, lies in {stage}")  # fmt: skip
    if weights:
        _fetch(slug, stage, rf"^outputs/{re.escape(run)}/.*{WEIGHTS_END}")
    for file in sorted((stage / "outputs" / run).rglob("*")):
        if file.is_file() and not (place := home / file.relative_to(stage / "outputs" / run)).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, place)
    scores = read_json_if_whole(Run(home).metrics)
    of = {name: scores.get(name, {}).get("macro_f1") for name in OUTPUTS}
    shown = [f"{name} macro-F1 {score:.4f}" for name, score in of.items() if score is not None]
    left = "" if weights else "; its weights come with: make kaggle-output WEIGHTS=yes"
    files = sum(path.is_file() for path in home.rglob("*"))
    return "; ".join([f"{home.relative_to(ROOT)}: {files} files", *shown]) + f"; the log is in {stage}{left}"


def _fetch(slug: str, stage: Path, pattern: str) -> None:
    call_kaggle("kernels", "output", slug, "-p", str(stage), "--page-size", "200", "--file-pattern", pattern)


def send_weights(folder: Path, run: str) -> str:
    """Makes a private dataset <run>-weights of a finished run, or a version of it; returns what to attach.

    It is what export makes, of any kind; of a run that has labelled test products also what pseudo_from reads.
    """
    own, stage = Run(ROOT / "outputs" / run), STAGE.with_name("kaggle-weights") / run
    user = read_metadata(folder)["id"].split("/")[0]
    shutil.rmtree(stage, ignore_errors=True)
    export_run(own, stage)
    for file in own.taught_files():
        copy = stage / file.relative_to(own.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    files = [path for path in sorted(stage.rglob("*")) if path.is_file()]
    reference = send_dataset(f"{user}/{slugify(run)[:42]}-weights", stage, files)
    return f"{reference} is being made; attach it: make kernel USER={user} WEIGHTS={reference}"


def send_backbone(folder: Path) -> str:
    """Makes a private dataset of each model directory that the kernel's config names, or a version of it, and of the
    files of vectors in each folder."""
    p = build.kernel_params(build.check(folder))
    kind = kind_of(p)
    vectors = list(chain(*kind.vector_files(p).values()))
    found = {model: model_files(model) if model.is_dir() else [] for model in kind.model_dirs(p).values()}
    if not found and not vectors:
        raise GoodsError(f"kind {p.kind} reads no model directory, so there is nothing to send")
    for model, files in found.items():
        if not {".json", ".safetensors"} <= {path.suffix for path in files}:
            raise GoodsError(f"{model} has no config.json with *.safetensors; download the weights there first "
                             "(README.md)")  # fmt: skip
    if missing := [path for path in vectors if not path.is_file()]:
        raise GoodsError(f"there is no file {missing[0]} with vectors to send")
    user = read_metadata(folder)["id"].split("/")[0]
    made = [send_dataset(f"{user}/{slugify(model.name)[:50]}", model, files) for model, files in found.items()]
    for folder, files in groupby(sorted(vectors), lambda path: path.parent):
        together = [file for path in files for file in (path, ids_beside(path)) if file]
        made.append(send_dataset(f"{user}/{slugify(together[0].stem)[:42]}-vectors", folder, together))
    names = ",".join(made)
    return f"{names} is being made, which takes some minutes; attach it: make kernel USER={user} MODEL={names}"


def send_dataset(reference: str, root: Path, files: Iterable[Path]) -> str:
    """Makes a private dataset of these files below `root`, or a version of it where it exists; returns `reference`."""
    stage = pack(reference, root, files)
    exists = True
    try:
        call_kaggle("datasets", "status", reference)
    except GoodsError as error:
        if not str(error).startswith((NO_ACCESS, NOT_FOUND)):
            raise
        exists = False
    how = ["version", "-m", f"from {root.name}"] if exists else ["create"]
    said = call_kaggle("datasets", *how, "-p", str(stage), "-r", "zip", "-q")
    if "error" in said.lower() or "is being created" not in said:
        raise GoodsError(f"Kaggle refused the dataset {reference}: {said[-300:] or 'it said nothing'}")
    return reference


def pack(reference: str, root: Path, files: Iterable[Path]) -> Path:
    """A folder with these files as they lie below `root`, hard links where it can, and dataset-metadata.json."""
    stage = STAGE.with_name("kaggle-dataset")
    shutil.rmtree(stage, ignore_errors=True)
    for file in files:
        copy = stage / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), copy)
        except OSError:  # another disk
            shutil.copyfile(file, copy)
    about = {"id": reference, "title": reference.split("/")[1], "licenses": [{"name": "unknown"}]}
    write_json(stage / "dataset-metadata.json", about)
    return stage


def main(arguments: Sequence[str] | None = None) -> None:
    """Pushes the kernel, asks for its state, brings its output, or sends a run's weights or the backbone."""
    parser = argparse.ArgumentParser(prog="push.py", description=main.__doc__)
    parser.add_argument("what", choices=("push", "status", "output", "weights", "backbone"))
    parser.add_argument("--run", help="output, weights: a folder under outputs/ (the kernel's own)")
    parser.add_argument("--weights", action="store_true", help="output: the weights, too")
    parser.add_argument("--follow", action="store_true", help="status: show the log of a version that runs")
    parser.add_argument("--no-run", action="store_true", help="push: save a version and don't run it")
    hours = {"type": float, "default": SESSION_HOURS, "metavar": "HOURS"}
    parser.add_argument("--session", **hours, help="push: the session's limit (12; 9 in some competitions)")
    parser.add_argument("--folder", type=Path, default=build.FOLDER, help="with main.ipynb and kernel-metadata.json")
    given = parser.parse_args(arguments)
    folder = given.folder
    try:
        run = given.run or kernel_run(folder) if given.what in ("output", "weights") else ""
        print({
            "push": lambda: push(folder, given.session, not given.no_run),
            "status": lambda: status(folder, given.follow),
            "output": lambda: fetch_output(folder, run, given.weights),
            "weights": lambda: send_weights(folder, run),
            "backbone": lambda: send_backbone(folder),
        }[given.what]())  # fmt: skip
    except (GoodsError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"push.py: {sentence(error)}")
    except KeyboardInterrupt:
        sys.exit("push.py: stopped here; the kernel runs on")


if __name__ == "__main__":
    main()
