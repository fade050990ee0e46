"""A local language model's answers are known by what it is, not by where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from goods.compress.local import LM_FILES
from goods.files import folder_hash


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"):
        (folder / name).write_text(name)
    return folder


def test_a_copied_model_keeps_its_answers(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("where it came from")
    assert folder_hash(copy, LM_FILES) == folder_hash(model, LM_FILES)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
)
def test_another_file_is_another_model(model: Path, name: str) -> None:
    before = folder_hash(model, LM_FILES)
    (model / name).write_text("changed")
    assert folder_hash(model, LM_FILES) != before


def test_a_renamed_file_is_another_model(model: Path) -> None:
    before = folder_hash(model, LM_FILES)
    (model / "merges.txt").rename(model / "vocab.txt")
    assert folder_hash(model, LM_FILES) != before
