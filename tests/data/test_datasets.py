"""Datasets give whole batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from competition import photo

from goods.data.datasets import PhotoDataset, TensorsDataset, collate
from goods.data.photos import load_photo

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def loaded(path: str, size: int) -> np.ndarray:
    """What load_photo gives, as rows of RGB pixels: (size, size, 3) uint8."""
    return load_photo(path, size).permute(1, 2, 0).numpy()


def test_photos_come_in_batches_with_what_stands_beside_them(tmp_path):
    photo(1).save(tmp_path / "a.png")
    columns = {"row": torch.arange(3), "tokens": torch.arange(12).reshape(3, 4)}
    dataset = PhotoDataset([str(tmp_path / "a.png"), "", str(tmp_path / "a.png")], 16, **columns)
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=collate))
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    assert batches[0]["pixels"].dtype == torch.uint8
    assert batches[0]["pixels"][1].min() == 255
    np.testing.assert_array_equal(batches[1]["pixels"][0].permute(1, 2, 0), loaded(str(tmp_path / "a.png"), 16))
    assert batches[1]["row"].tolist() == [2] and batches[1]["tokens"].tolist() == [[8, 9, 10, 11]]


def test_tensors_come_in_whole_batches():
    dataset = TensorsDataset(x=torch.arange(10).reshape(5, 2), label=torch.arange(5))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate))
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    assert batches[1]["x"].tolist() == [[6, 7], [8, 9]]
