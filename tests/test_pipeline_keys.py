"""When a step of the pipeline runs again: what its key covers, and what becomes of damaged notes; what it shows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline
from goods import code_version
from goods.errors import GoodsError
from goods.files import ROOT, write_json, write_text
from goods.members import notebooks_of, result_files
from goods.params import Params, load_params
from goods.run import Run
from pipeline import Pipeline, Running, Step, fold_score, print_summary, show_epochs, step_key

pytestmark = pytest.mark.slow

STEPS = [Step("eda"), Step("trust"), Step("train", 0), Step("baseline"), Step("ensemble"), Step("submission")]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Params]:
    """Parameters of a run in a folder of the test's own, with two model directories beside it."""
    for name in ("siglip", "clip"):
        write_text(tmp_path / name / "config.json", "{}")
        write_text(tmp_path / name / "model.safetensors", name)

    def make(**given) -> Params:
        where = {"outputs_dir": str(tmp_path / "outputs"), "model_name": str(tmp_path / "siglip")}
        return load_params(**where | {"run": "trial", "n_folds": 2} | given)

    return make


def changed(p: Params, change: Callable[[], object]) -> set[str]:
    """The steps whose key is another after `change`."""
    before = {step: step_key(step, p) for step in STEPS}
    change()
    return {step.name for step in STEPS if step_key(step, p) != before[step]}


def test_the_contents_of_the_backbone_count(make, tmp_path):
    p = make(kind="knn", extra_embeddings=str(tmp_path / "clip"))
    for name in ("siglip", "clip"):
        steps = changed(p, lambda name=name: write_text(tmp_path / name / "model.safetensors", "other"))
        assert {"eda", "baseline", "ensemble"} <= steps and "submission" not in steps
    assert changed(make(kind="linear"), lambda: write_text(tmp_path / "siglip" / "config.json", "[]")) == set()


def test_the_pseudo_labels_and_the_ensemble_of_the_teacher_count(make):
    p = make(pseudo_from="teacher")
    teacher = Run.named(p, "teacher")
    assert changed(p, lambda: write_text(teacher.pseudo(1), "labels")) == {"train", "baseline"}
    assert changed(p, lambda: write_text(teacher.pseudo(1), "other labels")) == {"train", "baseline"}
    assert changed(p, lambda: write_text(teacher.oof, "out of fold")) == {"ensemble"}
    assert changed(p, lambda: write_text(teacher.test, "test")) == {"ensemble"}


def test_each_of_the_runs_put_together_counts(make):
    p = make(kind="blend", runs=["a", "b"])
    for name in ("a", "b"):
        for path in (Run.named(p, name).oof, Run.named(p, name).test):
            assert changed(p, lambda path=path: write_text(path, "predictions")) == {"ensemble"}


def test_the_trained_folds_and_the_ensemble_count(make):
    p = make()
    run = Run.of(p)
    run.open(p, {})

    def train() -> None:
        write_text(run.fold(0).weights, "weights")
        write_text(run.fold(0).oof, "out of fold")
        run.fold(0).finish({"fold": 0, "fused": {}}, {})

    assert changed(p, train) == {"ensemble"}
    assert changed(p, lambda: write_text(run.fold(0).oof, "other")) == {"ensemble"}
    assert changed(p, lambda: write_text(run.test, "other")) == {"submission"}


def test_parameters_count_unless_they_change_no_result(make, monkeypatch):
    train = Step("train", 0)
    key = step_key(train, make())
    assert step_key(train, make(num_epochs=9)) != key
    assert step_key(train, make(folds=[0], num_workers=0, retrain=True)) == key
    assert step_key(Step("baseline"), make(folds=[0])) != step_key(Step("baseline"), make())
    label = Step("pseudo_label")
    assert step_key(label, make(pseudo_cap=0.1)) != step_key(label, make())
    assert step_key(Step("submission"), make(pseudo_cap=0.1)) == step_key(Step("submission"), make())


def test_labels_and_embeddings_are_steps_where_they_are_asked_for(make):
    """So that a kernel's output can teach the next run."""
    assert notebooks_of(make())[-1] == notebooks_of(make(kind="linear"))[-1] == "submission"
    assert notebooks_of(make(make_pseudo_labels=True, save_embeddings=True))[-2:] == ["pseudo_label", "embed"]
    p = make(n_folds=2)
    run = Run.of(p)
    assert result_files("pseudo_label", None, p) == [run.pseudo(0), run.pseudo(1)]
    assert result_files("embed", None, p) == [run.embeddings("train"), run.embeddings("test")]


def test_another_path_to_the_same_backbone_gives_the_same_key(make, tmp_path, monkeypatch):
    monkeypatch.setattr("goods.files.ROOT", tmp_path)
    shutil.copytree(tmp_path / "siglip", tmp_path / "elsewhere" / "siglip-2")
    paths = ("siglip", "./siglip", str(tmp_path / "siglip"), "elsewhere/siglip-2")
    for step in STEPS:
        assert len({step_key(step, make(model_name=path)) for path in paths}) == 1


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Callable[[str], str]], None]]:
    """A way to change a file of a copy of the package, which the keys are made from."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "goods", root / "goods", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_version, "ROOT", root)

    def forget() -> None:
        code_version._code_of.cache_clear(), code_version.imported_by.cache_clear()

    def change(name: str, of: Callable[[str], str]) -> None:
        path = root / "goods" / name
        path.write_text(of(path.read_text(encoding="utf-8")), encoding="utf-8")
        forget()

    forget()
    yield change
    forget()


def test_code_counts_where_results_come_from_it(make, sources):
    def more(text: str) -> str:
        return text + "\nMORE = 1\n"

    p = make()
    assert changed(p, lambda: sources("training/loop.py", more)) == {"train", "baseline", "ensemble"}
    assert changed(p, lambda: sources("ensemble/submission.py", more)) == {"submission"}
    assert "train" not in changed(p, lambda: sources("eda.py", more))
    assert changed(p, lambda: sources("members/linear.py", more)) == set()
    assert {"baseline"} <= changed(make(kind="linear"), lambda: sources("members/linear.py", more))


def test_figures_and_words_for_people_do_not_count(make, sources):
    p = make()
    assert changed(p, lambda: sources("figures/style.py", lambda text: text.replace("#", "#0"))) == set()
    for name in ("figures/eda.py", "figures/training.py", "figures/ensemble.py", "figures/errors.py"):
        assert changed(p, lambda name=name: sources(name, lambda text: text + "\nCOLOUR = 1\n")) == set()
    said = "# A comment.\n"
    assert changed(p, lambda: sources("training/loop.py", lambda text: said + text + said)) == set()
    docstring = '"""Something else.'
    assert changed(p, lambda: sources("training/loop.py", lambda text: text.replace('"""', docstring, 1))) == set()


# Damaged notes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "[1]", "null", '"done"', "{}", '{"key": "KEY"}', '{"key": "KEY", "seconds": "many"}']
)
def test_a_damaged_note_means_that_the_step_is_due(make, capsys, note):
    p, step = make(), Step("eda")
    one = Pipeline(p, {}, [[step]], 1, force=False)
    key = step_key(step, p)
    write_text(one.file(step, ".ipynb"), "{}")
    write_text(one.file(step, ".done.json"), json.dumps({"key": key, "seconds": 1}))
    assert one.due([step]) == [] and capsys.readouterr().out.endswith("skipped, unchanged\n")
    write_text(one.file(step, ".done.json"), note.replace("KEY", key))
    assert one.due([step]) == [(step, key)]


@pytest.mark.parametrize("status", ["{", "[1]", "null", '{"outcome": 3}', '{"outcome": "refused"}'])
def test_a_damaged_status_is_no_traceback(make, capsys, status):
    p, step = make(), Step("eda")
    one = Pipeline(p, {}, [[step]], 1, force=False)
    write_text(one.file(step, ".log"), "the last line\n")

    class Gone:
        returncode = 1

    job = pipeline.Running(step, "key", 0, Gone())
    write_text(one.file(step, ".status.json"), status)
    one.finish(job)
    [failure] = one.failures
    assert failure.startswith("eda failed: its process ended with status 1: the last line")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": 1}', '{"cells": [1]}', '{"cells": [{"metadata": []}]}'])
def test_a_damaged_notebook_is_a_sentence(monkeypatch, tmp_path, text):
    monkeypatch.setattr(pipeline, "NOTEBOOKS", tmp_path)
    write_text(tmp_path / "eda.ipynb", text)
    with pytest.raises(GoodsError, match="is missing or is not a notebook; get it back from git"):
        pipeline.notebook_source("eda")


# Processors ----------------------------------------------------------------------------------------------------------


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


def test_the_metric_of_the_run_is_shown_first(make, capsys):
    p = make(metric="log_loss")
    run, step = Run.of(p), Step("train", 0)
    line = {"epoch": 1, "epochs": 2, "train_loss": 0.5, "macro_f1": 0.8, "log_loss": 0.25, "seconds": 1.0}
    write_text(run.fold(0).log, json.dumps(line) + "\n")
    scores = {"accuracy": 0.9, "macro_f1": 0.875, "log_loss": 0.25}
    write_json(run.fold(0).metrics, {"fold": 0, "fused": scores})
    write_json(run.metrics, {"fused": scores})
    show_epochs(Running(step, "", 0, None), run, p.metric)
    assert capsys.readouterr().out == "  fold 0  epoch 1/2  loss 0.500  log-loss 0.250  1.0 s\n"
    assert fold_score(step, run, p.metric) == ", fused log-loss 0.250"
    print_summary(Pipeline(p, {}, [], 1, False), None)
    assert capsys.readouterr().out.startswith(
        "\nout of fold       log-loss     accuracy     macro-F1\nfused                0.250        0.900        0.875\n"
    )
