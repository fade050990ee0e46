"""Embeddings of photos and texts from frozen encoders, each computed once and kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from goods.code_version import PLUMBING, code_version
from goods.data.datasets import PhotoDataset, TokensDataset
from goods.data.matrices import read_matrix
from goods.data.photos import photos_in
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import atomic_path, clear_temporaries, folder_hash, resolve
from goods.models.backbone import DualEncoder, check_model_dir, mean_by_product
from goods.models.device import autocast, pick_device, pick_precision, tensors_hash
from goods.models.encoders import SIDES, load_encoder, load_text_tower, window_tokens
from goods.models.image_encoder import ImageEncoder, read_photo_settings, tower_is_whole
from goods.models.text_encoder import TextEncoder, load_text_encoder, with_max_length
from goods.models.tuning import halve_frozen
from goods.params import Params
from goods.places import names_vectors
from goods.progress import progress_bar
from goods.run import Run

GIVEN = frozenset(("goods.data.tables", "goods.data.texts"))  # the cache knows photos and texts as they are given
CACHE_CHUNK = 1024  # products per file of the embeddings cache; what an interrupted run loses at most
SHOWN = 5  # products that an error names


class Embedder:
    """Embeddings of photos and texts from the frozen backbone, each computed once and kept by content.

    The cache (outputs_dir/cache/embeddings) knows a backbone by the hash of its files, a photo by the hash of its
    bytes and a text by itself, so it serves all folds, runs and notebooks. The backbone is loaded only when something
    is missing.
    """

    kind_of_photos = "image"  # in the cache
    only_kept = False  # whether what the cache lacks is refused in place of computed

    def __init__(self, p: Params) -> None:
        self.p, self.model_name = p, p.model_name

    @cached_property
    def folder(self) -> Path:
        """Where its embeddings are kept."""
        return _cache_folder(self.p, self.model_name)

    @cached_property
    def encoder(self) -> DualEncoder:
        """The frozen encoder, on the device that is there."""
        return self._frozen(load_encoder(self.p.model_copy(update={"text_model_name": None})))

    def can_share(self, other: Embedder) -> bool:
        """Whether its weights are among those of another, of the same contents."""
        return type(other) is type(self)

    def share_weights(self, other: Embedder) -> None:
        """Takes the weights of another's encoder, which has them; its settings may differ."""
        self.encoder = self._like(other.encoder).to(pick_device()).eval()

    def _like(self, encoder: DualEncoder) -> DualEncoder:
        return DualEncoder(encoder.backbone, encoder.processor, self.p)

    def _frozen(self, encoder: nn.Module) -> nn.Module:
        halve_frozen(encoder.requires_grad_(False), pick_precision(self.p.mixed_precision))
        return encoder.to(pick_device()).eval()

    def photos(self, images: Sequence[str], shas: Sequence[str], ids: Sequence[str] = ()) -> Tensor:
        """(n, image_dim) embeddings of photos, given their paths and the hashes of their bytes ("" and "" for none).

        An error names the products by their `ids`, where they are given.
        """
        path_of = dict(zip(shas, images, strict=True))

        def compute(some: list[str]) -> Iterator[Tensor]:
            dataset = PhotoDataset([path_of[sha] for sha in some], self.encoder.image_size)
            loader = DataLoader(dataset, self.p.eval_batch_size, num_workers=self.p.num_workers)
            return self._of_pixels(batch["pixels"] for batch in loader)

        return self._cached(list(shas), f"{self.kind_of_photos}-{self.p.image_size or 'own'}", compute, ids or images)

    def texts(self, texts: Sequence[str], titles: Sequence[str], ids: Sequence[str] = ()) -> Tensor:
        """(n, text_dim) embeddings of texts; the titles head their further windows. `ids` as in photos."""
        p = self.p
        # Only windows make the title matter beside the text that begins with it.
        keys = [f"{title}\0{text}" if p.text_windows > 1 else text for title, text in zip(titles, texts, strict=True)]
        pair_of = dict(zip(keys, zip(titles, texts, strict=True), strict=True))

        def compute(some: list[str]) -> Iterator[Tensor]:
            titles, texts = zip(*(pair_of[key] for key in some), strict=True)
            return self._of_texts(texts, titles)

        kind = f"text-{p.max_text_length}" + (f"x{p.text_windows}" if p.text_windows > 1 else "")
        return self._cached(keys, kind, compute, ids or texts)

    def pass_photos(self, pixels: Iterable[Tensor], ids: Sequence[str]) -> Tensor:
        """(n, image_dim) embeddings of batches of pixels, (batch, 3, size, size) uint8; the cache takes no part."""
        return self._passed(self._of_pixels(pixels), ids)

    def pass_texts(self, texts: Sequence[str], titles: Sequence[str], ids: Sequence[str]) -> Tensor:
        """(n, text_dim) embeddings of texts; the cache takes no part."""
        return self._passed(self._of_texts(texts, titles), ids)

    def _of_pixels(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for pixels in batches:
            yield self.encoder.embed_images(pixels.to(pick_device()))

    def _of_texts(self, texts: Sequence[str], titles: Sequence[str]) -> Iterator[Tensor]:
        for ids in self.encoder.tokenize(texts, titles, self.p.text_windows).split(self.p.eval_batch_size):
            yield self.encoder.embed_texts(ids.to(pick_device()))

    def _passed(self, batches: Iterator[Tensor], ids: Sequence[str]) -> Tensor:
        embeddings = self._computed(batches)
        rows = [str(row) for row in range(len(ids))]
        self._refuse_what_is_no_number(embeddings, rows, dict(zip(rows, ids, strict=True)))
        return embeddings

    def _cached(
        self,
        keys: list[str],
        kind: str,
        compute: Callable[[list[str]], Iterator[Tensor]],
        names: Sequence[str],
    ) -> Tensor:
        """One row per key, (n, dim); what the cache lacks is computed once per key, and saved chunk by chunk.

        names: (n,) what each key is called in an error.
        """
        precision = pick_precision(self.p.mixed_precision)
        kind += "" if precision == "fp32" else f"-{precision}"  # else a run would depend on which ones went before it
        folder, name_of = self.folder / kind, dict(zip(keys, names, strict=True))
        row_of, table = _read_cache(folder)
        if any(_hash(key) not in row_of for key in name_of):
            if self.only_kept:
                raise GoodsError(f"{folder} doesn't have all embeddings yet; notebooks/embed.ipynb makes them")
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):  # folds side by side: one computes, the others wait
                clear_temporaries(folder)
                row_of, _ = _read_cache(folder, mend=True)
                missing = [key for key in name_of if _hash(key) not in row_of]
                with progress_bar(total=len(missing), desc=f"embedding {kind}", unit=" products", leave=False) as bar:
                    for start in range(0, len(missing), CACHE_CHUNK):
                        chunk = missing[start : start + CACHE_CHUNK]
                        embeddings = self._computed(compute(chunk), bar)
                        self._refuse_what_is_no_number(embeddings, chunk, name_of)
                        _write_cache(folder, [_hash(key) for key in chunk], embeddings)
            row_of, table = _read_cache(folder)
        return table[[row_of[_hash(key)] for key in keys]]

    @torch.inference_mode()
    def _computed(self, batches: Iterator[Tensor], bar: tqdm | None = None) -> Tensor:
        parts = []
        with autocast(self.p.mixed_precision):
            for batch in batches:
                parts.append(batch.float().cpu())
                if bar is not None:
                    bar.update(len(batch))
        return torch.cat(parts)

    def _refuse_what_is_no_number(self, embeddings: Tensor, keys: list[str], name_of: dict[str, str]) -> None:
        """Raises GoodsError where an embedding is infinite or nan: cached, it would spoil whatever learns from it."""
        finite = embeddings.isfinite().all(1).tolist()
        if bad := [key for key, well in zip(keys, finite, strict=True) if not well]:
            precision = pick_precision(self.p.mixed_precision)
            advice = "look at them and at its weights" if precision == "fp32" else "take mixed_precision fp32"
            some = ", ".join(name_of[key][:60] or "none" for key in bad[:SHOWN])
            more = " ..." if len(bad) > SHOWN else ""
            raise GoodsError(f"the encoder {resolve(self.model_name)} gives, in {precision}, embeddings that are not "
                             f"numbers, and are not kept, for {len(bad)} of {len(keys)} products ({some}{more}); "
                             f"{advice}")  # fmt: skip


class PhotoEmbedder(Embedder):
    """Embeddings of photos from the image encoder in p.model_name, or a dual encoder's image tower; kept as others."""

    @cached_property
    def kind_of_photos(self) -> str:
        """In the cache; CLIP's tower by itself gives others than the whole, not projected, and SigLIP's the same."""
        return Embedder.kind_of_photos if tower_is_whole(self.model_name) else "photo"

    @cached_property
    def folder(self) -> Path:
        """Where its embeddings are kept."""
        return _cache_folder(self.p, self.model_name, texts=False)

    @cached_property
    def encoder(self) -> ImageEncoder:
        """The frozen image encoder, on the device that is there."""
        return self._frozen(load_encoder(self.p, ("image",)))

    def can_share(self, other: Embedder) -> bool:
        """Whether its weights are among those of another, of the same contents: a dual encoder has them, too."""
        whole = type(other) is Embedder and self.kind_of_photos == other.kind_of_photos
        return whole or super().can_share(other)

    def _like(self, encoder: ImageEncoder | DualEncoder) -> ImageEncoder:
        tower = encoder.backbone.vision_model if isinstance(encoder, DualEncoder) else encoder.backbone
        return ImageEncoder(tower, read_photo_settings(self.model_name), self.p.image_size)


class TextEmbedder(Embedder):
    """Embeddings of texts from one of p.extra_embeddings, as its maker means them; kept by content, too."""

    def __init__(self, p: Params, model_name: str) -> None:
        self.p, self.model_name = p, model_name

    @cached_property
    def folder(self) -> Path:
        """Where its embeddings are kept."""
        return _cache_folder(self.p, self.model_name, photos=False)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The frozen text encoder, on the device that is there."""
        encoder = load_text_encoder(self.model_name).requires_grad_(False)
        halve_frozen(encoder, pick_precision(self.p.mixed_precision))
        return encoder.to(pick_device()).eval()

    def texts(self, texts: Sequence[str], ids: Sequence[str] = ()) -> Tensor:
        """(n, dim) embeddings of texts; an error names the products by their `ids`, where they are given."""
        return self._cached(list(texts), "text", self._of_texts, ids or list(texts))

    def pass_texts(self, texts: Sequence[str], ids: Sequence[str]) -> Tensor:
        """(n, dim) embeddings of texts; the cache takes no part."""
        return self._passed(self._of_texts(texts), ids)

    def _of_texts(self, texts: Sequence[str]) -> Iterator[Tensor]:
        yield _encoded(self.encoder, self.encoder.tokenize(texts), self.p.eval_batch_size)


class TextTowerEmbedder(Embedder):
    """Embeddings of texts from the encoder in p.text_model_name, as EncoderPair makes them; kept by content, too."""

    def __init__(self, p: Params) -> None:
        self.p, self.model_name = p, str(p.text_model_name)

    @cached_property
    def folder(self) -> Path:
        """Where its embeddings are kept."""
        return _cache_folder(self.p, self.model_name, photos=False)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The frozen text encoder, on the device that is there."""
        return self._frozen(load_text_tower(self.p))

    def _like(self, encoder: TextEncoder) -> TextEncoder:
        return with_max_length(encoder, self.p.max_text_length)

    def _of_texts(self, texts: Sequence[str], titles: Sequence[str]) -> Iterator[Tensor]:
        tokens = window_tokens(self.encoder, texts, titles, self.p.text_windows)
        each = _encoded(self.encoder, [ids for own in tokens for ids in own], self.p.eval_batch_size)
        parts = torch.tensor([len(own) for own in tokens], device=each.device)
        product = torch.arange(len(tokens), device=each.device).repeat_interleave(parts)
        yield mean_by_product(each, product, parts)


def _encoded(encoder: TextEncoder, tokens: list[list[int]], batch_size: int) -> Tensor:
    """(n, dim) embeddings of tokenised texts."""
    dataset = TokensDataset(tokens)
    order = dataset.lengths.argsort(stable=True)  # like with like: less padding
    parts = [
        encoder(dataset.__getitems__(rows.tolist())["input_ids"].to(pick_device())) for rows in order.split(batch_size)
    ]
    return torch.cat(parts)[order.argsort().to(pick_device())]


def embedders_of(p: Params, sides: Sequence[str] = SIDES, wanted: Sequence[str] | None = None) -> dict[str, Embedder]:
    """What embeds each of these sides of a product, "image" and "text"; of a dual encoder one for both.

    Of a model that looks at `sides`; with `wanted`, of those of them alone.
    """
    if "text" not in sides:
        found = {"image": PhotoEmbedder(p)}
    elif p.text_model_name:
        found = {"image": PhotoEmbedder(p), "text": TextTowerEmbedder(p)}
    else:
        found = dict.fromkeys(SIDES, Embedder(p))
    return found if wanted is None else {side: found[side] for side in wanted}


def _write_cache(folder: Path, names: list[str], embeddings: Tensor) -> None:
    with atomic_path(folder / f"{_hash(' '.join(names))}.safetensors") as temporary:
        tensors = {"embeddings": embeddings}
        metadata = {"names": " ".join(names), "sha256": tensors_hash(tensors)}
        save_file(tensors, temporary, metadata=metadata)


def _read_cache(folder: Path, mend: bool = False) -> tuple[dict[str, int], Tensor]:
    """Row of each name, and the embeddings (n, dim), of all files of a cache folder.

    A damaged file counts as missing; with `mend`, for one who holds the folder's lock, it is said and removed.
    """
    names: list[str] = []
    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                metadata, values = file.metadata(), file.get_tensor("embeddings")
            found = metadata["names"].split()
            whole = len(found) == len(values) and metadata["sha256"] == tensors_hash({"embeddings": values})
        except Exception:  # anything at all can be wrong with a damaged file
            whole = False
        if whole:
            names += found
            parts.append(values)
        elif mend:
            print(f"{path} is damaged; its {CACHE_CHUNK} products or fewer are embedded again", flush=True)
            path.unlink()
    return {name: row for row, name in enumerate(names)}, torch.cat(parts) if parts else torch.empty(0, 0)


def _cache_folder(p: Params, model_name: str, photos: bool = True, texts: bool = True) -> Path:
    """Where embeddings by a model directory are kept: known by its contents, and by the code that embeds."""
    check_model_dir(resolve(model_name), photos, texts)
    cache = resolve(p.outputs_dir) / "cache"
    contents = folder_hash(resolve(model_name), memory=cache / "hashes.json")
    return cache / "embeddings" / f"{contents}-{code_version((__name__,), PLUMBING | GIVEN)}"


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def embed_products(
    p: Params, table: pd.DataFrame, sides: Sequence[str] = SIDES, embedders: dict[str, Embedder] | None = None
) -> dict[str, Tensor]:
    """{"image": (n, image_dim), "text": (n, text_dim)} of a table's products, of these sides, from frozen encoders.

    With p.embeddings_files those vectors take the place of the encoders'.
    `embedders`: those of p, where some are held whose encoders may be loaded already.
    """
    if p.embeddings_files:
        return together(given_vectors(p, table), extra_embeddings(p, table))
    embedders, ids = embedders_of(p, sides) if embedders is None else embedders, table["id"].tolist()
    embeddings = {"image": _photos_of(embedders["image"], table, ids)} if "image" in embedders else {}
    if "text" in embedders:
        embeddings["text"] = embedders["text"].texts(table["text"].tolist(), table["title"].tolist(), ids)
    return embeddings | extra_embeddings(p, table)


def _photos_of(embedder: Embedder, table: pd.DataFrame, ids: list[str]) -> Tensor:
    """(n, image_dim): of a product with several photos their mean, of one without any that of a white one."""
    images, shas = photos_in(table), photos_in(table, "sha")
    if "images" not in table:
        return embedder.photos(images, shas, ids)
    rows = [(row, *photo) for row, (paths, hashes) in enumerate(zip(images, shas, strict=True))
            for photo in zip(paths or [""], hashes or [""], strict=True)]  # fmt: skip
    product, paths, hashes = zip(*rows, strict=True)
    embeddings = embedder.photos(paths, hashes, [ids[row] for row in product])
    return mean_by_product(embeddings, torch.tensor(product), torch.tensor([max(1, len(paths)) for paths in images]))


def together(embeddings: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of the same products together; what both call by one name is joined to longer rows."""
    both = {name: torch.cat([embeddings[name], more[name]], dim=1) for name in embeddings.keys() & more.keys()}
    return embeddings | more | both


def given_vectors(p: Params, table: pd.DataFrame) -> dict[str, Tensor]:
    """{"image", "text", "extra": (n, dim)}, those that there are, of a table's products from p.embeddings_files."""
    found = read_matrix(p.embeddings_files, p.id_column).of(table["id"].tolist())
    return {name: torch.from_numpy(values) for name, values in found.items()}


def further_vectors(p: Params, path: str, ids: Sequence[str]) -> Tensor:
    """(n, dim) vectors of products from a file, or from those of a pattern: all that it has, side by side."""
    return torch.from_numpy(read_matrix([path], p.id_column).joined(ids))


def extra_embeddings(p: Params, table: pd.DataFrame) -> dict[str, Tensor]:
    """{"extra": (n, extra_dim)} of a table's products, those in p.extra_embeddings side by side: text encoders', and
    vectors made elsewhere.

    {} where there is none.
    """
    texts, ids = table["text"].tolist(), table["id"].tolist()
    parts = [further_vectors(p, name, ids) if names_vectors(name) else TextEmbedder(p, name).texts(texts, ids)
             for name in p.extra_embeddings]  # fmt: skip
    return {"extra": torch.cat(parts, dim=1)} if parts else {}


def save_embeddings(p: Params, goods: Goods) -> dict[str, dict[str, Tensor]]:
    """{"train", "test"}: {"image": (n, image_dim), "text": (n, text_dim), "extra": ...}, rows as in the tables.

    Saved as embeddings/<part>.safetensors in the run, the ids as JSON in the file's metadata under "ids".
    """
    found = {}
    for part, table in (("train", goods.train), ("test", goods.test)):
        found[part] = {name: values.contiguous() for name, values in embed_products(p, table).items()}
        with atomic_path(Run.of(p).embeddings(part)) as temporary:
            save_file(found[part], temporary, metadata={"ids": json.dumps(table["id"].tolist())})
    return found
