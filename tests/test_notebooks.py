"""The notebooks: what every committed one looks like, and each of them run by the real papermill."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from conftest import Sample
from notebook_runs import Done, arguments, papermill

from goods.classify import PredictParams
from goods.compress.params import CompressParams
from goods.files import ROOT
from goods.params import Params
from goods.run import Run

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {
    "eda": 9,
    "embed": 1,
    "train": 5,
    "baseline": 2,
    "ensemble": 9,
    "pseudo_label": 2,
    "submission": 1,
    "predict": 4,
}
SCHEMAS = {"compress_text": CompressParams, "predict": PredictParams}


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


committed = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@committed
def test_a_notebook_is_valid_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(path))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@committed
def test_cells_have_ids_that_stay(path: Path) -> None:
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(rf"{path.stem}-\d\d\w?", name) for name in ids)


@committed
def test_cells_are_short_and_define_nothing(path: Path) -> None:
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= 15, cell.id
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}, cell.id


@committed
def test_a_notebook_says_what_it_reads_writes_and_answers(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert all(f"**{word}**" in first.source for word in ("Reads", "Writes", "Answers"))


@committed
def test_the_parameters_cell_holds_literals_and_comes_first(path: Path) -> None:
    cells = code_cells(path)
    tagged = [k for k, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [0]
    given: dict[str, Any] = {}
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        given[target.id] = ast.literal_eval(statement.value)
    assert {"config", "run", "debug"} <= set(given) <= {"config", *SCHEMAS.get(path.stem, Params).model_fields}
    assert (ROOT / given.pop("config")).is_file()
    assert set(given.values()) == {None}  # as the config says


@committed
def test_parameters_are_read_before_anything_else_is_defined(path: Path) -> None:
    body = ast.parse(code_cells(path)[1].source).body
    statements = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    more = f", {SCHEMAS[path.stem].__name__}" if path.stem in SCHEMAS else ""
    assert ast.unparse(statements[0]) == f"p = gu.read_params(globals(){more})"


@committed
def test_a_notebook_asks_no_kind_and_imports_display(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(path))
    assert not re.search(r"\.kind\b *(==|!=|in\b)", source)
    uses, imports = (
        re.search(r"\bdisplay\(", source),
        re.search(r"^from IPython.display import .*display", source, re.M),
    )
    assert bool(uses) == bool(imports)


def test_the_install_puts_every_module_on_the_path() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["py-modules"] == ["goods_utils", "pipeline"]


@pytest.fixture(scope="session")
def given(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters of all notebook runs: heads on the sample, in a folder of their own."""
    return {
        "outputs_dir": tmp_path_factory.mktemp("notebooks"), "run": "nb", "data_dir": sample.data,
        "model_name": sample.model, "tune": "head", "hidden_dim": 32, "num_epochs": 8,
    }  # fmt: skip


@pytest.fixture(scope="session")
def executed(given: dict[str, Any]) -> dict[str, Done]:
    """All notebooks, in their order, run from the project's root; the baseline in a run of its own."""
    folder = given["outputs_dir"]
    return {
        name: papermill(f"notebooks/{name}.ipynb", folder / f"{name}.ipynb", *arguments(**given | more))
        for name, more in (
            ("eda", {}),
            ("train", {"fold": 1}),
            ("ensemble", {}),
            ("submission", {}),
            ("baseline", {"run": "words", "kind": "linear"}),
            ("pseudo_label", {"config": "params/linear.yaml", "run": "words", "pseudo_precision": 0.3}),
            ("embed", {}),
            ("predict", {"precision": 0.5}),
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_notebook_runs_clean(executed: dict[str, Done], name: str) -> None:
    done = executed[name]
    assert done.status == 0, done.stderr
    streams = {output.name: output.text for output in done.outputs() if output.output_type == "stream"}
    if find_spec("ipywidgets"):  # without, tqdm says so in each notebook, and its bars are text
        assert "stderr" not in streams, streams["stderr"]
    assert not re.search(r"Warning\b|Traceback|\[0;3\d", done.printed())
    assert not [output for output in done.outputs() if output.output_type == "error"]
    pictures = done.pictures()
    assert len(pictures) == PICTURES[name]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5_000 for picture in pictures)
    assert len(set(pictures)) == len(pictures)


def test_every_notebook_is_run_here() -> None:
    by_others = {"compress_text"}  # it asks a language model, so it is run in tests/compress
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES) | by_others


@pytest.mark.slow
def test_what_the_notebooks_leave_in_the_run(executed: dict[str, Done], given: dict[str, Any], sample: Sample) -> None:
    run = Run(given["outputs_dir"] / "nb")
    fold = run.fold(1)
    promised = [run.record_file, run.data_report, run.bad_images, run.labels, run.folds_table, run.oof, run.test]
    promised += [run.metrics, run.submission, run.submission_probs, run.report, fold.weights, fold.log]
    assert not [path for path in promised if not path.is_file()]
    assert run.trained() == [1] and fold.predicted and not fold.checkpoint.exists()
    assert len(list(run.figures.glob("*.png"))) == PICTURES["ensemble"] + 1  # and that of submission.ipynb
    figures = [path for folder in (run.goods_figures, fold.figures, run.figures) for path in folder.glob("*.png")]
    assert {path.parent for path in figures} == {run.goods_figures, fold.figures, run.figures}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert not list(run.folder.rglob("*.tmp")) and not run.fold(0).folder.exists()
    rows, test = pd.read_csv(run.submission, dtype=str), pd.read_csv(sample.data / "test.csv", dtype=str)
    assert rows["id"].tolist() == test["id"].tolist() and rows["categories"].isin([str(k) for k in range(21)]).all()


@pytest.mark.slow
def test_what_the_notebooks_say(executed: dict[str, Done]) -> None:
    found = re.search(r"fold 1: (\d+) products to learn from, (\d+) held back", executed["train"].printed())
    assert sum(map(int, found.groups())) == 126 and 20 <= int(found[2]) <= 30
    assert "folds not trained yet: [0, 2, 3, 4]" in executed["ensemble"].printed()
    assert "42 rows for 42 test products" in executed["submission"].printed()
    shown = [output.data["text/plain"] for output in executed["train"].outputs() if "data" in output]
    assert any(re.search(r"fused +0\.\d+ +0\.\d+ +\d", text) for text in shown)


@pytest.mark.slow
def test_a_debug_run_from_the_notebooks_folder(given: dict[str, Any], sample: Sample) -> None:
    """Relative paths mean the project's root, wherever the kernel stands."""
    outputs, relative = given["outputs_dir"], os.path.relpath(sample.data, ROOT)
    more = {"run": "short", "debug": True, "data_dir": relative}
    done = papermill("train.ipynb", outputs / "debug.ipynb", *arguments(**given | more), cwd=ROOT / "notebooks")
    assert done.status == 0, done.stderr
    assert len(done.pictures()) == PICTURES["train"]
    run = Run(outputs / "short-debug")
    assert not (outputs / "short").exists()
    assert len(run.fold(0).log.read_text().splitlines()) == 1
    assert len(pd.read_parquet(run.folds_table)) <= 21 * 10
    assert not (ROOT / "notebooks" / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flod", 2, "unknown parameter 'flod'; did you mean 'fold'?"),
        ("fold", 9, "fold 9 is out of range: with n_folds 5 it goes from 0 to 4"),
    ],
)
def test_a_wrong_parameter_stops_the_run(
    given: dict[str, Any], tmp_path: Path, name: str, value: int, message: str
) -> None:
    more = {"outputs_dir": tmp_path / "outputs", name: value}
    done = papermill("notebooks/train.ipynb", tmp_path / "train.ipynb", *arguments(**given | more))
    assert done.status != 0
    assert f"GoodsError: {message}" in done.stderr
    errors = [output for output in done.outputs() if output.output_type == "error"]
    assert [error.evalue.split(" (once")[0] for error in errors] == [message]
    assert len(errors[0].traceback) == 1  # the sentence, no frames
    assert not (tmp_path / "outputs").exists()
