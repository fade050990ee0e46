"""Folders that are made whole or not at all, and made again only when something changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goods.errors import GoodsError
from goods.files import resolve

STAMP = ".goods_sample.json"  # says how a folder was made, and what is in it


@contextmanager
def whole_folder(folder: str | os.PathLike, made_with: dict[str, Any]) -> Iterator[Path | None]:
    """A new folder beside `folder` that takes its name at the end, or vanishes when the block fails.

    None when `folder` was made with the same settings by the same code, and nothing in it changed since.
    """
    folder = resolve(folder)
    makers = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("sample*.py")))
    made_with = {**made_with, "code": hashlib.sha256(makers).hexdigest()}
    stamp = folder / STAMP
    if folder.exists() and not (folder.is_dir() and (stamp.is_file() or not any(folder.iterdir()))):
        raise GoodsError(f"{folder} is there already and the sample's maker didn't make it; name another folder")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp(folder, made_with):
        yield None
        return
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        (new / STAMP).write_text(_stamp(new, made_with), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _stamp(folder: Path, made_with: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != STAMP):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return json.dumps({**made_with, "content": digest.hexdigest()}, indent=1) + "\n"
