"""What models take of a table of products: embeddings and decoded photos, made for one member or shared by several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from goods.data.ahead import PhotoReader
from goods.data.datasets import PhotoDataset, TensorsDataset
from goods.data.matrices import read_matrix
from goods.data.photos import as_tuples, can_be_shown, photos_in
from goods.errors import GoodsError
from goods.files import folder_hash, resolve
from goods.model_paths import model_paths
from goods.models.backbone import mean_by_product
from goods.models.device import pick_precision
from goods.models.embeddings import (
    Embedder,
    TextEmbedder,
    embed_products,
    embedders_of,
    extra_embeddings,
    further_vectors,
    given_vectors,
    together,
)
from goods.models.encoders import SIDES
from goods.params import Params
from goods.places import names_vectors
from goods.training.inference import decoded_chunks

PHOTO_ROWS, TEXT_ROWS = 1024, 4096  # products that are worked on at once, with and without their photos
PIXEL_BYTES = 2**30  # decoded photos held in memory at once, where several members look at them
AND = " | "  # between what each of a product's several photos is like
Sides = tuple[str, ...]  # of a product, as a member looks at it
Images = list[tuple[Any, ...]]  # of each product its photos: paths or bytes, "" for none


class Inputs:
    """Those of a run's own tables: the photos are known to open, and frozen embeddings are kept on disk."""

    def __init__(self) -> None:
        self._embedders: dict[tuple[Params, Sides, Sides | None], dict[str, Embedder]] = {}

    def embeddings(
        self, p: Params, products: pd.DataFrame, sides: Sides = SIDES, wanted: Sides | None = None
    ) -> dict[str, Tensor]:
        """{"image": (n, image_dim), "text": (n, text_dim)} from frozen encoders, "extra" from extra_embeddings.

        sides: those that the model looks at; wanted: of which of them, None for all.
        """
        embedders = self._embedders.setdefault((p, sides, wanted), embedders_of(p, sides, wanted))
        return embed_products(p, products, sides, embedders)

    def extra(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """{"extra": (n, extra_dim)}; {} without extra_embeddings."""
        return extra_embeddings(p, products)

    def chunks(self, dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
        """The dataset with its photos decoded, in as many chunks as memory asks for."""
        return decoded_chunks(dataset, p)

    def will_embed(self, p: Params, sides: Sides = SIDES, wanted: Sides | None = None) -> None:
        """Said by a member beforehand: it will ask for these embeddings."""

    def will_add(self, p: Params) -> None:
        """Said by a member beforehand: it will ask for extra embeddings."""

    def will_decode(self, size: int) -> None:
        """Said by a member beforehand: it will ask for photos of this size."""


class SharedInputs(Inputs):
    """Those of any other table, made once for all members that ask for the same, and kept only until the next table.

    The same means: a backbone of the same contents, image_size, text settings and precision. Photos that can't be read
    are left out of a product's several, white where it has no other, and `photo_status` says so. Nothing is written to
    disk.
    """

    def __init__(self) -> None:
        self.hashes: dict[str, str] = {}  # of model directories, by their paths; those that are known already
        self._encoders: dict[tuple, Embedder] = {}
        self._made: dict[Any, tuple[Any, Any]] = {}
        self._readers: defaultdict[int, set] = defaultdict(set)  # who looks at photos of a size
        self._vectors: dict[tuple[str, ...], tuple[str, str]] = {}  # files that members read: name, the ids' column
        self._status: tuple[Images, list[str]] = ([], [])  # of each photo, in one list
        self._reader: PhotoReader | None = None

    @property
    def reads_photos(self) -> bool:
        """Whether any member looks at photos."""
        return bool(self._readers)

    @property
    def rows(self) -> int:
        """How many products are best worked on at once, where each has one photo."""
        held = sum(3 * size**2 for size in self._readers if self._is_held(size))
        most = PHOTO_ROWS if self._readers else TEXT_ROWS
        return max(1, min(most, PIXEL_BYTES // held)) if held else most

    def will_embed(self, p: Params, sides: Sides = SIDES, wanted: Sides | None = None) -> None:
        """Loads the encoders, so that what is wrong with them is said at once."""
        if p.embeddings_files:
            self._will_read("embeddings_files", p.embeddings_files, p)
        elif photos := self._embedders_of(p, sides, wanted).get("image"):
            self._readers[photos.encoder.image_size].add(self._image_key(p, photos))
        self.will_add(p)

    def will_add(self, p: Params) -> None:
        """Said by a member beforehand: it will ask for extra embeddings."""
        for name, path in model_paths(dict(p), ["extra_embeddings"]).items():
            if names_vectors(path):
                self._will_read(name, (path,), p)
            else:
                self._extra_encoder(p, path)

    def _will_read(self, name: str, files: tuple[str, ...], p: Params) -> None:
        read_matrix(files, p.id_column)
        self._vectors[files] = name, p.id_column

    @property
    def reads_vectors(self) -> bool:
        """Whether any member reads vectors that were made elsewhere."""
        return bool(self._vectors)

    def check_vectors(self, ids: Sequence[str]) -> None:
        """Raises GoodsError where products have no vector among those that members read."""
        for files, (name, id_column) in self._vectors.items():
            try:
                read_matrix(files, id_column).check_ids({"": ids})
            except GoodsError as error:
                raise GoodsError(f"{error}: models={{'{name}': path}}, --models {name}=PATH") from None

    def will_decode(self, size: int) -> None:
        """Said by a member beforehand: it will ask for photos of this size."""
        self._readers[size].add(len(self._readers[size]))

    def embeddings(
        self, p: Params, products: pd.DataFrame, sides: Sides = SIDES, wanted: Sides | None = None
    ) -> dict[str, Tensor]:
        """As Inputs; each distinct one is computed once per table."""
        if p.embeddings_files:
            self.check_vectors(products["id"].tolist())
            return together(given_vectors(p, products), self.extra(p, products))
        embedders, ids, found = self._embedders_of(p, sides, wanted), products["id"].tolist(), {}
        if "image" in embedders:
            photos, images = embedders["image"], as_tuples(photos_in(products))
            key = self._image_key(p, photos)
            found["image"] = self._once(key, images, lambda: self._photo_embeddings(photos, images, ids, p))
        if "text" in embedders:
            reader, texts, titles = embedders["text"], products["text"].tolist(), products["title"].tolist()
            key = ("text", *self._contents(p, reader.model_name), p.max_text_length, p.text_windows, p.text_columns)
            found["text"] = self._once(key, (texts, titles), lambda: reader.pass_texts(texts, titles, ids))
        return found | self.extra(p, products)

    def extra(self, p: Params, products: pd.DataFrame) -> dict[str, Tensor]:
        """As Inputs; each distinct one is computed once per table."""
        texts, ids = products["text"].tolist(), products["id"].tolist()

        def of(name: str) -> Tensor:
            if names_vectors(name):
                self.check_vectors(ids)
                return further_vectors(p, name, ids)
            key = ("extra", *self._contents(p, name), p.text_columns)
            return self._once(key, texts, lambda: self._extra_encoder(p, name).pass_texts(texts, ids))

        parts = [of(name) for name in p.extra_embeddings]
        return {"extra": torch.cat(parts, dim=1)} if parts else {}

    def chunks(self, dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
        """The dataset with its photos decoded, whole: a table that is longer than `rows` comes in parts."""
        pixels, columns = self._pixels(dataset.images, dataset.size, p), dataset.columns
        if dataset.most > 1:
            counted = self._counted(dataset.images)
            columns = columns | {"photos": torch.tensor([len(own) for own in counted])}
            most = int(columns["photos"].max())
            pixels = pixels[torch.tensor([own + own[-1:] * (most - len(own)) for own in counted])]
        yield TensorsDataset(pixels=pixels, **columns)

    def photo_status(self, images: Sequence[Any]) -> list[str] | None:
        """(n,) "ok" or what is wrong with each photo of the table that was just asked for; None where none was read.

        Of a product with several photos, what each of them is like, with AND between them.
        """
        of, found = self._status
        return [AND.join(found[place] for place in own) for own in _places(of)] if of == as_tuples(images) else None

    def _photo_embeddings(self, encoder: Embedder, images: Images, ids: Sequence[str], p: Params) -> Tensor:
        """(n, image_dim): of several photos the mean of those that can be read."""
        names = [name for name, own in zip(ids, images, strict=True) for _ in own]
        embeddings = encoder.pass_photos(self._batches(images, encoder.encoder.image_size, p), names)
        if len(embeddings) == len(images):
            return embeddings
        counted = self._counted(images)
        product = torch.tensor([row for row, own in enumerate(counted) for _ in own])
        places = torch.tensor([place for own in counted for place in own])
        return mean_by_product(embeddings[places], product, torch.tensor([len(own) for own in counted]))

    def _counted(self, images: Images) -> list[list[int]]:
        """Of each product the places of the photos that count: those that can be read, else a white one."""
        status = self._status[1]
        return [[place for place in own if can_be_shown(status[place])] or own[:1] for own in _places(images)]

    def _embedders_of(self, p: Params, sides: Sides, wanted: Sides | None) -> dict[str, Embedder]:
        """The frozen encoders, each loaded once for all image sizes and text settings."""
        found = {}
        for side, embedder in embedders_of(p, sides, wanted).items():
            contents = self._contents(p, embedder.model_name)
            key = (contents, type(embedder), p.image_size, p.max_text_length, p.text_windows)
            if key not in self._encoders:
                alike = [other for known, other in self._encoders.items() if known[0] == contents]
                if owners := [other for other in alike if embedder.can_share(other)]:
                    embedder.share_weights(owners[0])
                _ = embedder.encoder
                for other in alike:
                    if other.can_share(embedder):  # as a tower that was loaded before the whole
                        other.share_weights(embedder)
                self._encoders[key] = embedder
            found[side] = self._encoders[key]
        return found

    def _extra_encoder(self, p: Params, model_name: str) -> TextEmbedder:
        key = (self._contents(p, model_name), "extra")
        if key not in self._encoders:
            self._encoders[key] = TextEmbedder(p, model_name)
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

    def _batches(self, images: Images, size: int, p: Params) -> Iterator[Tensor]:
        if self._is_held(size):
            yield from self._pixels(images, size, p).split(p.eval_batch_size)
        else:
            yield from self._read(images, size, p)

    def _pixels(self, images: Images, size: int, p: Params) -> Tensor:
        """(all photos, 3, size, size) uint8, decoded once for all who ask."""

        def read() -> Tensor:
            whole, start = torch.empty(sum(map(len, images)), 3, size, size, dtype=torch.uint8), 0
            for pixels in self._read(images, size, p):  # copied: a batch that is kept keeps its worker's file open
                whole[start : start + len(pixels)] = pixels
                start += len(pixels)
            return whole

        return self._once(("pixels", size), images, read)

    def _read(self, images: Images, size: int, p: Params) -> Iterator[Tensor]:
        self._reader = self._reader or PhotoReader(p.num_workers)
        found, photos = list[str](), [photo for own in images for photo in own]
        for pixels, status in self._reader.batches(photos, size, p.eval_batch_size):
            found += status
            yield pixels
        self._status = images, found

    def _image_key(self, p: Params, embedder: Embedder) -> tuple:
        return (embedder.kind_of_photos, *self._contents(p, embedder.model_name), p.image_size)

    def _contents(self, p: Params, model_name: str) -> tuple[str, str]:
        """What a frozen encoder's embeddings depend on beside its inputs: its files, and its precision."""
        if model_name not in self.hashes:
            self.hashes[model_name] = folder_hash(resolve(model_name))
        return self.hashes[model_name], pick_precision(p.mixed_precision)


def _places(images: Images) -> list[list[int]]:
    """Of each product the places of its photos in one list of all."""
    ends = accumulate(map(len, images))
    return [list(range(end - len(own), end)) for own, end in zip(images, ends, strict=True)]
