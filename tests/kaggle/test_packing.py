"""What main.ipynb holds: all that the kernel may import, and nothing that it never runs."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from goods.errors import GoodsError
from goods.files import ROOT, write_text
from kaggle_kernel import build

MODULES, PACKED = build.read_packed()
IMPORT = re.compile(r"^ *from (goods[\w.]*) import (?:\(([^)]*)\)|(.+))|^ *import (goods[\w.]*)", re.MULTILINE)


def code(name: str) -> str:
    """A packed file's code."""
    text = (MODULES | PACKED)[name]
    return build.notebook_code(text) if name.endswith(".ipynb") else text


def places(module: str) -> set[str]:
    """The files that a module may be."""
    path = module.replace(".", "/")
    return {f"{path}.py", f"{path}/__init__.py"}


def test_what_no_kernel_runs_is_not_packed() -> None:
    assert {"goods_utils.py", "goods/params.py", "goods/training/loop.py"} <= set(MODULES)
    assert {"pipeline.py", "kaggle_kernel/in_kernel.py", "goods/run.py", "goods/data/tables.py"} <= set(PACKED)
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("goods/members/*.py")} <= set(MODULES)
    unwanted = [name for name in MODULES | PACKED if "sample" in name or "compress" in name or "embed.ipynb" in name]
    assert [name for name in unwanted if name != "notebooks/embed.ipynb"] == []
    assert {"kaggle_kernel/build.py", "kaggle_kernel/push.py"}.isdisjoint(MODULES)
    assert "params/demo.yaml" in PACKED and "notebooks/submission.ipynb" in PACKED


def test_all_that_a_packed_file_imports_is_packed() -> None:
    for name in (name for name in MODULES | PACKED if not name.endswith(".yaml")):
        for module, several, taken, plain in IMPORT.findall(code(name)):
            parts = [part.split(" as ")[0].strip() for part in (several or taken).split("#")[0].split(",")]
            asked = {file for part in parts for file in places(f"{module}.{part}")} | places(module or plain)
            found = {file for file in asked if (ROOT / file).is_file()}
            assert found and found - build.LEFT_OUT <= set(MODULES | PACKED), f"{name} imports {module or plain}"


def test_imports_are_found_in_functions_and_by_room() -> None:
    found = build.imported("def f():\n    from goods import eda\nimport goods.data.texts as t, json\nfrom . import x")
    assert found == {"goods/__init__.py", "goods/eda.py", "goods/data/__init__.py", "goods/data/texts.py"}
    assert build.imported("import numpy\nfrom transformers import AutoModel") == set()


def test_docstrings_are_left_out_and_the_code_is_the_same() -> None:
    """As far as results go: what a run is made from is known by the code, whose docstrings don't count."""
    text = (ROOT / "goods" / "files.py").read_text()
    bare = build.without_docstrings(text)
    trees = [ast.parse(each) for each in (text, bare)]
    for node in ast.walk(trees[0]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) and len(node.body) > 1:
            del node.body[0]
    assert ast.dump(trees[0]) == ast.dump(trees[1]) and len(bare) < 0.9 * len(text)
    assert build.without_docstrings('class A(E):\n    """Only this."""\n') == 'class A(E):\n    """Only this."""\n'


def test_the_notebook_is_light() -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    assert len(build.make_notebook(defaults).encode()) < 500 * 1024


def test_each_module_is_a_cell_that_is_written_where_a_folder_is_made() -> None:
    defaults = {name: default for name, (default, _) in build.PARAMETERS.items()}
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(build.make_notebook(defaults))["cells"]}
    written = [text.split()[1].removeprefix("{SOURCES}/") for text in cells.values() if text.startswith("%%writefile")]
    assert sorted(written) == sorted(MODULES)
    for name in written:
        assert Path(name).parent == Path() or f'    "{Path(name).parent.as_posix()}",\n' in cells["places"], name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "run=2024-01-01"], "'run' should be a valid string, but is datetime.date"),
        (["--set", "max_hours=.nan"], "'max_hours' should be a finite number, but is nan"),
        (["--set", "folds=a"], r"'folds' must look like \[0, 2\]"),
        (["--set", "folds=[0, 5]"], "there is no fold 5 in folds"),
        (["--set", "settings=[1]"], r"settings is \[1\], but must be like"),
        (["--set", "settings={folds: [1]}"], "settings has folds, which the kernel has a parameter of its own for"),
        (["--set", "dropuot=0.1"], "did you mean 'dropout'"),
        (["--set", "config=params/none.yaml"], "config 'params/none.yaml' is none of those that the kernel has"),
        (["--set", "debug=1", "debug=2"], "--set gives debug twice"),
        (["--user", '../x"y'], "is no user name of Kaggle"),
        (["--user", ""], "is no user name of Kaggle"),
        (["--user", "me", "--model", "a/b/c"], "'a/b/c' doesn't look like owner/model/framework/variation/version"),
        (["--user", "me", "--competition", "Goods!"], "'Goods!' doesn't look like the competition's slug"),
    ],
)
def test_what_the_kernel_would_refuse_is_not_written(tmp_path, monkeypatch, arguments, sentence) -> None:
    shutil.copytree(build.FOLDER, tmp_path / "kaggle_kernel", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(build, "FOLDER", tmp_path / "kaggle_kernel")
    before = {path: path.read_bytes() for path in build.FOLDER.iterdir()}
    with pytest.raises(SystemExit, match=f"build.py: .*{sentence}"):
        build.main(arguments)
    assert {path: path.read_bytes() for path in build.FOLDER.iterdir()} == before


def test_one_fold_is_a_list_of_one_and_a_spoilt_notebook_is_built_anew(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    (tmp_path / "main.ipynb").write_text("{}")
    assert build.set_parameters(["folds=1", "dropout=0.1"])["folds"] == [1]
    assert "can't be read; the defaults are taken" in capsys.readouterr().out
    (tmp_path / "main.ipynb").write_text(build.make_notebook(build.set_parameters(["folds=1", "dropout=0.1"])))
    again = build.set_parameters([])
    assert again["folds"] == [1] and again["settings"] == {"dropout": 0.1}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of nothing but configs, and in it the labels that a person has decided."""
    shutil.copytree(ROOT / "params", tmp_path / "project" / "params")
    monkeypatch.setattr("goods.files.ROOT", tmp_path / "project")
    fixes = "id,given,decision,label,when\n7,3,change,Spannbettlaken & Co. «weiß»,\n"
    write_text(tmp_path / "project" / "outputs" / "my run" / "labels_fixed.csv", fixes)
    return tmp_path / "project"


def test_decided_labels_are_packed_and_lie_where_the_run_looks_for_them(project, tmp_path, monkeypatch) -> None:
    named = "outputs/my run/labels_fixed.csv"
    notebook = json.loads(build.make_notebook(build.set_parameters([f"label_fixes={named}"])))
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    monkeypatch.setenv("GOODS_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    there: dict[str, Path] = {}
    exec(cells["places"], there)
    for text in cells.values():
        if text.startswith("%%writefile"):
            first, _, module = text.partition("\n")
            write_text(first.replace("{SOURCES}", str(there["SOURCES"])).split()[1], f"{module}\n")
    exec(cells["unpack"], there)
    assert (there["SOURCES"] / named).read_text() == (project / named).read_text()


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("labels_fixed.csv", r"there is no .*labels_fixed\.csv; notebooks/review\.ipynb makes it"),
        ("params/demo.yaml", "lacks id, given, decision, label"),
        ("../labels_fixed.csv", "lies outside of the project"),
        ("/tmp/labels_fixed.csv", "lies outside of the project"),
    ],
)
def test_decided_labels_that_a_kernel_would_not_find_are_said(project, named, sentence) -> None:
    with pytest.raises(GoodsError, match=sentence):
        build.make_notebook(build.set_parameters([f"label_fixes={named}"]))
    build.make_notebook(build.set_parameters(["label_fixes=/kaggle/input/mended/labels_fixed.csv"]))  # attached there
