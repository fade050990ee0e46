"""The house is built as docs/CONTRIBUTING.md says: imports point down only, and each thing has its one place."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import goods_utils
from goods.files import ROOT

# From the ground up. A module may import from lower floors, and from its own room; the rooms of one floor don't know
# each other. goods.members is above goods.ensemble: a kind hands its folds to it.
FLOORS = [
    {"errors", "metric_names", "words"},
    {"metrics"},
    {"files"},
    {"processes", "progress", "field_types", "machine", "sheets"},
    {"kernels", "places", "settings", "model_paths", "label_fixes", "contradictions"},
    {"step"},
    {"params"},
    {"advice"},
    {"code_version", "run"},
    {"data"},
    {"predictions"},
    {"models", "eda", "accept", "page"},
    {"cost", "compress", "findings"},
    {"training"},
    {"ensemble", "trust"},
    {"members", "entries"},
    {"explain", "report", "predictor", "model_card", "compare", "review"},
    {"classify", "export", "review_widget"},
    {"catalogue", "compare_page"},
    {"on_ray"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FIGURES_KNOW = ("goods.figures", "goods.data.photos", "goods.files", "goods.metrics", "goods.words")
MOST_LINES, MOST_OF_FUNCTION = 450, 60
# Whatever has a name of its own below a run; labels.json is a competition's file, too.
RUN_FILES = r"[\w.]+\.(?:json|jsonl|parquet|csv|html|safetensors)"
SHARED_NAMES = {"labels.json"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "goods").rglob("*.py"))}
SCRIPTS = [ROOT / "goods_utils.py", ROOT / "pipeline.py", *sorted((ROOT / "kaggle_kernel").glob("*.py"))]
all_modules = pytest.mark.parametrize("module", MODULES)


def imports_of(path: Path, everywhere: bool = True, typing: bool = False) -> Iterator[str]:
    """The modules that a file imports: also inside functions with `everywhere`, also for types alone with `typing`."""
    tree = parsed(path)
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(inner) for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in for_types and not typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            yield from inner or {node.module}
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own_imports(path: Path, **how: bool) -> set[str]:
    return {name for name in imports_of(path, **how) if name.partition(".")[0] in ("goods", "goods_utils", "pipeline")}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def docstrings(tree: ast.Module) -> set[int]:
    """The nodes of all docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, owners) and ast.get_docstring(node) is not None]
    return {id(node.body[0].value) for node in nodes}


def loaded_by(*modules: str) -> set[str]:
    """The modules that a Python that imports these has loaded."""
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


# Who knows whom -----------------------------------------------------------------------------------------------------


def test_every_room_has_its_floor():
    assert {room_of(module) for module in MODULES} == {*FLOOR_OF, "figures", ""}


@all_modules
def test_imports_point_down_only(module):
    if module == "goods" or room_of(module) == "figures":
        return
    room = room_of(module)
    for other in own_imports(MODULES[module]):
        assert other in MODULES, f"{module} imports {other}, which stands above the package"
        assert room_of(other) in FLOOR_OF, f"{module} imports {other}: only goods_utils may"
        assert room_of(other) == room or FLOOR_OF[room_of(other)] < FLOOR_OF[room], f"{module} imports {other}"


def test_figures_stand_apart():
    for module in (name for name in MODULES if name.startswith("goods.figures")):
        for other in own_imports(MODULES[module], typing=True):
            assert other.startswith(FIGURES_KNOW), f"{module} imports {other}"
    top = own_imports(ROOT / "goods_utils.py", everywhere=False)
    assert not [other for other in top if other.startswith("goods.figures")]


def test_nothing_goes_in_a_circle():
    known = {module: own_imports(path) & set(MODULES) for module, path in MODULES.items()}
    left = dict(known)
    while free := [module for module, others in left.items() if not others & set(left)]:
        for module in free:
            del left[module]
    assert not left


def test_pipeline_is_light():
    loaded = loaded_by("goods.members", "goods.run", "goods.params", "pipeline")
    assert not loaded & {"torch", "pandas", "numpy", "matplotlib", "sklearn", "transformers"}


def test_notebooks_start_without_what_takes_seconds_to_import():
    assert not loaded_by("goods_utils") & {"torch", "sklearn", "transformers", "matplotlib"}


def test_what_is_imported_later_is_there():
    assert all(getattr(goods_utils, name) for name in goods_utils.__all__)
    assert {name for names in goods_utils.LATER.values() for name in names} <= set(goods_utils.__all__)


def test_predictions_can_be_worked_on_without_torch():
    loaded = loaded_by("goods.metrics", "goods.predictions", "goods.ensemble.blend")
    assert not loaded & {"torch", "transformers", "matplotlib"}
    for module in ("goods.metrics", "goods.predictions", "goods.ensemble.blend"):
        assert "torch" not in set(imports_of(MODULES[module])), module


def test_linear_folds_train_without_torch():
    assert "torch" not in loaded_by("goods.members.linear")  # half of what a fold's process holds at its start


# Each thing has its one place ---------------------------------------------------------------------------------------


def test_only_members_ask_for_a_kind():
    for path in [path for module, path in MODULES.items() if room_of(module) != "members"] + SCRIPTS:
        for node in ast.walk(parsed(path)):
            asked = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            asked = [node.subject] if isinstance(node, ast.Match) else asked
            kinds = [a for a in asked if isinstance(a, ast.Attribute) and a.attr == "kind"]
            assert not kinds, f"{path.name}:{node.lineno} asks which kind a run is"


def test_only_run_py_spells_paths_below_a_run():
    strings = [node.value for node in ast.walk(parsed(MODULES["goods.run"])) if isinstance(node, ast.Constant)]
    names = {s for s in strings if isinstance(s, str) and re.fullmatch(RUN_FILES, s)} - SHARED_NAMES
    assert {"run.json", "metrics.json", "oof.parquet", "test.parquet", "weights.safetensors"} <= names
    for path in [path for module, path in MODULES.items() if module != "goods.run"] + [*SCRIPTS[:2]]:
        tree = parsed(path)
        said = docstrings(tree)
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.Constant) and id(node) not in said:
                assert node.value not in names, f"{where} spells {node.value}"
            if isinstance(node, ast.JoinedStr):
                fixed = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                assert not re.match(r"(.*/)?fold\{\}", fixed), f"{where} spells a fold's folder"
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.left, ast.Attribute):
                assert node.left.attr != "run_dir", f"{where} spells a path below run_dir"


def test_photos_are_opened_in_one_place():
    for path in [path for module, path in MODULES.items() if module != "goods.data.photos"] + SCRIPTS:
        calls = [ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        assert "Image.open" not in calls, path


def test_goods_utils_offers_what_notebooks_use_and_no_more():
    used = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
        used |= {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "gu"}
    assert set(goods_utils.__all__) == used
    assert [name for name in goods_utils.__all__ if not hasattr(goods_utils, name)] == []


# Habits -------------------------------------------------------------------------------------------------------------


@all_modules
def test_a_file_is_one_subject(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    long = [f.name for f in functions(ast.parse(text)) if f.end_lineno - f.lineno + 1 > MOST_OF_FUNCTION]
    assert not long
    assert not re.findall(r"(?m)^#\s*\d+[\s.:)]\s*[A-Z].*$", text)  # sections have names, not numbers


@all_modules
def test_what_is_public_says_what_it_is_for(module):
    tree = parsed(MODULES[module])
    assert ast.get_docstring(tree)
    silent = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not silent


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The public functions and classes of a module and the public methods of those classes."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and not inner.name.startswith("_"):
            yield f"{prefix}{inner.name}", inner
            if isinstance(inner, ast.ClassDef):
                yield from public(inner, f"{inner.name}.")
