"""Decoded photos of a test set: whole, in order, and without keeping what their readers handed over."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from goods.files import ROOT
from goods.training.inference import gathered

FEW_FILES = """
import resource

import torch

from goods.data.datasets import PhotoDataset
from goods.params import Params
from goods.training.inference import decoded_chunks

dataset = PhotoDataset([""] * 200, 8, row=torch.arange(200))
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
(chunk,) = decoded_chunks(dataset, Params(num_workers=2, eval_batch_size=1))
assert chunk.columns["row"].tolist() == list(range(200)), chunk.columns["row"]
assert chunk.columns["pixels"].shape == (200, 3, 8, 8) and chunk.columns["pixels"].min() == 255
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no open files")
def test_a_test_set_of_more_batches_than_files_may_be_open_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", FEW_FILES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_batches_of_any_size_become_one_tensor_per_column() -> None:
    parts = [torch.arange(0, 6).view(3, 2), torch.arange(6, 10).view(2, 2), torch.arange(10, 12).view(1, 2)]
    found = gathered(({"x": part, "y": part[:, 0].to(torch.uint8)} for part in parts), 6)
    assert torch.equal(found["x"], torch.arange(12).view(6, 2))
    assert found["y"].tolist() == [0, 2, 4, 6, 8, 10] and found["y"].dtype == torch.uint8
