"""Which code a result comes from: a hash over a module and all of the project's modules that it imports."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection
from pathlib import Path

from goods.files import ROOT

# What carries results but doesn't shape them; parameters count by their values, not by the code that reads them.
PLUMBING = frozenset(
    "goods goods.advice goods.words "
    "goods.errors goods.files goods.field_types goods.places goods.params goods.run goods.code_version "
    "goods.progress goods.step goods.processes goods.training.tracking goods.members goods.cost.plan "
    "goods.cost.footprint goods.cost.limits goods.kernels goods.settings goods.sheets".split()
)


def code_version(modules: Collection[str], without: Collection[str] = PLUMBING) -> str:
    """12 hex digits over the sources of these modules and of the project's modules below them, but for `without`."""
    found: set[str] = set()
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in without:
            found.add(name)
            waiting += imported_by(name)
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0{_code_of(name)}\0".encode())
    return digest.hexdigest()[:12]


@functools.cache
def _code_of(module: str) -> str:
    """A module's lines without docstrings, comment lines and empty lines: words for people change no result."""
    text = source_of(module).read_text(encoding="utf-8")
    lines = dict(enumerate(text.splitlines(), 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno, node.end_lineno + 1):
                lines.pop(number, None)
    return "\n".join(line for line in lines.values() if line.strip() and not line.lstrip().startswith("#"))


def source_of(module: str) -> Path:
    """The file of one of the project's modules."""
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def imported_by(module: str) -> tuple[str, ...]:
    """The project's modules that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "goods":
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name for name in inner if source_of(name).is_file()} or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "goods"}
    return tuple(sorted(names))
