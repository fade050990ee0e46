"""The notebooks: what every committed one looks like, and how one answers to its parameters. That each of them runs is
promised in test_docs, by the commands of these pages."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from conftest import Sample
from notebook_runs import NOTEBOOKS, PICTURES, arguments, papermill

from goods.classify import PredictParams
from goods.compress.params import CompressParams
from goods.files import ROOT
from goods.findings.shown import readable
from goods.params import Params
from goods.run import Run

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


@committed
def test_a_notebook_shows_no_table_by_a_styler(path: Path) -> None:
    """Which writes headers, such as names of classes, into the page as they are: gu.tell escapes them."""
    assert not any(re.search(r"(?<!figures)\.style\b", cell.source) for cell in code_cells(path))


def test_a_name_that_looks_like_html_is_shown_as_text() -> None:
    name = "<img src=x onerror=alert(1)>"
    table = pd.DataFrame({name: [name, "a" * 500]}, index=pd.Index([name, "b"], name=name))
    for shown in (readable(table), readable(table.reset_index(drop=True)), readable(table[name])):
        page = shown.to_html()
        assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and "a" * 500 in page


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
def test_a_wrong_parameter_stops_the_run(given: dict[str, Any], tmp_path: Path) -> None:
    """Which are wrong, and the sentences, tests/test_params.py says."""
    more = {"outputs_dir": tmp_path / "outputs", "flod": 2}
    done = papermill("notebooks/train.ipynb", tmp_path / "train.ipynb", *arguments(**given | more))
    message = "unknown parameter 'flod'; did you mean 'fold'?"
    assert done.status != 0
    assert f"GoodsError: {message}" in done.stderr
    errors = [output for output in done.outputs() if output.output_type == "error"]
    assert [error.evalue.split(" (once")[0] for error in errors] == [message]
    assert len(errors[0].traceback) == 1  # the sentence, no frames
    assert not (tmp_path / "outputs").exists()
