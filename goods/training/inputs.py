"""What models take of a table of products: embeddings and decoded photos, made for one member or shared by several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from goods.data.datasets import PhotoDataset, TensorsDataset, UncheckedPhotos
from goods.files import folder_hash, resolve
from goods.models.backbone import DualEncoder
from goods.models.device import pick_device, pick_precision
from goods.models.embeddings import Embedder, TextEmbedder, embed_products, extra_embeddings
from goods.params import Params
from goods.training.inference import decoded_chunks, make_loader

PHOTO_ROWS, TEXT_ROWS = 1024, 4096  # products that are worked on at once, with and without their photos
PIXEL_BYTES = 2**30  # decoded photos held in memory at once, where several members look at them


class Inputs:
    """Those of a run's own tables: the photos are known to open, and frozen embeddings are kept on disk."""

    def __init__(self) -> None:
        self._embedders: dict[Params, Embedder] = {}

    def embeddings(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """{"image": (n, image_dim), "text": (n, text_dim)} from the frozen backbone, "extra" from extra_embeddings."""
        return embed_products(p, products, self._embedders.setdefault(p, Embedder(p)))

    def extra(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """{"extra": (n, extra_dim)}; {} without extra_embeddings."""
        return extra_embeddings(p, products)

    def chunks(self, dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
        """The dataset with its photos decoded, in as many chunks as memory asks for."""
        return decoded_chunks(dataset, p)

    def will_embed(self, p: Params) -> None:
        """Said by a member beforehand: it will ask for embeddings."""

    def will_decode(self, size: int) -> None:
        """Said by a member beforehand: it will ask for photos of this size."""


class SharedInputs(Inputs):
    """Those of any other table, made once for all members that ask for the same, and kept only until the next table.

    The same means: a backbone of the same contents, image_size, text settings and precision. Photos that can't be read
    are white, and `photo_status` says so. Nothing is written to disk.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}  # of model directories, by their paths; those that are known already
        self._encoders: dict[tuple, Embedder] = {}
        self._made: dict[Any, tuple[Any, Any]] = {}
        self._readers: defaultdict[int, set] = defaultdict(set)  # who looks at photos of a size
        self._status: tuple[list, list[str]] = ([], [])

    @property
    def reads_photos(self) -> bool:
        """Whether any member looks at photos."""
        return bool(self._readers)

    @property
    def rows(self) -> int:
        """How many products are best worked on at once."""
        held = sum(3 * size**2 for size in self._readers if self._is_held(size))
        most = PHOTO_ROWS if self._readers else TEXT_ROWS
        return max(1, min(most, PIXEL_BYTES // held)) if held else most

    def will_embed(self, p: Params) -> None:
        """Loads the encoders, so that what is wrong with them is said at once."""
        self._readers[self._encoder(p).encoder.image_size].add(self._image_key(p))
        if p.extra_embeddings:
            self._extra_encoder(p)

    def will_decode(self, size: int) -> None:
        """Said by a member beforehand: it will ask for photos of this size."""
        self._readers[size].add(len(self._readers[size]))

    def embeddings(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """As Inputs; each distinct one is computed once per table."""
        encoder, images, ids = self._encoder(p), products["image"].tolist(), products["id"].tolist()
        texts, titles = products["text"].tolist(), products["title"].tolist()
        size = encoder.encoder.image_size
        image = self._once(self._image_key(p), images, lambda: encoder.pass_photos(self._batches(images, size, p), ids))
        text_key = ("text", *self._contents(p, p.model_name), p.max_text_length, p.text_windows, p.text_columns)
        text = self._once(text_key, (texts, titles), lambda: encoder.pass_texts(texts, titles, ids))
        return {"image": image, "text": text} | self.extra(p, products)

    def extra(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """As Inputs; each distinct one is computed once per table."""
        if not p.extra_embeddings:
            return {}
        texts, ids = products["text"].tolist(), products["id"].tolist()
        key = ("extra", *self._contents(p, p.extra_embeddings), p.text_columns)
        return {"extra": self._once(key, texts, lambda: self._extra_encoder(p).pass_texts(texts, ids))}

    def chunks(self, dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
        """The dataset with its photos decoded, whole: a table that is longer than `rows` comes in parts."""
        yield TensorsDataset(pixels=self._pixels(dataset.images, dataset.size, p), **dataset.columns)

    def photo_status(self, images: Sequence[Any]) -> list[str] | None:
        """(n,) "ok" or what is wrong with each photo of the table that was just asked for; None where none was read."""
        return self._status[1] if self._status[0] == list(images) else None

    def _encoder(self, p: Params) -> Embedder:
        """The frozen backbone, loaded once for all image sizes and text settings."""
        contents = self._contents(p, p.model_name)
        key = ("dual", *contents, p.image_size, p.max_text_length, p.text_windows)
        if key not in self._encoders:
            embedder = Embedder(p)
            alike = [other for known, other in self._encoders.items() if known[: 1 + len(contents)] == key[:-3]]
            if alike:
                first = alike[0].encoder
                embedder.encoder = DualEncoder(first.backbone, first.processor, p).to(pick_device()).eval()
            self._encoders[key] = embedder
            _ = embedder.encoder
        return self._encoders[key]

    def _extra_encoder(self, p: Params) -> TextEmbedder:
        key = ("extra", *self._contents(p, str(p.extra_embeddings)))
        if key not in self._encoders:
            self._encoders[key] = TextEmbedder(p)
            _ = self._encoders[key].encoder
        return self._encoders[key]

    def _once(self, key: Any, of: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives for `of`; of each key the last one is kept."""
        if key not in self._made or self._made[key][0] != of:
            self._made.pop(key, None)  # not two tables' at once
            self._made[key] = of, make()
        return self._made[key][1]

    def _is_held(self, size: int) -> bool:
        """Whether decoded photos of this size are kept for others; else they are embedded as they are read."""
        readers = self._readers[size]
        return len(readers) > 1 or not all(isinstance(reader, tuple) for reader in readers)

    def _batches(self, images: list, size: int, p: Params) -> Iterator[Tensor]:
        if self._is_held(size):
            yield from self._pixels(images, size, p).split(p.eval_batch_size)
        else:
            yield from self._read(images, size, p)

    def _pixels(self, images: list, size: int, p: Params) -> Tensor:
        """(n, 3, size, size) uint8, decoded once for all who ask."""

        def read() -> Tensor:
            whole, start = torch.empty(len(images), 3, size, size, dtype=torch.uint8), 0
            for pixels in self._read(images, size, p):  # copied: a batch that is kept keeps its worker's file open
                whole[start : start + len(pixels)] = pixels
                start += len(pixels)
            return whole

        return self._once(("pixels", size), images, read)

    def _read(self, images: list, size: int, p: Params) -> Iterator[Tensor]:
        found: list[str] = []
        for batch in make_loader(UncheckedPhotos(images, size), p, batch_size=p.eval_batch_size):
            found += batch["status"]
            yield batch["pixels"]
        self._status = images, found

    def _image_key(self, p: Params) -> tuple:
        return ("image", *self._contents(p, p.model_name), p.image_size)

    def _contents(self, p: Params, model_name: str) -> tuple[str, str]:
        """What a frozen encoder's embeddings depend on beside its inputs: its files, and its precision."""
        if model_name not in self.hashes:
            self.hashes[model_name] = folder_hash(resolve(model_name))
        return self.hashes[model_name], pick_precision(p.mixed_precision)
