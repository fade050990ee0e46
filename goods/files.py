"""Files that are written whole or not at all, and paths from the project's root."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goods.errors import GoodsError

ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str | os.PathLike) -> Path:
    """A relative path means the project root, wherever the kernel stands. Raises GoodsError for an unknown ~user."""
    try:
        return ROOT / Path(path).expanduser()
    except RuntimeError as error:
        raise GoodsError(f"{path}: {error}") from None


@contextmanager
def atomic_path(path: str | os.PathLike):
    """A temporary path beside `path` that takes its name at the end, or vanishes when the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp and safetensors make files private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any) -> Path:
    """Writes a JSON file whole or not at all."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def file_stamp(paths: Iterable[str | os.PathLike]) -> str:
    """A hash of names, sizes and times of files and of all files below folders: has anything changed?"""
    digest = hashlib.sha256()
    for path in paths:
        path = resolve(path)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            stat = file.stat() if file.exists() else None
            digest.update(f"{file}|{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()
