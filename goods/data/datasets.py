"""What training and prediction draw their batches from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from goods.data.photos import Augment, as_tuples, load_photo

NO_TOKEN = -1  # behind the end of a text; a tokenizer's own padding may be a token that texts end with


class PhotoDataset(Dataset):
    """Photos read when asked for, and what stands beside them: pixels (3, size, size) uint8, columns[name][row].

    With `augment`, a photo's changes depend on seed, epoch and row alone, not on which worker reads it. Of a product
    with several photos, a tuple, `draw` takes one at random, by seed, epoch and row. Without it each item has all of
    them, (most, 3, size, size) with white ones at the end, and how many they are as "photos".
    """

    def __init__(
        self,
        images: Sequence[str | tuple[str, ...]],
        size: int,
        augment: Augment | None = None,
        seed: int = 0,
        draw: bool = False,
        **columns: torch.Tensor,
    ) -> None:
        self.images = as_tuples(images)
        self.size, self.augment, self.seed, self.draw, self.columns = size, augment, seed, draw, columns
        self.most = 1 if draw else max(map(len, self.images), default=1)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        images, seed = self.images[row], (self.seed, self.epoch, row)
        columns = {name: column[row] for name, column in self.columns.items()}
        if self.draw and len(images) > 1:
            images = (random.Random(repr((*seed, "photo"))).choice(images),)
        if self.most == 1:
            return {"pixels": load_photo(images[0], self.size, self.augment, seed=seed)} | columns
        pixels = [load_photo(image, self.size, self.augment, seed=seed) for image in images]
        white = [load_photo("", self.size)] * (self.most - len(images))
        return {"pixels": torch.stack([*pixels, *white]), "photos": torch.tensor(len(images))} | columns


class TensorsDataset(Dataset):
    """Tensors of equal length, taken a whole batch at a time: one indexing instead of a thousand.

    Where texts are among them, lengths (n,) of their longest windows serve to put like with like.
    """

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns
        ids = columns.get("input_ids")
        self.lengths = None if ids is None else (ids != NO_TOKEN).sum(-1).amax(1)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class TokensDataset(Dataset):
    """Texts as token ids, padded to the longest of a batch; lengths (n,) serves to put like with like."""

    def __init__(self, tokens: Sequence[Sequence[int]], **columns: torch.Tensor) -> None:
        self.tokens, self.columns = [torch.tensor(ids, dtype=torch.int64) for ids in tokens], columns
        self.lengths = torch.tensor([len(ids) for ids in self.tokens])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        padded = pad_tokens([self.tokens[row] for row in rows])
        return {"input_ids": padded} | {name: column[rows] for name, column in self.columns.items()}


def pad_tokens(tokens: Sequence[Sequence[int] | torch.Tensor]) -> torch.Tensor:
    """(n, longest) token ids, NO_TOKEN behind the end of each text."""
    rows = [torch.as_tensor(ids, dtype=torch.int64) for ids in tokens]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_TOKEN)


def collate(items: Any) -> dict[str, torch.Tensor]:
    """Stacks PhotoDataset's items; those of the other datasets are a batch already. No text needs all its NO_TOKEN."""
    batch = items if isinstance(items, dict) else default_collate(items)
    return batch | {"input_ids": _shortened(batch["input_ids"])} if "input_ids" in batch else batch


def _shortened(input_ids: torch.Tensor) -> torch.Tensor:
    """(..., length) ids without what is NO_TOKEN in all of them at the end."""
    used = (input_ids != NO_TOKEN).flatten(0, -2).any(0).nonzero()  # (places, 1)
    longest = int(used[-1]) + 1 if len(used) else 1
    return input_ids[..., :longest]
