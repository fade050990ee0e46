"""Notebooks run by the real papermill."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from goods.files import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# How many each shows; compress_text, which asks a language model, is run in tests/compress.
PICTURES = {
    "eda": 6,
    "trust": 5,
    "embed": 3,
    "train": 5,
    "baseline": 2,
    "refit": 0,
    "ensemble": 9,
    "submission": 2,
    "pseudo_label": 2,
    "predict": 4,
    "compare": 4,
    "review": 0,
}


class Done(NamedTuple):
    """A call of papermill: its exit status, what it said, and the executed notebook."""

    status: int
    stderr: str
    notebook: nbformat.NotebookNode

    def outputs(self) -> list[nbformat.NotebookNode]:
        return [output for cell in self.notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    def pictures(self) -> list[bytes]:
        data = [output.data for output in self.outputs() if "data" in output]
        return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]

    def said(self) -> str:
        """The sentences below its outputs, a line each."""
        data = [output.data for output in self.outputs() if "data" in output]
        return "\n".join(each["text/plain"] for each in data if each.get("text/html", "").startswith("<p "))

    def printed(self) -> str:
        return "".join(output.text for output in self.outputs() if output.output_type == "stream")


def installed() -> bool:
    """Whether this Python finds the modules by itself, as it does where `make` made it."""
    try:
        return bool(metadata.version("goods-classification"))
    except metadata.PackageNotFoundError:
        return False


def papermill(notebook: str, output: Path, *arguments: Any, cwd: Path = ROOT, root: Path | None = None) -> Done:
    """`papermill NOTEBOOK OUTPUT ARGUMENTS` in the folder `cwd`, with the modules installed or those in `root`."""
    command = [sys.executable, "-m", "papermill", notebook, str(output), *map(str, arguments)]
    environment = dict(os.environ)
    if root or not installed():
        environment["PYTHONPATH"] = str(root or ROOT)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert (cwd / output).is_file(), done.stderr
    return Done(done.returncode, done.stderr, nbformat.read(cwd / output, as_version=4))


def arguments(**given: Any) -> list[Any]:
    return [word for name, value in given.items() for word in ("-p", name, value)]
