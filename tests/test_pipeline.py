"""pipeline.py as it is called, over miniature notebooks in a project folder of their own, with the real papermill."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

import pipeline

ROOT = Path(pipeline.__file__).parent
PARAMETERS = "config = None\nrun = None\nfold = None\nnum_epochs = None"
START = """
import json, sys, time

from goods.files import ROOT, write_json, write_text
from goods.params import read_params

p = read_params(globals())
folder = p.run_dir / f"fold{p.fold}"
ensemble = p.run_dir / "ensemble"
order = ROOT / "order.txt"
print("kernel", sys.executable, file=order.open("a"))
"""
# Each notebook says in order.txt that it ran and with what; what it writes depends only on what it is given.
CELLS = {
    "eda": 'print("eda", p.num_epochs, file=order.open("a"))',
    "train": """
print("train", p.fold, p.num_epochs, "from", time.time(), file=order.open("a"))
trouble = ROOT / f"trouble{p.fold}"
if trouble.exists():
    exec(trouble.read_text())
log = ""
for epoch in (1, 2):
    line = {"epoch": epoch, "epochs": 2, "train_loss": 1 / epoch, "macro_f1": 0.4 * epoch, "seconds": 0.25}
    log += json.dumps(line) + "\\n"
    write_text(folder / "log.jsonl", log)
write_text(folder / "oof.parquet", f"oof {p.fold}")
write_text(folder / "test.parquet", f"test {p.fold}")
write_json(folder / "metrics.json", {"fused": {"accuracy": 0.81, "macro_f1": 0.8}})
print("trained", p.fold, "until", time.time(), file=order.open("a"))
""",
    "ensemble": """
print("ensemble", file=order.open("a"))
for name in ("oof", "test"):
    parts = [f.read_text() for f in sorted(p.run_dir.glob(f"fold*/{name}.parquet"))]
    write_text(ensemble / f"{name}.parquet", "; ".join(parts))
write_json(ensemble / "metrics.json", {name: {"accuracy": 0.9, "macro_f1": 0.875} for name in ("fused", "image")})
""",
    "submission": """
print("submission", file=order.open("a"))
write_text(p.run_dir / "submission.csv", (ensemble / "test.parquet").read_text())
write_text(p.run_dir / "submission_probs.csv", "")
""",
}


class Project:
    """A project folder with pipeline.py, the package goods and four miniature notebooks."""

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

    def command(self, *arguments: str) -> list[str]:
        """The command line of a call."""
        return [sys.executable, "pipeline.py", "--config", "params/mini.yaml", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Kernels find this project's package, wherever the tests found theirs."""
        return os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(self.root)}

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
        return [line.split(" from ")[0] for line in lines if not line.startswith(("kernel", "trained"))]

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
    assert project.ran() == ["eda 4", "train 0 4", "train 1 4", "ensemble", "submission"]
    assert f"kernel {sys.executable}\n" in (project.root / "order.txt").read_text()
    assert "  fold 1  epoch 2/2  loss 0.500  macro-F1 0.800  0.2 s\n" in first.stdout
    assert first.stdout.count("  fold 0  epoch") == 2
    assert "train fold 1  done in" in first.stdout and "fused macro-F1 0.800" in first.stdout
    run = project.root / "outputs" / "mini"
    assert (run / "submission.csv").read_text() == "test 0; test 1"
    assert "fused               0.900      0.875" in first.stdout
    assert "outputs/mini/submission.csv\n" in first.stdout and "outputs/mini/notebooks/\n" in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 80

    began = time.monotonic()
    second = project.call("--set", "num_epochs=4", "num_workers=0")
    assert second.returncode == 0 and project.ran() == []
    assert second.stdout.count("skipped, unchanged") == 5
    assert time.monotonic() - began < 3

    project.write_notebook("submission", START, CELLS["submission"] + "\n# changed")
    assert project.call("--set", "num_epochs=4").returncode == 0
    assert project.ran() == ["submission"]

    (project.root / "data" / "train_images" / "1.jpg").write_bytes(b"new")
    assert project.call("--set", "num_epochs=4").returncode == 0
    # They gave the same predictions as before, so what follows the ensemble, which reads the photos, too, is spared.
    assert project.ran() == ["eda 4", "train 0 4", "train 1 4", "ensemble"]

    other = project.call("--set", "num_epochs=5")
    assert other.returncode == 2 and "num_epochs was 4 and is now 5" in other.stderr and project.ran() == []
    assert len(other.stderr.splitlines()) == 1

    (run / "fold1" / "oof.parquet").unlink()
    assert project.call("--set", "num_epochs=4", "--steps", "train").returncode == 0
    assert project.ran() == ["train 1 4"]


@pytest.mark.slow
def test_a_subset_of_folds_side_by_side(project: Project) -> None:
    arguments = ("--set", "n_folds=3", "--run", "part", "--jobs", "2", "--steps", "train")
    for fold, other in ((0, 2), (2, 0)):  # each waits until the other is there, which takes both at once
        wait = f"while 'train {other} ' not in order.read_text():\n    time.sleep(0.1)"
        (project.root / f"trouble{fold}").write_text(wait)
    called = project.call(*arguments, "--folds", "2", "0", CUDA_VISIBLE_DEVICES="5,7")
    assert called.returncode == 0, called.stderr
    assert sorted(project.ran()) == ["train 0 3", "train 2 3"]
    times = project.times()
    assert max(times["train 0"], times["train 2"]) < min(times["trained 0"], times["trained 2"])
    assert not (project.root / "outputs" / "part" / "fold1").exists()
    for fold in (0, 2):
        (project.root / f"trouble{fold}").unlink()

    added = project.call(*arguments, "--force", "--folds", "2")
    assert added.returncode == 0 and project.ran() == ["train 2 3"]


@pytest.mark.slow
def test_a_failing_fold_leaves_its_neighbour_and_stops_what_needs_it(project: Project) -> None:
    (project.root / "trouble0").write_text("1 / 0")
    called = project.call("--jobs", "2", "--steps", "train", "ensemble", "submission")
    assert called.returncode == 1
    assert called.stderr.split("\n") == [
        "",
        "train fold 0 failed: ZeroDivisionError: division by zero",
        "  see outputs/mini/notebooks/train_fold0.ipynb",
        "",
    ]
    assert "train fold 1  done in" in called.stdout
    assert "ensemble" not in "".join(project.ran()) and "Traceback" not in called.stdout
    assert "division by zero" in (project.root / "outputs" / "mini" / "notebooks" / "train_fold0.ipynb").read_text()

    (project.root / "trouble0").unlink()
    again = project.call("--steps", "train")
    assert again.returncode == 0 and project.ran() == ["train 0 3"]


@pytest.mark.slow
def test_a_mistake_the_user_can_mend_is_one_sentence_and_stops_the_other_folds(project: Project) -> None:
    (project.root / "trouble0").write_text('raise GoodsError("there is no model in models/none; download one")')
    called = project.call("--steps", "train")
    assert called.returncode == 1 and project.ran() == ["train 0 3"]
    assert "train fold 0 failed: there is no model in models/none; download one\n" in called.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("sys.exit(0)", "SystemExit: 0"),  # papermill takes it for a good end
        ("import os; os._exit(9)", "Kernel died"),
        ("folder = ROOT / 'elsewhere'", "ended without writing outputs/mini/fold0/oof.parquet"),
    ],
)
def test_an_end_without_an_error_is_a_failure_too(project: Project, trouble: str, sentence: str) -> None:
    (project.root / "trouble0").write_text(trouble)
    called = project.call("--steps", "train", "--folds", "0")
    assert called.returncode == 1 and sentence in called.stderr
    assert "outputs/mini/notebooks/train_fold0." in called.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_step_ends_its_children_and_is_run_again(project: Project, way: int) -> None:
    (project.root / "trouble0").write_text("import os; (ROOT / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    # As in a terminal: tests begun in the background hand on an ignored SIGINT.
    foreground = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    called = subprocess.Popen(
        project.command("--steps", "train", "--folds", "0"),
        cwd=project.root, env=project.environment, stderr=subprocess.PIPE, preexec_fn=foreground,
    )  # fmt: skip
    pid = project.root / "pid"
    assert until(lambda: pid.exists() and pid.read_text())
    called.send_signal(way)
    message = called.communicate(timeout=20)[1].decode()
    assert called.returncode == 130 and "the same command goes on" in message and "Traceback" not in message
    assert until(lambda: not alive(int(pid.read_text())))
    if way == signal.SIGINT:
        (project.root / "trouble0").unlink()
        assert project.call("--steps", "train", "--folds", "0").returncode == 0
        assert project.ran() == ["train 0 3"]


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
        (["--folds", "0", "2"], "there is no fold 2; n_folds is 2"),
        (["--folds", "1", "1"], "fold 1 is named twice"),
        (["--steps", "trian"], "did you mean 'train'?"),
        (["--steps", "eda", "eda"], "step 'eda' is named twice"),
        (["--steps", "eda", "--folds", "1"], "--steps leaves train out"),
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
    arguments = ("--set", "n_folds=3", "max_hours=1", "--run", "late", "--jobs", "1", "--steps", "train", "submission")
    late = project.call(
        *arguments, GOODS_STARTED="0"
    )  # the hour is long over, but the first fold is begun all the same
    assert late.returncode == 0, late.stderr
    assert project.ran() == ["train 0 3"] and "the same command goes on" in late.stdout

    (project.root / "trouble1").write_text("raise GoodsError('max_hours 1.0 were over before the first step')")
    again = project.call(*arguments)
    assert again.returncode == 0, again.stderr
    assert project.ran() == ["train 1 3", "train 2 3"]
    assert "train fold 1  stopped" in again.stdout and "before its first step" in again.stdout


@pytest.mark.slow
def test_a_notebook_without_a_parameters_cell_is_refused(project: Project) -> None:
    path = project.root / "notebooks" / "train.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"parametres"'))
    called = project.call()
    assert called.returncode == 2 and "has no cell tagged 'parameters'" in called.stderr


def test_folds_get_a_gpu_and_their_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    pipeline.gpus.cache_clear()
    try:
        given = [pipeline.step_environment(slot, 3) for slot in range(3)]
        assert [environment["CUDA_VISIBLE_DEVICES"] for environment in given] == ["5", "7", "5"]
        assert given[0]["OMP_NUM_THREADS"] == "2"
        assert pipeline.step_environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "5,7"
    finally:
        pipeline.gpus.cache_clear()


def test_durations_read_well() -> None:
    assert [pipeline.duration(s) for s in (0.44, 12.3, 99.4, 150, 12000)] == ["0.4 s", "12 s", "99 s", "2 min", "3.3 h"]
