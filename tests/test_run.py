"""A run on disk: what takes its name, what it is made of, what is trained and resumable, and who holds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goods.errors import DamagedFileError, HeldError, OtherRunError, ParameterError
from goods.files import ROOT, write_json
from goods.members import open_run
from goods.params import Params, load_params
from goods.run import Fold, Run, environment


def make(tmp_path: Path, **given) -> Params:
    return load_params(outputs_dir=str(tmp_path / "outputs"), **{"run": "trial", "kind": "linear"} | given)


def train(p: Params, number: int = 0, rows: str = "r", code: str = "c") -> Fold:
    """A fold that looks trained, with the least that it takes."""
    fold = Run.of(p).fold(number)
    fold.folder.mkdir(parents=True, exist_ok=True)
    fold.weights.write_bytes(b"")
    pd.DataFrame({"id": ["a"], "label": [0], "fold": [number], "text_0": [0.0]}).to_parquet(fold.oof)
    fold.finish({"fold": number, "text": {"macro_f1": 0.5}}, {"rows": rows, "code": code})
    return fold


def test_a_run_records_what_made_it(tmp_path):
    p = make(tmp_path, learning_rate="1e-4", text_columns="title")
    assert open_run(p) == p.run_dir == tmp_path / "outputs" / "trial"
    record = Run.of(p).record()
    assert Params(**record["parameters"]) == p
    assert set(record) == {"version", "parameters", "tables", "models", "folds", "environment"}
    assert {"python", "torch", "transformers", "pandas", "cpus"} <= set(record["environment"])
    train(p, rows="abc", code="def")
    assert Run.of(p).record()["folds"] == {"0": {"rows": "abc", "code": "def"}}


def test_the_same_parameters_resume_and_change_no_byte(tmp_path):
    p = make(tmp_path)
    open_run(p)
    train(p)
    before = Run.of(p).record_file.read_bytes()
    assert open_run(make(tmp_path)) == p.run_dir
    assert Run.of(p).record_file.read_bytes() == before


def test_other_parameters_are_refused_by_name_once_something_is_trained(tmp_path):
    open_run(make(tmp_path))
    open_run(make(tmp_path, num_epochs=7))  # nothing is trained yet: the name is free
    p = make(tmp_path)
    open_run(p)
    train(p)
    with pytest.raises(OtherRunError, match="run 'trial' was made with other parameters") as refused:
        open_run(make(tmp_path, num_epochs=9, text_columns="title", fold=2))
    sentence = str(refused.value)
    assert "num_epochs was 5 and is now 9" in sentence
    assert "text_columns was ['title', 'description'] and is now ['title']" in sentence
    assert "fold was" not in sentence and "delete" not in sentence
    assert "Give them back, or choose another name for run" in sentence


def test_a_saved_state_takes_the_name_too(tmp_path):
    p = make(tmp_path)
    open_run(p)
    state = Run.of(p).fold(3).state
    state.parent.mkdir(parents=True)
    state.write_bytes(b"state")
    assert Run.of(p).fold(3).resumable and not Run.of(p).fold(3).trained
    with pytest.raises(OtherRunError, match="num_epochs was 5 and is now 9"):
        open_run(make(tmp_path, num_epochs=9))


def test_a_run_that_is_named_but_not_there_takes_no_name(tmp_path):
    with pytest.raises(ParameterError, match=r"runs: there is no run 'trail' in .*; there are: none"):
        open_run(make(tmp_path, run="both", kind="blend", runs="trail"))
    open_run(make(tmp_path))
    with pytest.raises(ParameterError, match=r"pseudo_from: there is no run 'trail' in .*; did you mean 'trial'\?"):
        open_run(make(tmp_path, run="both", pseudo_from="trail"))
    assert not (tmp_path / "outputs" / "both").exists()
    assert open_run(make(tmp_path, run="both", pseudo_from="trial")).name == "both"


def test_an_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(ParameterError, match="there is no kind 'liner'; did you mean 'linear'"):
        open_run(make(tmp_path, kind="liner"))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"fold": 3},
        {"skip_folds": 2},
        {"folds": [1, 3]},
        {"retrain": True},
        {"num_workers": 0},
        {"eval_batch_size": 4},
        {"train_csv": "moved/train.csv"},
        {"test_images_dir": "moved"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_changes_no_result_may_differ(tmp_path, other):
    open_run(make(tmp_path))
    train(make(tmp_path))
    assert open_run(make(tmp_path, **other)) == make(tmp_path).run_dir


def model_dir(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
@pytest.mark.parametrize("parameter", ["model_name", "extra_embeddings"])
def test_a_backbone_with_other_contents_is_refused_and_both_hashes_named(tmp_path, name, parameter):
    folder = model_dir(tmp_path / "model")
    p = make(tmp_path, kind="dual", **{parameter: str(folder)})
    open_run(p)
    train(p)
    first = Run.of(p).record()["models"][parameter]
    (folder / name).write_bytes(b"others")
    with pytest.raises(
        OtherRunError, match=f"other files in {parameter}: their hash was {first}, .* is [0-9a-f]{{16}}"
    ):
        open_run(p)


@pytest.mark.parametrize("now", [["first"], ["first", "second", "third"], ["second", "first"], []])
def test_one_text_encoder_more_or_less_or_in_another_place_is_another_run(tmp_path, now):
    folders = {name: str(model_dir(tmp_path / name, name.encode())) for name in ("first", "second", "third")}
    p = make(tmp_path, kind="dual", extra_embeddings=[folders["first"], folders["second"]])
    open_run(p)
    train(p)
    assert set(Run.of(p).record()["models"]) == {"extra_embeddings", "extra_embeddings_2"}
    other = make(tmp_path, kind="dual", extra_embeddings=[folders[name] for name in now])
    with pytest.raises(OtherRunError, match="extra_embeddings"):
        open_run(other)
    assert open_run(p) == p.run_dir


def test_a_run_with_one_text_encoder_is_recorded_as_ever(tmp_path):
    p = make(tmp_path, kind="dual", extra_embeddings=str(model_dir(tmp_path / "first")))
    open_run(p)
    train(p)
    assert Run.of(p).record()["parameters"]["extra_embeddings"] == str(tmp_path / "first")
    assert Run.of(make(tmp_path, run="without")).parameters()["extra_embeddings"] is None
    with pytest.raises(OtherRunError, match=r"extra_embeddings was '.*first' and is now None"):
        open_run(make(tmp_path, kind="dual"))


def test_another_path_to_the_same_backbone_is_the_same_backbone(tmp_path):
    first, copy = model_dir(tmp_path / "model"), model_dir(tmp_path / "copy")
    p = make(tmp_path, kind="dual", model_name=str(first))
    open_run(p)
    train(p)
    open_run(make(tmp_path, kind="dual", model_name=f"{first.parent}/./model"))
    open_run(make(tmp_path, kind="dual", model_name=str(copy)))
    shutil.rmtree(first)
    open_run(p)  # what is trained can be put together where the backbone isn't


def test_a_debug_run_is_one_of_its_own(tmp_path):
    real, debug = make(tmp_path), make(tmp_path, debug=True)
    assert open_run(debug).name == "trial-debug"
    assert open_run(real).name == "trial"
    assert Run.of(debug).parameters()["debug"] is True


@pytest.mark.parametrize("text", ["", "{", "just text", "[3]"])
def test_a_spoilt_record_says_what_to_do(tmp_path, text):
    p = make(tmp_path)
    open_run(p)
    train(p)
    Run.of(p).record_file.write_text(text)
    with pytest.raises(DamagedFileError, match=r"run\.json is missing or damaged; take another name"):
        open_run(p)


def test_a_run_of_an_earlier_version_is_left_alone(tmp_path):
    p = make(tmp_path)
    p.run_dir.mkdir(parents=True)
    (p.run_dir / "params.yaml").write_text("run: trial\n")
    with pytest.raises(OtherRunError, match="an earlier version of this project; take another name"):
        open_run(p)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    learning_rate=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**32 - 1),
    column=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1),
)
def test_a_run_always_resumes_with_what_it_was_given(tmp_path, learning_rate, seed, column):
    given = {"learning_rate": learning_rate, "seed": seed, "label_column": column, "text_columns": [column]}
    p = load_params(outputs_dir=tempfile.mkdtemp(dir=tmp_path), kind="linear", **given)
    open_run(p)
    train(p)
    assert open_run(p) == p.run_dir
    assert Params(**Run.of(p).parameters()) == p


def test_the_environment_record_bears_a_missing_package(monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert environment()["torch"] is None


# Folds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "", "{", "[]", '{"fold": 0}', '{"fold": 1, "text": {}}', '{"text": {}}'])
def test_a_fold_without_whole_metrics_is_not_trained(tmp_path, text):
    fold = train(make(tmp_path))
    assert fold.trained and Run.of(make(tmp_path)).trained() == [0]
    fold.metrics.write_text(text)
    assert not fold.trained and Run.of(make(tmp_path)).trained() == []


@pytest.mark.parametrize("name", ["oof", "weights", "metrics"])
def test_a_fold_that_lost_a_file_is_not_trained(tmp_path, name):
    fold = train(make(tmp_path))
    getattr(fold, name).unlink()
    assert not fold.trained


@pytest.mark.parametrize("harm", ["cut", "gone", "other ids", "not numbers"])
def test_damaged_predictions_are_one_sentence(tmp_path, harm):
    fold = train(make(tmp_path))
    frame = pd.read_parquet(fold.oof)
    if harm == "cut":
        fold.oof.write_bytes(fold.oof.read_bytes()[:-9])
    elif harm == "gone":
        fold.oof.unlink()
    else:
        other = frame.assign(id="b") if harm == "other ids" else frame.assign(text_0=float("nan"))
        other.to_parquet(fold.oof)
    with pytest.raises(DamagedFileError, match=r"fold0/oof\.parquet.*train the fold again: retrain=true, --folds 0"):
        fold.read("oof", ["a"])


def test_tables_are_free_to_change_until_something_is_trained(tmp_path):
    p = make(tmp_path)
    open_run(p)
    run = Run.of(p)
    assert run.check_tables({"train": "1", "test": "1"}) == []
    assert run.check_tables({"train": "2", "test": "1"}) == []
    train(p)
    assert run.check_tables({"train": "2", "test": "1"}) == []
    assert run.check_tables({"train": "1", "test": "1"}) == ["train"]


# Going on from another run -------------------------------------------------------------------------------------------


def other_run(tmp_path: Path, folds: int = 3) -> Params:
    p = make(tmp_path, run="earlier")
    open_run(p)
    for number in range(folds):
        train(p, number, rows=str(number))
    pd.DataFrame({"id": ["a"], "label": [0], "fold": [0]}).to_parquet(Run.of(p).folds_table)
    return p


def test_all_folds_of_another_run_are_taken_over_at_once(tmp_path):
    earlier = other_run(tmp_path)
    p = make(tmp_path, run="later", resume_from=str(earlier.run_dir), folds=[2])
    before = {f: f.read_bytes() for f in earlier.run_dir.rglob("*") if f.is_file()}
    open_run(p)
    assert Run.of(p).trained() == [0, 1, 2]
    assert Run.of(p).record()["folds"]["1"] == {"rows": "1", "code": "c"}
    assert before == {f: f.read_bytes() for f in earlier.run_dir.rglob("*") if f.is_file()}


def test_a_fold_of_ones_own_is_kept(tmp_path):
    earlier = other_run(tmp_path)
    p = make(tmp_path, run="later")
    open_run(p)
    train(p, 1, rows="own")
    open_run(make(tmp_path, run="later", resume_from=str(earlier.run_dir)))
    assert Run.of(p).trained() == [0, 1, 2]
    assert Run.of(p).fold(1).made_from()["rows"] == "own"


def test_what_is_no_run_or_another_one_is_refused(tmp_path):
    earlier = other_run(tmp_path)
    with pytest.raises(OtherRunError, match=r"is not the folder of a run: it has no run\.json"):
        open_run(make(tmp_path, run="later", resume_from=str(tmp_path)))
    with pytest.raises(OtherRunError, match="was made with other parameters: dropout"):
        open_run(make(tmp_path, run="later", dropout=0.7, resume_from=str(earlier.run_dir)))


def test_a_run_by_another_backbone_is_not_gone_on_from(tmp_path):
    folder = model_dir(tmp_path / "model")
    earlier = make(tmp_path, run="earlier", kind="dual", model_name=str(folder))
    open_run(earlier)
    train(earlier)
    pd.DataFrame({"id": ["a"], "label": [0], "fold": [0]}).to_parquet(Run.of(earlier).folds_table)
    (folder / "model.safetensors").write_bytes(b"others")
    later = make(tmp_path, run="later", kind="dual", model_name=str(folder), resume_from=str(earlier.run_dir))
    with pytest.raises(OtherRunError, match="was made with other files in model_name"):
        open_run(later)
    assert Run.of(later).trained() == []


ADOPT = """
import sys
from goods.members import open_run
from goods.params import load_params
print(sys.stdin.readline())
open_run(load_params(outputs_dir=sys.argv[1], run="later", kind="linear", resume_from=sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_at_once_take_over_the_same_run(tmp_path):
    earlier = other_run(tmp_path, folds=5)
    for fold in Run.of(earlier).folds():
        fold.weights.write_bytes(os.urandom(2_000_000))
    command = [sys.executable, "-c", ADOPT, str(tmp_path / "outputs"), str(earlier.run_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert Run(tmp_path / "outputs" / "later").trained() == [0, 1, 2, 3, 4]


# Holders -------------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from goods.run import Run
with Run(Path(sys.argv[1])).fold(2).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_trains_a_fold_and_another_says_who_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("goods.run.HOLDER_SECONDS", 0.2)
    run = Run(tmp_path / "trial")
    arguments = [sys.executable, "-c", HOLD, str(run.folder)]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=rf"fold 2 of run 'trial' is in the hands of process {other.pid} on "):
            run.fold(2).held().__enter__()
        with run.fold(1).held():  # another fold is nobody's
            pass
        other.kill()
    with run.fold(2).held():  # a killed holder holds nothing
        pass


def test_what_a_killed_holder_left_half_written_is_cleared(tmp_path):
    fold = Run(tmp_path / "trial").fold(0)
    fold.checkpoint.mkdir(parents=True)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = [fold.checkpoint / f".state.safetensors.{gone.stdout.strip()}.x1.tmp", fold.folder / ".oof.parquet.old.tmp"]
    alive = fold.folder / f".oof.parquet.{os.getppid()}.x2.tmp"
    for path in (*left, alive):
        path.write_text("half")
    with fold.held():
        assert not any(path.exists() for path in left) and alive.exists()


def test_a_record_is_updated_part_by_part(tmp_path):
    run = Run(tmp_path / "trial")
    write_json(run.record_file, {"version": 1, "folds": {"0": {"rows": "a"}}})
    run.update(folds={"1": {"rows": "b"}})
    assert json.loads(run.record_file.read_text())["folds"] == {"0": {"rows": "a"}, "1": {"rows": "b"}}
