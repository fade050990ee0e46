"""Datasets give whole batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from competition import photo
from PIL import Image

from goods.data.datasets import PhotoDataset, TensorsDataset, collate
from goods.data.photos import load_photo, photos_in

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


@pytest.fixture
def colours(tmp_path):
    """Photos of one colour each: their paths."""
    paths = [str(tmp_path / f"{level}.png") for level in (10, 20, 30, 40)]
    for path in paths:
        Image.new("L", (4, 4), int(path.rsplit("/", 1)[-1][:2])).save(path)
    return paths


def test_of_several_photos_all_come_where_nothing_is_drawn(colours):
    dataset = PhotoDataset([tuple(colours[:3]), (), (colours[3],)], 8, label=torch.arange(3))
    (batch,) = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=collate)
    assert tuple(batch["pixels"].shape) == (3, 3, 3, 8, 8) and batch["photos"].tolist() == [3, 1, 1]
    assert batch["pixels"][:, :, 0, 0, 0].tolist() == [[10, 20, 30], [255] * 3, [40, 255, 255]]
    assert batch["label"].tolist() == [0, 1, 2]


def test_one_photo_is_drawn_anew_each_epoch_by_seed_epoch_and_row(colours):
    def drawn(seed: int, epoch: int) -> list[int]:
        dataset = PhotoDataset([tuple(colours)] * 40, 8, seed=seed, draw=True)
        dataset.epoch = epoch
        assert all(set(dataset[row]) == {"pixels"} for row in (0, 1))
        return [int(dataset[row]["pixels"][0, 0, 0]) for row in range(40)]

    first = drawn(1, 1)
    assert drawn(1, 1) == first and set(first) == {10, 20, 30, 40}
    assert drawn(1, 2) != first and drawn(2, 1) != first


def test_photos_of_a_table_are_texts_or_tuples():
    single = pd.DataFrame({"image": ["a.jpg", ""], "sha": ["1", ""]})
    assert (photos_in(single), photos_in(single, "sha")) == (["a.jpg", ""], ["1", ""])
    several = single.assign(images=[("a.jpg", "b.jpg"), ()], shas=[("1", "2"), ()])
    assert (photos_in(several), photos_in(several, "sha")) == ([("a.jpg", "b.jpg"), ()], [("1", "2"), ()])
