"""What all tests share: an environment of their own, and the embedded sample made once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

# Set before any test module imports torch, transformers or jupyter, and inherited by the notebooks that tests run:
# nothing of the user's home (kernels, IPython profiles, caches) takes part, nothing is downloaded, one core is used.
_HOME = tempfile.TemporaryDirectory(prefix="goods-home-")
os.environ |= {
    "HOME": _HOME.name,
    "IPYTHONDIR": f"{_HOME.name}/ipython",
    "JUPYTER_CONFIG_DIR": f"{_HOME.name}/jupyter/config",
    "JUPYTER_DATA_DIR": f"{_HOME.name}/jupyter/data",
    "JUPYTER_RUNTIME_DIR": f"{_HOME.name}/jupyter/runtime",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "OMP_NUM_THREADS": "1",
}
for _name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "JUPYTER_PATH"):
    os.environ.pop(_name, None)


class Sample(NamedTuple):
    """Where the sample lies."""

    data: Path
    model: Path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A small sample competition (21 classes, 6 + 2 products each) and its tiny SigLIP directory."""
    import goods_sample

    folder = tmp_path_factory.mktemp("sample")
    made = Sample(folder / "data", folder / "siglip-tiny")
    goods_sample.make_competition(made.data, seed=7, train_per_class=6, test_per_class=2)
    goods_sample.make_model(made.model, goods_sample.read_texts(made.data), seed=7)
    return made
