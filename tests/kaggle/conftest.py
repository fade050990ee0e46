"""A stand-in for Kaggle, and the kernel that is pushed to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kaggle_server import Kaggle
from loopback import serving

from goods.files import ROOT, write_json
from kaggle_kernel import build, push


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """A server that the command line takes for Kaggle, and a user known to it."""
    with serving(Kaggle()) as server:
        environment = {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k",
            "KAGGLE_CONFIG_DIR": str(tmp_path / ".kaggle"), "http_proxy": server.url,
        }  # fmt: skip
        for name in [n for n in os.environ if n.upper().startswith("KAGGLE_") or n.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(push, "STAGE", tmp_path / "stage" / "kaggle")
        yield server


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The kernel's folder with a user name filled in."""
    folder = tmp_path / "kaggle_kernel"
    folder.mkdir()
    shutil.copy(ROOT / "kaggle_kernel" / "main.ipynb", folder)
    write_json(folder / "kernel-metadata.json", build.make_metadata("me"))
    return folder


@pytest.fixture
def pushed(kaggle: Kaggle, kernel: Path) -> dict[str, Any]:
    """What the server was sent by a push."""
    kaggle.answers["SaveKernel"] = {"ref": "/me/goods-classification", "url": "https://kaggle", "versionNumber": 7}
    assert "Kernel version 7 successfully pushed" in push.push(kernel)
    [(_, sent)] = kaggle.calls
    return sent
