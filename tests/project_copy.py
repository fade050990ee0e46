"""The project in a folder of its own, for commands of its pages that write below it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goods.files import ROOT

LEFT_OUT = shutil.ignore_patterns(".venv*", ".git", "sample", "siglip-tiny", "outputs", "__pycache__", ".*_cache")


def copy_project(root: Path, sample: Any, configs: Sequence[str], n_folds: int, num_epochs: int) -> Path:
    """`root`, with the project, its sample and this Python as .venv; these configs with fewer folds and epochs."""
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    shutil.copytree(sample.data, root / "data" / "sample")
    shutil.copytree(sample.model, root / "models" / "siglip-tiny")
    for name in configs:
        config = root / "params" / f"{name}.yaml"
        fewer = config.read_text().replace("num_epochs: 12", f"num_epochs: {num_epochs}")
        config.write_text(f"{fewer}\nn_folds: {n_folds}\n")
    (root / ".venv").symlink_to(sys.prefix)
    return root
