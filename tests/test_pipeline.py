"""pipeline.py as it is called, over miniature notebooks in a project folder of their own, with the real papermill."""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

import pipeline
from goods.files import write_frame
from goods.run import Run

ROOT = Path(pipeline.__file__).parent
PARAMETERS = "config = None\nrun = None\nfold = None\nnum_epochs = None"
START = """
import json, os, sys, time

from goods.errors import GoodsError, StoppedInTime, TimeOverError
from goods.files import ROOT, write_json, write_text
from goods.params import read_params
from goods.run import Run

p = read_params(globals())
run = Run.of(p)
fold = run.fold(p.fold)
order = ROOT / "order.txt"
print("kernel", sys.executable, file=order.open("a"))

def train(fold):
    write_text(fold.weights, f"weights {fold.number}")
    write_text(fold.oof, f"oof {fold.number}")
    fold.finish({"fold": fold.number, "fused": {"accuracy": 0.81, "macro_f1": 0.8}}, {})
    write_text(fold.test, f"test {fold.number}")
"""
# Each notebook says in order.txt that it ran and with what; what it writes depends only on what it is given.
CELLS = {
    "eda": 'print("eda", p.num_epochs, file=order.open("a"))\nwrite_json(run.data_report, {"warnings": ["odd ids"]})',
    "trust": 'print("trust", file=order.open("a"))',
    "train": """
print("threads", p.fold, os.environ.get("OMP_NUM_THREADS"), file=order.open("a"))
print("train", p.fold, p.num_epochs, "from", time.time(), file=order.open("a"))
trouble = ROOT / f"trouble{p.fold}"
if trouble.exists():
    exec(trouble.read_text())
log = ""
for epoch in (1, 2):
    line = {"epoch": epoch, "epochs": 2, "train_loss": 1 / epoch, "macro_f1": 0.4 * epoch, "seconds": 0.25}
    log += json.dumps(line) + "\\n"
    write_text(fold.log, log)
train(fold)
print("trained", p.fold, "until", time.time(), file=order.open("a"))
""",
    "baseline": """
print("baseline", p.chosen_folds, file=order.open("a"))
for number in p.chosen_folds:
    train(run.fold(number))
""",
    "ensemble": """
print("ensemble", file=order.open("a"))
trouble = ROOT / "trouble"
if trouble.exists():
    exec(trouble.read_text())
trained = [run.fold(number) for number in run.trained()]
write_text(run.oof, "; ".join(each.oof.read_text() for each in trained))
write_text(run.test, "; ".join(each.test.read_text() for each in trained))
write_json(run.metrics, {name: {"accuracy": 0.9, "macro_f1": 0.875} for name in ("fused", "image")})
""",
    "submission": """
print("submission", file=order.open("a"))
write_text(run.submission, run.test.read_text())
write_text(run.submission_probs, "")
""",
}


class Project:
    """A project folder with pipeline.py, the package goods and miniature notebooks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        shutil.copy(ROOT / "pipeline.py", root)
        shutil.copytree(ROOT / "goods", root / "goods", ignore=shutil.ignore_patterns("__pycache__"))
        for name, source in CELLS.items():
            self.write_notebook(name, START, source)
        for name in ("train_images", "test_images"):
            (root / "data" / name).mkdir(parents=True)
            (root / "data" / f"{name.split('_')[0]}.csv").write_text("id\n")
        (root / "params").mkdir()
        config = {"n_folds": 2, "num_epochs": 3, "data_dir": "data", "model_name": "models/none"}
        (root / "params" / "mini.yaml").write_text(yaml.safe_dump(config))

    def write_notebook(self, name: str, *sources: str) -> None:
        """A notebook with the parameters cell and the given ones."""
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(source.strip()) for source in sources]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        (self.root / "notebooks").mkdir(exist_ok=True)
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=kernel), self.root / "notebooks" / f"{name}.ipynb"
        )

    def disk(self, name: str = "mini") -> Run:
        """A run of the project."""
        return Run(self.root / "outputs" / name)

    def command(self, *arguments: str) -> list[str]:
        """The command line of a call."""
        return [sys.executable, "pipeline.py", "--config", "params/mini.yaml", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Kernels find this project's package, wherever the tests found theirs, and get threads from the pipeline."""
        own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        return own | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(self.root)}

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Calls the pipeline; order.txt holds only what this call ran."""
        (self.root / "order.txt").unlink(missing_ok=True)
        env = self.environment | environment
        return subprocess.run(
            self.command(*arguments), cwd=self.root, env=env, capture_output=True, text=True, timeout=120
        )

    def ran(self) -> list[str]:
        """What the notebooks said in order.txt, but for times and kernels."""
        path = self.root / "order.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split(" from ")[0] for line in lines if not line.startswith(("kernel", "threads", "trained"))]

    def threads(self) -> set[str]:
        """What OMP_NUM_THREADS was in the kernels."""
        lines = (self.root / "order.txt").read_text().splitlines()
        return {line.split()[-1] for line in lines if line.startswith("threads")}

    def times(self) -> dict[str, float]:
        """When each fold started ("train 0") and ended ("trained 0")."""
        lines = (self.root / "order.txt").read_text().splitlines()
        return {" ".join(line.split()[:2]): float(line.split()[-1]) for line in lines if line.startswith("train")}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.mark.slow
def test_the_whole_road_then_only_what_changed(project: Project, tmp_path: Path) -> None:
    # A kernel of the same name in the user's home, and another python first on PATH, take no part.
    trap = tmp_path / "data_home" / "kernels" / "python3"
    trap.mkdir(parents=True)
    (trap / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "trap", "language": "python"}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    trapped = {"JUPYTER_DATA_DIR": str(trap.parents[1]), "JUPYTER_PREFER_ENV_PATH": "0"}
    trapped["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    first = project.call("--set", "num_epochs=4", **trapped)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert project.ran() == ["eda 4", "trust", "train 0 4", "train 1 4", "ensemble", "submission"]
    assert f"kernel {sys.executable}\n" in (project.root / "order.txt").read_text()
    assert "  fold 1  epoch 2/2  loss 0.500  macro-F1 0.800  0.2 s\n" in first.stdout
    assert first.stdout.count("  fold 0  epoch") == 2
    assert first.stdout.count("\n  goods: odd ids\ntrust ") == first.stdout.count("odd ids") == 1
    assert "train fold 1  done in" in first.stdout and "fused macro-F1 0.800" in first.stdout
    run = project.disk()
    assert run.submission.read_text() == "test 0; test 1"
    assert "\nout of fold       macro-F1     accuracy\nfused                0.875        0.900" in first.stdout
    assert "outputs/mini/submission.csv\n" in first.stdout and "outputs/mini/notebooks/\n" in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 80

    began = time.monotonic()
    second = project.call("--set", "num_epochs=4", "num_workers=0")
    assert second.returncode == 0 and project.ran() == []
    assert second.stdout.count("skipped, unchanged") == 6
    assert time.monotonic() - began < 3

    project.write_notebook("submission", START, CELLS["submission"] + "\n# changed")
    assert project.call("--set", "num_epochs=4").returncode == 0
    assert project.ran() == ["submission"]

    (project.root / "data" / "train_images" / "1.jpg").write_bytes(b"new")
    assert project.call("--set", "num_epochs=4").returncode == 0
    # They gave the same predictions as before, so what follows the ensemble, which reads the photos, too, is spared.
    assert project.ran() == ["eda 4", "trust", "train 0 4", "train 1 4", "ensemble"]

    other = project.call("--set", "num_epochs=5")
    assert other.returncode == 2 and "num_epochs was 4 and is now 5" in other.stderr and project.ran() == []
    assert len(other.stderr.splitlines()) == 1

    run.fold(1).oof.unlink()
    assert project.call("--set", "num_epochs=4", "--steps", "train").returncode == 0
    assert project.ran() == ["train 1 4"]


@pytest.mark.slow
def test_a_subset_of_folds_side_by_side(project: Project) -> None:
    arguments = ("--set", "n_folds=3", "--run", "part", "--jobs", "2", "--steps", "train", "--folds", "2", "0")
    for fold, other in ((0, 2), (2, 0)):  # each waits until the other is there, which takes both at once
        wait = f"while 'train {other} ' not in order.read_text():\n    time.sleep(0.1)"
        (project.root / f"trouble{fold}").write_text(wait)
    called = project.call(*arguments, CUDA_VISIBLE_DEVICES="5,7")
    assert called.returncode == 0, called.stderr
    assert sorted(project.ran()) == ["train 0 3", "train 2 3"]
    times = project.times()
    assert max(times["train 0"], times["train 2"]) < min(times["trained 0"], times["trained 2"])
    assert project.disk("part").trained() == [0, 2]
    for fold in (0, 2):
        (project.root / f"trouble{fold}").unlink()

    # As many threads as before, though only one of the two is due: other sums would give other bytes.
    threads = project.threads()
    project.disk("part").fold(2).weights.unlink()
    again = project.call(*arguments, CUDA_VISIBLE_DEVICES="5,7")
    assert again.returncode == 0 and project.ran() == ["train 2 3"]
    assert project.threads() == threads and len(threads) == 1 and threads != {"None"}

    forced = project.call(*arguments[:-1], "--force")
    assert forced.returncode == 0 and project.ran() == ["train 2 3"]


@pytest.mark.slow
def test_a_failing_fold_leaves_its_neighbour_and_stops_what_needs_it(project: Project) -> None:
    (project.root / "trouble0").write_text("1 / 0")
    called = project.call("--jobs", "2", "--steps", "train", "ensemble", "submission")
    assert called.returncode == 1
    assert called.stderr.split("\n") == [
        "",
        "train fold 0 failed: ZeroDivisionError: division by zero",
        "  see outputs/mini/notebooks/train_fold0.unfinished.ipynb",
        "",
    ]
    assert "train fold 1  done in" in called.stdout
    assert "ensemble" not in "".join(project.ran()) and "Traceback" not in called.stdout
    notebooks = project.disk().notebooks
    assert "division by zero" in (notebooks / "train_fold0.unfinished.ipynb").read_text()
    assert not (notebooks / "train_fold0.ipynb").exists()

    (project.root / "trouble0").unlink()
    again = project.call("--steps", "train")
    assert again.returncode == 0 and project.ran() == ["train 0 3"]
    assert sorted(path.name for path in notebooks.glob("*.ipynb")) == ["train_fold0.ipynb", "train_fold1.ipynb"]


@pytest.mark.slow
def test_a_mistake_the_user_can_mend_is_one_sentence_and_stops_the_other_folds(project: Project) -> None:
    (project.root / "trouble0").write_text('raise GoodsError("there is no model in models/none; download one")')
    called = project.call("--steps", "train")
    assert called.returncode == 1 and project.ran() == ["train 0 3"]
    assert "train fold 0 failed: there is no model in models/none; download one\n" in called.stderr


@pytest.mark.slow
def test_what_was_good_stays_until_its_successor_is(project: Project) -> None:
    """However a step fails: its executed notebook and results are those of the good call before."""
    arguments = ("--steps", "ensemble", "--force")
    assert project.call(*arguments).returncode == 0
    run = project.disk()
    results = [run.notebooks / "ensemble.ipynb", run.oof, run.test, run.metrics, run.record_file]
    before = [path.read_bytes() for path in results]
    for trouble, sentence, seen in (
        ("raise GoodsError('there is no such test_csv')", "ensemble failed: there is no such test_csv", "no such test"),
        ("sys.exit(0)", "a cell ended the notebook by sys.exit", "SystemExit"),  # papermill takes it for a good end
        ("os.kill(os.getpid(), 9)", "the kernel was killed (SIGKILL), as the system does when memory", "os.kill"),
    ):
        (project.root / "trouble").write_text(trouble)
        called = project.call(*arguments)
        assert called.returncode == 1 and sentence in called.stderr and "Traceback" not in called.stderr
        assert "  see outputs/mini/notebooks/ensemble.unfinished.ipynb\n" in called.stderr
        assert [path.read_bytes() for path in results] == before
        assert seen in (run.notebooks / "ensemble.unfinished.ipynb").read_text() or seen == "os.kill"
    assert [path.name for path in run.notebooks.glob("*.running.*")] == []

    (project.root / "trouble").unlink()
    assert project.call("--steps", "ensemble").returncode == 0 and project.ran() == ["ensemble"]
    assert [path.name for path in run.notebooks.glob("*.ipynb")] == ["ensemble.ipynb"]


@pytest.mark.slow
def test_a_notebook_that_writes_no_result_has_failed(project: Project) -> None:
    (project.root / "trouble0").write_text("fold = run.fold(7)")
    called = project.call("--steps", "train", "--folds", "0")
    assert called.returncode == 1
    assert "the notebook ended without writing outputs/mini/fold0/weights.safetensors\n" in called.stderr
    assert "see outputs/mini/notebooks/train_fold0.unfinished.ipynb\n" in called.stderr
    assert not (project.disk().notebooks / "train_fold0.ipynb").exists()


@pytest.mark.slow
def test_a_cell_that_hangs_is_ended(project: Project) -> None:
    (project.root / "trouble").write_text("time.sleep(1000)")
    called = project.call("--steps", "ensemble", "--set", "max_cell_hours=0.001")
    assert called.returncode == 1 and "ensemble failed: a cell took longer than the 0.000833 hours" in called.stderr


@pytest.mark.slow
def test_what_cannot_be_written_is_said_and_leaves_no_half_notebook(project: Project) -> None:
    """By a limit on the size of files, which a full disk is like."""
    (project.root / "trouble").write_text("print('x' * 500_000)")
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    called = subprocess.run(project.command("--steps", "ensemble"), cwd=project.root, env=project.environment,
                            capture_output=True, text=True, timeout=60, preexec_fn=limit)  # fmt: skip
    assert called.returncode == 1 and "Traceback" not in called.stderr
    assert (
        "ensemble failed: files may not be that large there: its notebook can't be written to outputs/" in called.stderr
    )
    assert not list(project.disk().notebooks.glob("*.ipynb"))


@pytest.mark.slow
def test_braces_in_a_path_are_no_papermill_parameters_and_a_notebook_needs_no_kernelspec(project: Project) -> None:
    path = project.root / "notebooks" / "eda.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {}
    nbformat.write(notebook, path)
    called = project.call("--steps", "eda", "--set", "outputs_dir=out{run}{x}")
    assert called.returncode == 0, called.stderr
    assert (project.root / "out{run}{x}" / "mini" / "notebooks" / "eda.ipynb").is_file()


@pytest.mark.slow
def test_names_of_ipythons_startup_files_are_no_parameters(project: Project) -> None:
    startup = project.root / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("seed = 7\nfavourite = 3\nnum_epochs = 99\nmax_hours = 1e-9\n")
    project.write_notebook("eda", START, 'print("eda", p.seed, p.num_epochs, p.max_hours, file=order.open("a"))')
    called = project.call("--steps", "eda", IPYTHONDIR=str(startup.parents[1]))
    assert called.returncode == 0 and project.ran() == ["eda 42 3 None"]
    called = project.call("--steps", "eda", "--set", "seed=7", IPYTHONDIR=str(startup.parents[1]))
    assert called.returncode == 0 and project.ran() == ["eda 7 3 None"]


SLEEP = "write_text(ROOT / 'pid', f'{os.getppid()} {os.getpid()}'); time.sleep(60)"


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_step_ends_its_children_and_is_run_again(project: Project, way: int) -> None:
    (project.root / "trouble0").write_text(SLEEP)
    # As in a terminal: tests begun in the background hand on an ignored SIGINT.
    foreground = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    called, processes = asleep(project, preexec_fn=foreground)
    called.send_signal(way)
    message = called.communicate(timeout=20)[1].decode()
    assert called.returncode == 130 and "the same command goes on" in message and "Traceback" not in message
    assert until(lambda: not any(map(alive, processes)), 5)
    if way == signal.SIGINT:
        (project.root / "trouble0").unlink()
        assert project.call("--steps", "train", "--folds", "0").returncode == 0
        assert project.ran() == ["train 0 3"]


@pytest.mark.slow
def test_one_pipeline_holds_a_run_and_its_steps_end_with_it(project: Project) -> None:
    (project.root / "trouble0").write_text(SLEEP)
    first, processes = asleep(project)
    assert all(map(alive, processes))
    before = project.disk().record_file.read_bytes()
    second = project.call("--steps", "train", "--set", "num_epochs=9")
    assert second.returncode == 2 and project.ran() == [] and second.stderr.count("\n") == 1
    assert f"run 'mini' is in the hands of process {first.pid} on " in second.stderr
    assert project.disk().record_file.read_bytes() == before  # of the first one's parameters

    first.kill()
    first.communicate()
    assert until(lambda: not any(map(alive, processes)), 5)
    (project.root / "trouble0").unlink()
    successor = project.call("--steps", "train", "--folds", "0")
    assert successor.returncode == 0, successor.stderr
    assert project.ran() == ["train 0 3"] and project.disk().trained() == [0]


def asleep(project: Project, **options) -> tuple[subprocess.Popen, list[int]]:
    """A call of which fold 0 sleeps, and the processes of its step: papermill's and the kernel's."""
    called = subprocess.Popen(
        project.command("--steps", "train", "--folds", "0"),
        cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    told = project.root / "pid"
    assert until(told.exists, 60)
    return called, [int(number) for number in told.read_text().split()]


def until(condition, seconds: float = 20) -> bool:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(held)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "num_epoch=3"], "unknown parameter 'num_epoch'; did you mean 'num_epochs'?"),
        (["--set", "num_epochs=many"], "num_epochs"),
        (["--set", "num_epochs"], "write it as name=value"),
        (["--set", "fold=1"], "fold has an option of its own, --folds"),
        (["--folds", "0", "2"], "there is no fold 2 in folds: with n_folds 2 they go from 0 to 1"),
        (["--folds", "1", "1"], "'folds' must be different numbers"),
        (["--set", "num_epochs=3", "num_epochs=4"], "--set gives num_epochs twice, at last as num_epochs=4"),
        (["--steps", "trian"], "did you mean 'train'?"),
        (["--steps", "eda", "eda"], "step 'eda' is named twice"),
        (["--steps", "eda", "--folds", "1"], "none of the steps trains any"),
        (
            ["--set", "kind=linear", "--steps", "train"],
            "--steps train: not for kind linear; its steps are baseline ensemble submission",
        ),
        (["--run", "a/b"], "run"),
        (["--config", "params/mimi.yaml"], "params/mini.yaml"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(project: Project, arguments: list[str], sentence: str) -> None:
    called = project.call(*arguments)
    assert called.returncode == 2 and called.stdout == ""
    assert sentence in called.stderr and called.stderr.count("\n") == 1
    assert not (project.root / "outputs").exists()


@pytest.mark.slow
def test_folds_that_find_the_time_over_are_left_for_the_next_call(project: Project) -> None:
    """What a stop in time is, the error's type says, not its words."""
    arguments = ("--set", "n_folds=3", "max_hours=1", "--run", "late", "--jobs", "1", "--steps", "train", "submission")
    # The hour is long over, but the first fold is begun all the same.
    late = project.call(*arguments, GOODS_STARTED="0")
    assert late.returncode == 0, late.stderr
    assert project.ran() == ["train 0 3"] and "the same command goes on" in late.stdout

    (project.root / "trouble1").write_text("raise TimeOverError('too late')")
    (project.root / "trouble2").write_text("print('max_hours were over before the first step'); raise StoppedInTime")
    again = project.call(*arguments)
    assert again.returncode == 0, again.stderr
    assert project.ran() == ["train 1 3", "train 2 3"] and "submission" not in again.stdout
    assert "train fold 1  stopped" in again.stdout and "before its first step\n" in again.stdout
    assert "train fold 2  stopped" in again.stdout and "its state saved\n" in again.stdout

    (project.root / "trouble1").write_text("raise GoodsError('max_hours 1.0 were over before the first step')")
    refused = project.call(*arguments)
    assert refused.returncode == 1 and project.ran() == ["train 1 3"]
    assert "train fold 1 failed: max_hours 1.0 were over" in refused.stderr


@pytest.mark.slow
def test_a_run_goes_on_from_another_with_all_of_its_folds(project: Project) -> None:
    assert project.call("--run", "v1", "--steps", "train", "--folds", "0").returncode == 0
    write_frame(project.disk("v1").folds_table, pd.DataFrame({"id": ["a", "b"], "label": 0, "fold": [0, 1]}))
    arguments = ("--run", "v2", "--steps", "train", "ensemble", "--folds", "1", "--set", "resume_from=outputs/v1")
    called = project.call(*arguments)
    assert called.returncode == 0, called.stderr
    assert project.ran() == ["train 1 3", "ensemble"] and "taken over from outputs/v1: folds 0\n" in called.stdout
    assert project.disk("v2").trained() == [0, 1]
    assert project.disk("v2").oof.read_text() == "oof 0; oof 1"
    assert project.disk("v1").trained() == [0]


@pytest.mark.slow
def test_folds_are_chosen_where_all_are_trained_at_once(project: Project) -> None:
    arguments = ("--set", "kind=linear", "n_folds=3", "--steps", "baseline", "--folds")
    assert project.call(*arguments, "0", "2").returncode == 0
    assert project.ran() == ["baseline [0, 2]"] and project.disk().trained() == [0, 2]
    assert project.call(*arguments, "0", "2").returncode == 0 and project.ran() == []
    assert project.call(*arguments, "1").returncode == 0
    assert project.ran() == ["baseline [1]"] and project.disk().trained() == [0, 1, 2]


@pytest.mark.slow
def test_a_notebook_without_a_parameters_cell_is_refused(project: Project) -> None:
    path = project.root / "notebooks" / "train.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"parametres"'))
    called = project.call()
    assert called.returncode == 2 and "has no cell tagged 'parameters'" in called.stderr
