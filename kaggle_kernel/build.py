"""Writes main.ipynb, the one file that a push to Kaggle sends: what the kernel runs of the project, in cells.

    python -m kaggle_kernel.build                          with the parameters it has, or the defaults
    python -m kaggle_kernel.build --set folds=[0,1]        with other parameters in its parameters cell
    python -m kaggle_kernel.build --check                  is it what the sources give?
    python -m kaggle_kernel.build --user me --resume yes   fills in kernel-metadata.json, too

The same sources give the same bytes: bzip2 packs them alike everywhere (zlib doesn't), and nothing is dated.
"""

from __future__ import annotations

import argparse
import ast
import base64
import bz2
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goods.errors import GoodsError
from goods.files import ROOT, resolve, write_json, write_text
from goods.label_fixes import read_fix_table
from goods.params import Params, load_run
from goods.settings import parse_settings
from pipeline import STEPS

FOLDER = ROOT / "kaggle_kernel"
NOTEBOOK, METADATA = "main.ipynb", "kernel-metadata.json"
USER = r"[A-Za-z0-9][\w-]*"
NO_USER = "YOUR-KAGGLE-USERNAME"
SLUG = COMPETITION = "goods-classification"
BACKBONE = "siglip-so400m-patch14-384"

SOURCES = {  # fields of kernel-metadata.json, and what their items look like
    "competition_sources": (r"[a-z0-9-]+", "the competition's slug"),
    "dataset_sources": (r"[\w-]+/[\w-]+", "owner/dataset"),
    "kernel_sources": (r"[\w-]+/[\w-]+", "owner/kernel"),
    "model_sources": (r"[\w-]+/[\w-]+/\w+/[\w.-]+/\d+", "owner/model/framework/variation/version"),
}

# What the kernel starts, and what is looked up by name: with all that these and the notebooks import, a cell each.
STARTED = ("goods_utils.py", "pipeline.py", "kaggle_kernel/in_kernel.py", "goods/members/*.py")
# Commands of goods_utils.py that no kernel gives, and what they alone import.
LEFT_OUT = {
    f"goods/{name}.py"
    for name in ("classify", "catalogue", "on_ray", "export", "model_card", "review", "review_widget")
}
# What one looks for: a cell each. All else (tables, photos, figures, pages, plans) is in one cell with the notebooks.
READABLE = ("goods_utils.py", "goods/params.py", "goods/members/", "goods/models/",
            "goods/training/", "goods/ensemble/")  # fmt: skip
LINE = 480  # characters in a line of the packed cell; each line costs two more, and the notebook is to be light
NOTEBOOKS = tuple(f"notebooks/{step}.ipynb" for step in STEPS)
CONFIGS = ("params/*.yaml",)

# The parameters cell: its defaults, and what each means.
PARAMETERS: dict[str, tuple[Any, str]] = {
    "config": ("params/siglip-so400m-lora.yaml", "a file of params/"),
    "run": (None, "name of the run; None: the config's"),
    "folds": (None, "such as [0, 1]; None: all, one per GPU side by side"),
    "num_epochs": (None, "None: as the config says"),
    "max_hours": (11.0, "of the session's 12; what is unfinished then is saved, and the next version goes on"),
    "debug": (False, "a few rows and one epoch, to see that all parts work"),
    "settings": ({}, 'any other parameters, such as {"dropout": 0.1}'),
}

TITLE = """# Goods classification: photo, title and description

The whole road in one notebook: look at the data, train the folds side by side on the GPUs there are, put them together,
write `submission.csv`. Built by `kaggle_kernel/build.py` from the project's files; change those, not the cells below.
What one looks for, models, training and ensemble, has a cell each, without docstrings; all else is packed into one cell
with the notebooks.

Sources: `{digest}`{commit}
"""
PLACES = """import base64
import bz2
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import pandas as pd

os.environ.setdefault("GOODS_STARTED", str(time.time()))  # max_hours counts from here
KAGGLE = Path(os.environ.get("GOODS_KAGGLE_ROOT", "/kaggle"))
SOURCES = KAGGLE / "temp" / "goods"
for name in {folders}:
    (SOURCES / name).mkdir(parents=True, exist_ok=True)"""
UNPACK = '''PACKED = """
{packed}
"""
MODULES = {names}
SHA256 = "{digest}"

sources = json.loads(bz2.decompress(base64.b85decode("".join(PACKED.split()))))
for name, text in sources.items():
    (SOURCES / name).write_text(text, encoding="utf-8")
sources |= {{name: (SOURCES / name).read_text(encoding="utf-8") for name in MODULES}}
found = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
assert found == SHA256, "the cells above were changed or did not all run; get main.ipynb back from git"'''
PREPARE = """sys.path.insert(0, str(SOURCES))
from kaggle_kernel import in_kernel

given = {"num_epochs": num_epochs, "max_hours": max_hours, "debug": debug, **settings}
session = in_kernel.prepare(KAGGLE, config, run, folds, **given)"""
RUN = "in_kernel.run(session)"
SCORES = "in_kernel.scores(session)"
HEAD = """submission = KAGGLE / "working" / "submission.csv"
pd.read_csv(submission, dtype=str).head() if submission.is_file() else "no submission yet: the next version goes on\""""


def read_sources(patterns: Sequence[str]) -> dict[str, str]:
    """{path from the root: text} of the files that match."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def read_packed() -> tuple[dict[str, str], dict[str, str]]:
    """The modules that have cells of their own, and what is packed into one cell, as {path: text}.

    These are all modules that the kernel may come to import, without the docstrings of functions and classes, and the
    notebooks and configs that it runs.
    """
    packed = read_sources((*NOTEBOOKS, *CONFIGS))
    modules, waiting = {}, read_sources(STARTED)
    for name in NOTEBOOKS:
        waiting |= read_sources(imported(notebook_code(packed[name])))
    while waiting:
        modules |= waiting
        found = {name for text in waiting.values() for name in imported(text)}
        waiting = read_sources(sorted(found - set(modules) - LEFT_OUT))
    bare = {name: without_docstrings(text) for name, text in sorted(modules.items())}
    packed |= {name: text for name, text in bare.items() if not name.startswith(READABLE)}
    return {name: text for name, text in bare.items() if name not in packed}, packed


def without_docstrings(text: str) -> str:
    """A module's text without the docstrings of its functions and classes, which are a sixth of it."""
    left = text.splitlines(keepends=True)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in [node for node in ast.walk(ast.parse(text)) if isinstance(node, defined)]:
        first = node.body[0]
        if ast.get_docstring(node) is not None and len(node.body) > 1:  # else it is all there is
            left[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "".join(left)


def imported(code: str) -> set[str]:
    """The project's own files that this code imports, in functions too, with the __init__.py of each package."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {file for name in names for file in module_files(name)}


def module_files(name: str) -> set[str]:
    """The files of the project behind goods.data.photos or goods.data.photos.load_photo; none for another's module."""
    parts = name.split(".")
    places = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    files = {file for place in places for file in (f"{place}.py", f"{place}/__init__.py")}
    return {file for file in files if (ROOT / file).is_file()}


def notebook_code(text: str) -> str:
    """The code of a notebook's cells."""
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def digest(sources: dict[str, str]) -> str:
    """A hash over names and texts."""
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def make_notebook(parameters: dict[str, Any], commit: str = "") -> str:
    """The text of main.ipynb; `commit` is shown in its title."""
    modules, packed = read_packed()
    packed |= label_fixes_of(parameters)
    whole = digest(modules | packed)
    base = base64.b85encode(bz2.compress(json.dumps(packed, sort_keys=True).encode())).decode()
    folders = sorted({Path(name).parent.as_posix() for name in modules | packed} - {"."})
    lines = "\n".join(re.findall(f".{{1,{LINE}}}", base))
    unpack = UNPACK.format(packed=lines, names=_names(list(modules)), digest=whole)
    title = TITLE.format(digest=whole[:12], commit=f", commit `{commit}`" if commit else "")
    cells = [
        _cell("title", title),
        _cell("parameters", parameters_cell(parameters), "code", ["parameters"]),
        _cell("places", PLACES.format(folders=_names(folders)), "code"),
        _cell("modules", "## The modules\n\nWritten outside `/kaggle/working`, so that they are no output."),
        *(_cell(name, f"%%writefile {{SOURCES}}/{name}\n{text}", "code") for name, text in modules.items()),
        _cell("unpack-text", "## Notebooks, configs, drawings\n\nUnpacked, and all compared with what was built."),
        _cell("unpack", unpack, "code"),
        _cell("prepare-text", "## What is attached\n\nCompetition, weights and an earlier output, wherever they lie."),
        _cell("prepare", PREPARE, "code"),
        _cell("run-text", "## The run\n\nEach step is a notebook; the executed ones are in the output."),
        _cell("run", RUN, "code"),
        _cell("scores-text", "## The scores, out of fold"),
        _cell("scores", SCORES, "code"),
        _cell("head-text", "## The submission"),
        _cell("head", HEAD, "code"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def label_fixes_of(parameters: dict[str, Any]) -> dict[str, str]:
    """{path: text} of the file that label_fixes names, for the kernel to find at the same place; {} without one.

    Raises GoodsError where it can't be read as such a table, or lies where the kernel would not find it.
    """
    try:
        named = kernel_params(parameters).label_fixes
    except GoodsError:  # which is said where parameters are set, and before a push
        return {}
    if not named or named.startswith("/kaggle/input/"):
        return {}
    place = Path(named)
    if place.is_absolute() or named.startswith("~") or ".." in place.parts:
        raise GoodsError(f"label_fixes {named} lies outside of the project, which is all that a kernel has of this "
                         "machine: copy it into the project, and name it from there, as labels_fixed.csv")  # fmt: skip
    read_fix_table(resolve(place))
    return {place.as_posix(): resolve(place).read_text(encoding="utf-8")}


def _cell(name: str, source: str, kind: str = "markdown", tags: Sequence[str] = ()) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": _cell_id(name), "metadata": {"tags": list(tags)} if tags else {}}
    # A module's last line break stays: %%writefile writes the cell as it is.
    text = source if source.startswith("%%") else source.strip("\n")
    whole = {"source": text.removesuffix("\n")}  # as Kaggle's client sends it; a line each would be a fifth longer
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}) | whole


def _cell_id(name: str) -> str:
    """A file's name as a cell's id: letters, digits and dashes, 64 at most."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", name.removesuffix(".py"))[-64:].strip("-")


def _names(names: list[str]) -> str:
    return "[\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"


def parameters_cell(parameters: dict[str, Any]) -> str:
    """The source of the parameters cell: literals only, each with what it means."""
    return "\n".join(f"{name} = {_literal(parameters[name])}  # {what}" for name, (_, what) in PARAMETERS.items())


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def read_parameters(text: str) -> dict[str, Any]:
    """The values in a built notebook's parameters cell. Raises GoodsError when it isn't one."""
    try:
        cell = next(cell for cell in json.loads(text)["cells"] if "parameters" in cell["metadata"].get("tags", []))
        lines = ast.parse("".join(cell["source"])).body
        found = {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, StopIteration):
        raise GoodsError(f"{NOTEBOOK} has no cell of parameters, each a literal; build it anew: make kernel") from None
    if set(found) != set(PARAMETERS):
        raise GoodsError(f"the parameters in {NOTEBOOK} are {', '.join(found)}, but must be {', '.join(PARAMETERS)}; "
                         "other ones go into settings, or build it anew: make kernel")  # fmt: skip
    return found


def check(folder: Path = FOLDER) -> dict[str, Any]:
    """Raises GoodsError when the notebook is missing or not what the sources give; returns its parameters."""
    path = folder / NOTEBOOK
    if not path.is_file():
        raise GoodsError(f"there is no {path}; build it: make kernel")
    text = path.read_text(encoding="utf-8")
    parameters = read_parameters(text)
    if text != make_notebook(parameters):
        raise GoodsError(f"{path} is not what the project's files give now; build it anew: make kernel")
    return parameters


def make_metadata(
    user: str,
    competition: str = COMPETITION,
    model: str = "",
    weights: str = "",
    resume: str = "no",
    internet: str = "no",
) -> dict[str, Any]:
    """What kernel-metadata.json says: two T4s, private, and no internet unless `internet` is "yes".

    `model` is the backbone as a dataset, owner/name, or as a model, owner/model/framework/variation/version; `weights`
    a dataset with a run's models. Several of either stand with commas between them. With `resume` "yes" the kernel's
    own last output is attached.
    """
    if not re.fullmatch(USER, user):
        raise GoodsError(f"{user!r} is no user name of Kaggle: it is the part behind kaggle.com/ on your own page")
    models = _listed(model) or [f"{user}/{BACKBONE}"]
    datasets = [source for source in (*models, *_listed(weights)) if source.count("/") == 1]
    made = {
        "id": f"{user}/{SLUG}",
        "title": SLUG.replace("-", " ").capitalize(),
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": internet == "yes",
        "machine_shape": "NvidiaTeslaT4",
        "competition_sources": [competition],
        "dataset_sources": datasets,
        "model_sources": [source for source in models if source.count("/") != 1],
        "kernel_sources": [f"{user}/{SLUG}"] if resume == "yes" else [],
    }
    for name, (pattern, what) in SOURCES.items():
        if wrong := [item for item in made[name] if not re.fullmatch(pattern, item)]:
            raise GoodsError(f"{wrong[0]!r} doesn't look like {what}")
    return made


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def kernel_params(parameters: dict[str, Any]) -> Params:
    """The run's parameters as the kernel's parameters cell gives them.

    Raises GoodsError where the kernel would refuse them: before they are written, and before they are pushed.
    """
    config, settings = parameters["config"], parameters["settings"]
    if config not in (configs := read_sources(CONFIGS)):
        raise GoodsError(f"config {config!r} is none of those that the kernel has: {', '.join(configs)}")
    if not isinstance(settings, dict):
        raise GoodsError(f"settings is {settings!r}, but must be like {{dropout: 0.1}}")
    own = (name for name in PARAMETERS if name not in ("config", "settings"))
    given = {name: parameters[name] for name in own if parameters[name] is not None}
    if twice := [name for name in settings if name in PARAMETERS]:
        raise GoodsError(f"settings has {', '.join(twice)}, which the kernel has a parameter of its own for")
    return load_run(config, **given | {str(name): value for name, value in settings.items()} | {"data_dir": None})


def set_parameters(texts: Sequence[str]) -> dict[str, Any]:
    """The notebook's parameters: those it has, or the defaults, and on them the given ones; checked as a run's are."""
    path = FOLDER / NOTEBOOK
    parameters = {name: default for name, (default, _) in PARAMETERS.items()}
    try:
        parameters |= read_parameters(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except GoodsError:
        print(f"the parameters of {path} can't be read; the defaults are taken")
    given = parse_settings(texts)
    parameters |= {name: value for name, value in given.items() if name in PARAMETERS}
    if more := {name: value for name, value in given.items() if name not in PARAMETERS}:
        before = parameters["settings"]
        parameters["settings"] = (before if isinstance(before, dict) else {}) | more
    folds = kernel_params(parameters).folds
    return parameters | {"folds": None if folds is None else list(folds)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the notebook, and kernel-metadata.json when a user is named; or checks that it is built."""
    parser = argparse.ArgumentParser(prog="build.py", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when main.ipynb is stale")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the notebook")
    parser.add_argument("--user", help="your Kaggle user name; kernel-metadata.json is then filled in")
    parser.add_argument("--competition", help=f"its slug ({COMPETITION})")
    parser.add_argument(
        "--model", help=f"the backbone: owner/name (USER/{BACKBONE}), or a Kaggle model; several with commas"
    )
    parser.add_argument("--weights", help="a dataset with a run's models: owner/name")
    parser.add_argument("--resume", choices=("yes", "no"), help="attach the kernel's own last output")
    parser.add_argument("--internet", choices=("yes", "no"), help="for wandb online; nothing else needs it")
    given = parser.parse_args(arguments)
    try:
        if given.check:
            check()
            return
        names = ("competition", "model", "weights", "resume", "internet")
        choices = {name: getattr(given, name) for name in names if getattr(given, name)}
        if choices and given.user is None:
            raise GoodsError(f"whose kernel is it? --{' --'.join(choices)} must come with --user (make: USER=...)")
        metadata = make_metadata(given.user, **choices) if given.user is not None else None
        path = write_text(FOLDER / NOTEBOOK, make_notebook(set_parameters(given.set)))
        print(f"{path.relative_to(ROOT)} built, {path.stat().st_size / 1000:.0f} kB")
        if metadata:
            write_json(FOLDER / METADATA, metadata)
            attached = [source for name in metadata if name.endswith("_sources") for source in metadata[name]]
            print(f"{(FOLDER / METADATA).relative_to(ROOT)} is for {metadata['id']}, with {', '.join(attached)}")
    except GoodsError as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
