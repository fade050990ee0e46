"""What is learned on top of the encoders: heads, and encoders under heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from goods.advice import train_again
from goods.errors import DamagedFileError
from goods.models.backbone import first_line
from goods.models.device import full_precision
from goods.models.encoders import Encoder
from goods.models.text_encoder import TextEncoder
from goods.params import Params

LEAST_COLUMN_STD = 0.2  # of a further column's feature: by its own, a value that few products have would drown the rest


class Copies(nn.ModuleList):
    """Heads of one form that begin apart; while they learn, the logits of each, (batch, copies, num_classes), and else
    their mean, (batch, num_classes).

    Each learns by its own loss, so they end apart, and their mean errs less than one (arXiv 1612.01474).
    """

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, dim) to logits."""
        each = torch.stack([head(embeddings) for head in self], dim=1)
        return each if self.training else each.mean(dim=1)


def _copied(make: Callable[[], nn.Module], copies: int) -> nn.Module:
    return make() if copies == 1 else Copies(make() for _ in range(copies))


class GoodsHeads(nn.Module):
    """Fused, image and text logits from a pair of embeddings.

    The fused head is LayerNorm, Linear, GELU, Dropout, Linear over both embeddings, and over those of another text
    encoder where there are any (extra_dim). The unimodal heads are linear, so that decisions can be fused later
    (Rakuten SIGIR'20: fusing decisions beats concatenating features). Each is there p.head_copies times. What has no
    dimensions (0) is not there, nor is its head: vectors that are neither photo's nor text's come as extra, alone,
    under the fused head. So do features of further columns (columns_dim), which modality dropout lets be.
    Embeddings are first standardised dimension by dimension, with statistics of the training products (`set_scale`).
    Where photos are all that is looked at there are image logits alone.
    """

    def __init__(self, image_dim: int, text_dim: int, p: Params, extra_dim: int = 0, columns_dim: int = 0) -> None:
        super().__init__()
        self.modality_dropout = p.modality_dropout
        sizes = {"image": image_dim, "text": text_dim, "extra": extra_dim, "columns": columns_dim}
        self.dims = dims = {name: dim for name, dim in sizes.items() if dim}
        for name, dim in dims.items():
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        if dims.keys() != {"image"}:
            self.fused = _copied(partial(_fused_head, sum(dims.values()), p), p.head_copies)
        if image_dim:
            self.image = _copied(partial(_linear_head, image_dim, p), p.head_copies)
        if text_dim:
            self.text = _copied(partial(_linear_head, text_dim, p), p.head_copies)

    @torch.no_grad()
    def set_scale(self, **embeddings: Tensor) -> None:
        """Takes mean and deviation from the embeddings of training products: image=(n, image_dim) and so on.

        A dimension that hardly varies gets the usual deviation: divided by its own, it would swamp all others as soon
        as tuning moves it.
        """
        for name, values in embeddings.items():
            std = values.std(0, correction=0)
            usual = std.square().mean().sqrt().clamp_min(1e-6)
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            least = LEAST_COLUMN_STD if name == "columns" else 1e-6
            getattr(self, f"{name}_std").copy_(torch.where(std < 0.01 * std.max(), usual, std).clamp_min(least))

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        extra: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """(batch, image_dim), (batch, text_dim), (batch, extra_dim) to {"fused", "image", "text"}: (batch, classes).

        While copies learn, (batch, copies, classes). In fp32 whatever the encoders compute in: 16 bits would move
        logits by hundredths and tie some.
        """
        given = {"image": image, "text": text, "extra": extra, "columns": columns}
        given = {name: values for name, values in given.items() if values is not None}
        with full_precision(next(iter(given.values())).device):
            parts = {name: self._scaled(name, values) for name, values in given.items()}
            fused = {}
            if parts.keys() != {"image"}:
                both = torch.cat(self._drop_modality(parts), dim=-1)  # (batch, image_dim + text_dim + extra_dim)
                fused["fused"] = self.fused(both)
            return fused | {name: getattr(self, name)(parts[name]) for name in ("image", "text") if name in parts}

    def _scaled(self, name: str, embeddings: Tensor) -> Tensor:
        return (embeddings.float() - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def _drop_modality(self, parts: dict[str, Tensor]) -> list[Tensor]:
        """In training, a share of the products loses its image or its texts: 0 is the mean of the standardised."""
        if not self.training or not self.modality_dropout or "image" not in parts or len(parts) == 1:
            return list(parts.values())
        image = parts["image"]
        chance = torch.rand(len(image), 1, device=image.device)
        lost = self.modality_dropout / 2
        kept = {"image": chance >= lost, "text": chance < 1 - lost, "extra": chance < 1 - lost, "columns": 1.0}
        return [values * kept[name] for name, values in parts.items()]


def _fused_head(dim: int, p: Params) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, p.hidden_dim),
        nn.GELU(),
        nn.Dropout(p.dropout),
        nn.Linear(p.hidden_dim, p.num_classes),
    )


def _linear_head(dim: int, p: Params) -> nn.Module:
    return nn.Sequential(nn.Dropout(p.dropout), nn.Linear(dim, p.num_classes))


class GoodsClassifier(nn.Module):
    """An encoder of photos, and of texts where it reads any, under GoodsHeads."""

    def __init__(self, encoder: Encoder, heads: GoodsHeads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(
        self,
        pixels: Tensor | None = None,
        input_ids: Tensor | None = None,
        extra: Tensor | None = None,
        photos: Tensor | None = None,
        columns: Tensor | None = None,
        image: Tensor | None = None,
        text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """(batch, 3, size, size) uint8, (batch, windows, length) ids to {output: (batch, num_classes)}.

        With `photos`, (batch,), pixels are (batch, most, 3, size, size), of which so many are a product's own. In place
        of pixels or ids their embeddings may be given, (batch, image_dim), (batch, text_dim).
        """
        if pixels is not None:
            several = photos is not None
            image = self.encoder.embed_several(pixels, photos) if several else self.encoder.embed_images(pixels)
        if input_ids is not None:
            text = self.encoder.embed_texts(input_ids)
        return self.heads(image, text, extra, columns)


class TextClassifier(nn.Module):
    """A text encoder under a linear head: kind text."""

    def __init__(self, encoder: TextEncoder, p: Params) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _linear_head(encoder.dim, p)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """(batch, length) ids to {"text": (batch, num_classes)}, the head in fp32 as GoodsHeads."""
        embeddings = self.encoder(input_ids)  # (batch, dim)
        with full_precision(embeddings.device):
            return {"text": self.head(embeddings.float())}


def make_heads(embeddings: dict[str, Tensor], p: Params) -> GoodsHeads:
    """Fresh heads, scaled to the embeddings of training products: {"image": (n, image_dim), "text": ...}."""
    torch.manual_seed(p.seed + p.seed_offset)
    heads = _heads_of_size({name: values.shape[1] for name, values in embeddings.items()}, p)
    heads.set_scale(**embeddings)
    return heads


def heads_like(weights: Path, p: Params) -> GoodsHeads:
    """Heads of the size that a fold's weights have, not loaded yet."""
    try:
        with safe_open(weights, framework="pt") as file:
            sizes = {_part(n): file.get_slice(n).get_shape()[0] for n in file.keys() if n.endswith("_mean")}  # noqa: SIM118
        return _heads_of_size(sizes, p)
    except Exception as error:
        raise DamagedFileError(
            f"the weights {weights} can't be loaded: {first_line(error)}; {train_again(weights)}"
        ) from error


def heads_of(saved: dict[str, Tensor], p: Params) -> GoodsHeads:
    """Heads of the size that the tensors of a saved classifier have, not loaded yet."""
    torch.manual_seed(p.seed + p.seed_offset)
    return _heads_of_size({_part(name): len(tensor) for name, tensor in saved.items() if name.endswith("_mean")}, p)


def _part(buffer: str) -> str:
    """The embeddings that a buffer of the heads scales: image of heads.image_mean."""
    return buffer.rsplit(".", 1)[-1].removesuffix("_mean")


def _heads_of_size(dims: dict[str, int], p: Params) -> GoodsHeads:
    return GoodsHeads(dims.get("image", 0), dims.get("text", 0), p, dims.get("extra", 0), dims.get("columns", 0))
