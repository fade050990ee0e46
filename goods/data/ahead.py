"""Photos that nobody has looked at yet, fetched and decoded in processes beside the model, ahead of it.

Threads would do for a slow model. On a fast GPU they hold up the thread that gives it work: with four of them an H100
took 1.6 times as long for the same photos, with four processes 1.05 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from goods.data.datasets import collate
from goods.data.fetch import fetched
from goods.data.photos import load_or_white

Asked = list[tuple[str | bytes, int]]  # photos, each with the side that it is to have


class PhotoReader:
    """Processes that read photos, none where `workers` is 0; begun on first use, they end with this object."""

    def __init__(self, workers: int) -> None:
        self._asked = _Asked()
        self._loader = DataLoader(
            _Photos(), batch_sampler=self._asked, collate_fn=collate, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def batches(self, photos: Sequence[str | bytes], size: int, batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Pixels (batch, 3, size, size) uint8 in the photos' order, white ones where there is none, and their statuses.

        photos: paths, URIs, or a photo's bytes; "" for none.
        """
        asked = [(photo, size) for photo in photos]
        self._asked.batches = [asked[at : at + batch_size] for at in range(0, len(asked), batch_size)]
        for batch in self._loader:
            yield batch["pixels"], batch["status"]


class _Asked:
    """The sampler of a loader whose rows are no numbers but the photos themselves: the next table needs no new one."""

    batches: Sequence[Asked] = ()

    def __iter__(self) -> Iterator[Asked]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Photos(Dataset):
    def __getitems__(self, asked: Asked) -> dict[str, Any]:
        photos = fetched([photo for photo, _ in asked])
        found = [load_or_white(photo, size) for photo, (_, size) in zip(photos, asked, strict=True)]
        return {"pixels": torch.stack([pixels for pixels, _ in found]), "status": [status for _, status in found]}
