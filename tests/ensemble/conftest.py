"""A run with all folds trained, to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import Trained


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Trained:
    """A copy of the miniature experiment, all folds trained, to be spoilt."""
    shutil.copytree(trained.p.outputs_dir, tmp_path / "outputs")
    shutil.rmtree(tmp_path / "outputs" / "mini" / "ensemble", ignore_errors=True)
    return Trained(trained.p.model_copy(update={"outputs_dir": str(tmp_path / "outputs")}), trained.goods)
