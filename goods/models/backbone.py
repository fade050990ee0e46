"""The classifier: a dual encoder (SigLIP, SigLIP 2 FixRes, CLIP) under three heads, and the cache of its embeddings."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from goods_data import PhotoDataset, TokensDataset
from goods_params import GoodsError, Params, atomic_path, progress, resolve

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel

# A classifier gives the first two no gradient, nor the pooler that TextEncoder leaves out.
NEVER_TRAINED = ("logit_scale", "logit_bias", "pooler.", "text_model.embeddings.token_embedding",
                 "embeddings.word_embeddings", "embeddings.tok_embeddings")  # fmt: skip
EXTRA_MAX_LENGTH = 256  # tokens of a text that extra_embeddings reads, as sentence-transformers models were trained
CACHE_CHUNK = 1024  # products a file of the embeddings cache; what an interrupted run loses at most

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork of a DataLoader
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# 7 Model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processor:
    """How a backbone wants its inputs: its tokenizer, and the mean and standard deviation of pixels in 0 ... 1."""

    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tokenize(self, texts: Sequence[str], titles: Sequence[str], max_length: int, windows: int = 1) -> Tensor:
        """(n, windows, max_length) token ids, cut and padded to max_length, as SigLIP was trained.

        The first window is the text as far as it fits. Each further one is the title again and the next stretch of the
        text; a text that has no more of it leaves the window all padding.
        """
        rows = [[text] for text in texts] if windows == 1 else self._windows(texts, titles, max_length, windows)
        flat = [window for row in rows for window in row]
        ids = self.tokenizer(_lower(flat), padding="max_length", truncation=True, max_length=max_length)["input_ids"]
        full = torch.full((len(rows), windows, max_length), self.tokenizer.pad_token_id)
        place = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
        if place:
            row, window = torch.tensor(place).T
            full[row, window] = torch.tensor(ids)
        return full

    def _windows(self, texts: Sequence[str], titles: Sequence[str], max_length: int, windows: int) -> list[list[str]]:
        tokens = self.tokenizer([*_lower(texts), *_lower(titles)], add_special_tokens=False)["input_ids"]
        room = max_length - 2  # begin and end tokens, where the tokenizer has them
        rows = []
        for text, whole, title in zip(texts, tokens[: len(texts)], tokens[len(texts) :], strict=True):
            title = title[: room // 2]
            rest, step = whole[room:], room - len(title)
            stretches = [rest[at : at + step] for at in range(0, len(rest), step)][: windows - 1]
            rows.append([text, *(self.tokenizer.decode([*title, *stretch]) for stretch in stretches)])
        return rows

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the end token included, nothing cut."""
        return [len(ids) for ids in self.tokenizer(_lower(texts))["input_ids"]]


def _lower(texts: Sequence[str]) -> list[str]:
    # SigLIP 1's and CLIP's tokenizers do it anyway; SigLIP 2's was trained so and doesn't.
    return [text.lower() for text in texts]


def load_processor(model_name: str) -> Processor:
    """The processor of a local directory; raises GoodsError when the directory is missing, incomplete or damaged."""
    from transformers import AutoProcessor  # with all of transformers behind it, as a model, too

    folder = resolve(model_name)
    _check_model_dir(folder)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        photo = processor.image_processor
        return Processor(processor.tokenizer, tuple(photo.image_mean), tuple(photo.image_std))
    except Exception as error:  # each tokenizer library has its own
        why = f"the processor in {folder} can't be loaded: {_first_line(error)}"
        raise GoodsError(f"{why}; {_model_advice(folder)}") from error


def load_backbone(model_name: str) -> PreTrainedModel:
    """The dual encoder of a local directory, in fp32; safetensors only, and no code from the directory.

    Raises GoodsError when the directory is missing, incomplete, damaged, or holds another kind of model.
    """
    folder = resolve(model_name)
    _check_model_dir(folder)
    try:
        backbone, loading = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # counted below: the error it gives names no tensor
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # config, safetensors and torch each have their own
        why = f"the model in {folder} can't be loaded: {_first_line(error)}"
        raise GoodsError(f"{why}; {_model_advice(folder)}") from error
    if bad := sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}):
        raise GoodsError(f"the weights in {folder} don't fit its config.json: {len(bad)} are missing or of another "
                         f"shape, such as {bad[0]}; {_model_advice(folder)}")  # fmt: skip
    if not hasattr(backbone, "get_image_features") or not hasattr(backbone, "get_text_features"):
        raise GoodsError(f"{folder} holds a {type(backbone).__name__}; a dual encoder such as SigLIP is needed")
    return backbone


def _check_model_dir(folder: Path, photos: bool = True) -> None:
    if not folder.is_dir():
        raise GoodsError(f"there is no model directory {folder}; {_model_advice(folder)}")
    needs = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors"],
        "a tokenizer (tokenizer_config.json)": ["tokenizer_config.json"],
    }
    if photos:
        needs["an image processor (preprocessor_config.json)"] = ["preprocessor_config.json", "processor_config.json"]
    missing = [what for what, patterns in needs.items() if not any(any(folder.glob(name)) for name in patterns)]
    if missing:
        raise GoodsError(f"the model directory {folder} lacks {', '.join(missing)}; {_model_advice(folder)}")


def _model_advice(folder: Path) -> str:
    if folder.name == "siglip-tiny":
        return "the embedded sample's model is made by: python goods_sample.py"
    return f"download it with: hf download google/{folder.name} --local-dir models/{folder.name}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


class GoodsHeads(nn.Module):
    """Fused, image and text logits from a pair of embeddings.

    The fused head is LayerNorm, Linear, GELU, Dropout, Linear over both embeddings, and over those of another text
    encoder where there are any (extra_dim). The unimodal heads are linear, so that decisions can be fused later
    (Rakuten SIGIR'20: fusing decisions beats concatenating features).
    Embeddings are first standardised dimension by dimension, with statistics of the training products (`set_scale`).
    """

    def __init__(self, image_dim: int, text_dim: int, p: Params, extra_dim: int = 0) -> None:
        super().__init__()
        self.modality_dropout = p.modality_dropout
        dims = {"image": image_dim, "text": text_dim} | ({"extra": extra_dim} if extra_dim else {})
        for name, dim in dims.items():
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        self.fused = nn.Sequential(
            nn.LayerNorm(sum(dims.values())),
            nn.Linear(sum(dims.values()), p.hidden_dim),
            nn.GELU(),
            nn.Dropout(p.dropout),
            nn.Linear(p.hidden_dim, p.num_classes),
        )
        self.image = nn.Sequential(nn.Dropout(p.dropout), nn.Linear(image_dim, p.num_classes))
        self.text = nn.Sequential(nn.Dropout(p.dropout), nn.Linear(text_dim, p.num_classes))

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
            getattr(self, f"{name}_std").copy_(torch.where(std < 0.01 * std.max(), usual, std).clamp_min(1e-6))

    def forward(self, image: Tensor, text: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        """(batch, image_dim), (batch, text_dim), (batch, extra_dim) to {"fused", "image", "text"}: (batch, classes)."""
        image, text = self._scaled("image", image), self._scaled("text", text)
        parts = [image, text] if extra is None else [image, text, self._scaled("extra", extra)]
        both = torch.cat(self._drop_modality(*parts), dim=-1)  # (batch, image_dim + text_dim + extra_dim)
        return {"fused": self.fused(both), "image": self.image(image), "text": self.text(text)}

    def _scaled(self, name: str, embeddings: Tensor) -> Tensor:
        return (embeddings.float() - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def _drop_modality(self, image: Tensor, *texts: Tensor) -> list[Tensor]:
        """In training, a share of the products loses its image or its texts: 0 is the mean of the standardised."""
        if not self.training or not self.modality_dropout:
            return [image, *texts]
        chance = torch.rand(len(image), 1, device=image.device)
        lost = self.modality_dropout / 2
        return [image * (chance >= lost), *(text * (chance < 1 - lost) for text in texts)]


class DualEncoder(nn.Module):
    """A backbone fed as it was trained: photos squashed to a square and normalised, texts without attention mask."""

    def __init__(self, backbone: PreTrainedModel, processor: Processor, p: Params) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size = check_image_size(backbone, p.image_size)
        self.interpolate = self.image_size != backbone.config.vision_config.image_size
        check_text_length(backbone, p.max_text_length)
        self.processor = processor
        self.register_buffer("mean", torch.tensor(processor.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std).view(1, 3, 1, 1), persistent=False)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size) uint8 to (batch, image_dim)."""
        pixels = (pixels.float() / 255 - self.mean) / self.std
        return _pooled(self.backbone.get_image_features(pixel_values=pixels, interpolate_pos_encoding=self.interpolate))

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """(batch, windows, max_text_length) ids to (batch, text_dim), the mean over the windows that hold text."""
        used = input_ids[..., 0] != self.processor.tokenizer.pad_token_id  # (batch, windows)
        used[:, 0] = True  # an empty text is padding, too, and is encoded all the same
        # SigLIP never saw an attention mask, and CLIP's text tower is causal: none is given.
        embeddings = _pooled(self.backbone.get_text_features(input_ids=input_ids[used]))  # (used windows, text_dim)
        product = used.nonzero()[:, 0]
        total = embeddings.new_zeros(len(used), embeddings.shape[1]).index_add(0, product, embeddings)
        return total / used.sum(1, keepdim=True)


class GoodsClassifier(nn.Module):
    """A dual encoder under GoodsHeads."""

    def __init__(self, encoder: DualEncoder, heads: GoodsHeads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, pixels: Tensor, input_ids: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        """(batch, 3, size, size) uint8, (batch, windows, length) ids to {output: (batch, num_classes)}."""
        return self.heads(self.encoder.embed_images(pixels), self.encoder.embed_texts(input_ids), extra)


class TextEncoder(nn.Module):
    """A text encoder (BERT, DeBERTa, XLM-R, a sentence-transformers model): the mean of its last hidden states."""

    def __init__(self, model_name: str, max_length: int) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(model_name)
        self.backbone = load_text_backbone(model_name)
        self.max_length = max_length

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to max_length, not padded."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids, padded at the end, to (batch, dim)."""
        mask = input_ids != self.tokenizer.pad_token_id
        mask[:, 0] = True  # an empty text of a tokenizer without special tokens is nothing but padding
        states = self.backbone(
            input_ids=input_ids, attention_mask=mask.long()
        ).last_hidden_state  # (batch, length, dim)
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


class TextClassifier(nn.Module):
    """A text encoder under a linear head: kind text."""

    def __init__(self, encoder: TextEncoder, p: Params) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Dropout(p.dropout), nn.Linear(encoder.backbone.config.hidden_size, p.num_classes))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """(batch, length) ids to {"text": (batch, num_classes)}."""
        return {"text": self.head(self.encoder(input_ids))}


def load_text_backbone(model_name: str) -> PreTrainedModel:
    """The text encoder of a local directory, in fp32; safetensors only. Raises GoodsError when it isn't one."""
    folder = resolve(model_name)
    _check_model_dir(folder, photos=False)
    try:
        backbone, loading = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:
        raise GoodsError(f"the model in {folder} can't be loaded: {_first_line(error)}") from error
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):  # unused
        raise GoodsError(f"the weights in {folder} lack {len(missing)} of its tensors, such as {missing[0]}")
    if hasattr(backbone, "get_image_features") or getattr(backbone.config, "is_encoder_decoder", False):
        raise GoodsError(f"{folder} holds a {type(backbone).__name__}; a text encoder such as BERT is needed")
    return backbone


def load_tokenizer(model_name: str) -> Any:
    """The tokenizer of a local directory; raises GoodsError when it can't be loaded or can't pad."""
    folder = resolve(model_name)
    _check_model_dir(folder, photos=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise GoodsError(f"the tokenizer in {folder} can't be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        raise GoodsError(f"the tokenizer in {folder} has no padding token; take an encoder, such as BERT or DeBERTa")
    return tokenizer


def _pooled(features: Any) -> Tensor:
    # transformers 5 wraps the embedding in an output object, 4 did not.
    return features if isinstance(features, Tensor) else features.pooler_output


def check_image_size(backbone: PreTrainedModel, image_size: int | None) -> int:
    """The side of the square photo: image_size, or the checkpoint's own; it must be a multiple of the patch."""
    vision = backbone.config.vision_config
    size = image_size or vision.image_size
    # 384 with patches of 14 is what so400m was trained with: the rest of 6 pixels is cut off.
    if size != vision.image_size and size % vision.patch_size:
        near = max(1, round(size / vision.patch_size)) * vision.patch_size
        raise GoodsError(f"image_size {size} is not a multiple of the patch of {vision.patch_size}; take {near}")
    return size


def check_text_length(backbone: PreTrainedModel, max_text_length: int) -> int:
    """max_text_length, which may not exceed the backbone's positions."""
    most = backbone.config.text_config.max_position_embeddings
    if max_text_length > most:
        raise GoodsError(f"max_text_length {max_text_length} is more than the {most} tokens the backbone can read")
    return max_text_length


def make_heads(embeddings: dict[str, Tensor], p: Params) -> GoodsHeads:
    """Fresh heads, scaled to the embeddings of training products: {"image": (n, image_dim), "text": ...}."""
    torch.manual_seed(p.seed + p.fold)
    dims = {name: values.shape[1] for name, values in embeddings.items()}
    heads = GoodsHeads(dims["image"], dims["text"], p, dims.get("extra", 0))
    heads.set_scale(**embeddings)
    return heads


def heads_like(weights: Path, p: Params) -> GoodsHeads:
    """Heads of the size that a fold's weights have, not loaded yet."""
    try:
        with safe_open(weights, framework="pt") as file:
            sizes = {n.rsplit(".", 1)[-1]: file.get_slice(n).get_shape()[0] for n in file.keys() if n.endswith("_mean")}  # noqa: SIM118
        return GoodsHeads(sizes["image_mean"], sizes["text_mean"], p, sizes.get("extra_mean", 0))
    except Exception as error:
        raise GoodsError(f"the weights {weights} can't be loaded: {_first_line(error)}") from error


def set_trainable(backbone: PreTrainedModel, p: Params) -> None:
    """Leaves trainable what p.tune says: the last blocks, LoRA adapters (added here), or everything.

    Never trained are the token embeddings, what p.frozen names, and logit_scale and logit_bias: a classifier gives the
    latter two no gradient, and DDP dies of that at its second step.
    """
    backbone.requires_grad_(p.tune == "full")
    if p.tune == "lora":
        _add_adapters(backbone, p)
    never = (*NEVER_TRAINED, *p.frozen)
    for name, parameter in backbone.named_parameters():
        if p.tune == "last" and _blocks_from_end(backbone, name) < p.last_blocks:
            parameter.requires_grad_(True)
        if name.startswith(never):
            parameter.requires_grad_(False)
    if missing := [part for part in p.frozen if not any(n.startswith(part) for n, _ in backbone.named_parameters())]:
        raise GoodsError(
            f"frozen names '{missing[0]}', but no part of the backbone begins so; such as vision_model.head"
        )


def _add_adapters(backbone: PreTrainedModel, p: Params) -> None:
    """Puts LoRA adapters (arXiv 2106.09685) into the layers p.lora_targets of the blocks of both towers."""
    from peft import LoraConfig, inject_adapter_in_model  # three seconds that only this mode pays

    # Blocks alone: the pooling head's attention has an out_proj, too, but never calls it.
    pattern = rf"{_BLOCK.pattern}(.*\.)?({'|'.join(map(re.escape, p.lora_targets))})"
    layers = [n for n, module in backbone.named_modules() if isinstance(module, nn.Linear) and _BLOCK.match(n)]
    if not any(re.fullmatch(pattern, name) for name in layers):
        own = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise GoodsError(f"lora_targets {', '.join(p.lora_targets)} match no layer of the backbone; "
                         f"its blocks have {', '.join(own)}")  # fmt: skip
    config = LoraConfig(r=p.lora_rank, lora_alpha=p.lora_alpha, lora_dropout=p.lora_dropout, target_modules=pattern)
    inject_adapter_in_model(config, backbone)


# A block of a dual encoder's tower, or of a text encoder by itself, as its parameters' names begin.
_BLOCK = re.compile(r"(?:(vision|text)_model\.)?(?:encoder\.|transformer\.)?layers?\.(\d+)\.")


def _blocks_from_end(backbone: PreTrainedModel, name: str) -> int:
    """How far before the tower's end a parameter stands: 0 in the last block and after it, blocks + 1 in embeddings."""
    config = backbone.config
    if tower := re.match("vision|text", name):
        config = getattr(config, f"{tower[0]}_config", config)
    blocks = getattr(config, "num_hidden_layers", 0)
    if "embeddings." in name:
        return blocks
    match = _BLOCK.match(name)
    return blocks - 1 - int(match[2]) if match else 0


def block_rates(backbone: PreTrainedModel, p: Params) -> dict[str, float]:
    """Learning rate of each trained parameter of the backbone: learning_rate times layer_decay a block from the end."""
    return {
        name: p.learning_rate * p.layer_decay ** _blocks_from_end(backbone, name)
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Keeps only each block's input for the backward pass, which computes the rest again (arXiv 1604.06174)."""
    # transformers 5.24 has a new name for it.
    enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def halve_frozen(model: nn.Module, precision: str) -> None:
    """Keeps the weights of frozen linear layers in 16 bits where autocast would cast them at every step anyway."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    for module in model.modules() if dtype else ():
        if type(module) is nn.Linear and not any(parameter.requires_grad for parameter in module.parameters()):
            module.to(dtype)


def save_trained(model: nn.Module, path: Path) -> None:
    """Saves what was trained, as safetensors: the backbone's parameters in fp16, the heads as they are."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {n: t for n, t in model.state_dict().items() if n in trained or not n.startswith("encoder.")}
    halved = {n: t.half() for n, t in state.items() if n.startswith("encoder.")}
    state |= {n: t for n, t in halved.items() if t.isfinite().all()}  # a weight too large for fp16 stays as it is
    state = {n: t.contiguous().cpu() for n, t in state.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def load_trained(model: nn.Module, path: Path) -> None:
    """Loads what save_trained wrote into a model built the same way; raises GoodsError when it doesn't fit."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # a torn file, or tensors of other shapes
        raise GoodsError(f"the weights {path} can't be loaded: {_first_line(error)}") from error
    if unexpected or trained & set(missing):
        raise GoodsError(f"the weights {path} belong to another model or to other parameters")


# ---------------------------------------------------------------------------------------------------------------------
# 9 Embeddings cache
# ---------------------------------------------------------------------------------------------------------------------


class Embedder:
    """Embeddings of photos and texts from the frozen backbone, each computed once and kept by content.

    The cache (outputs_dir/cache/embeddings) knows a backbone by the hash of its files, a photo by the hash of its
    bytes and a text by itself, so it serves all folds, runs and notebooks. The backbone is loaded only when something
    is missing.
    """

    def __init__(self, p: Params) -> None:
        self.p = p
        self.folder = resolve(p.outputs_dir) / "cache" / "embeddings" / _model_hash(resolve(p.model_name))

    @cached_property
    def encoder(self) -> DualEncoder:
        """The frozen encoder, on the device that is there."""
        encoder = DualEncoder(load_backbone(self.p.model_name), load_processor(self.p.model_name), self.p)
        halve_frozen(encoder.requires_grad_(False), pick_precision(self.p.mixed_precision))
        return encoder.to(pick_device()).eval()

    def photos(self, images: Sequence[str], shas: Sequence[str]) -> Tensor:
        """(n, image_dim) embeddings of photos, given their paths and the hashes of their bytes ("" and "" for none)."""
        path_of = dict(zip(shas, images, strict=True))

        def compute(some: list[str]) -> Iterator[Tensor]:
            dataset = PhotoDataset([path_of[sha] for sha in some], self.encoder.image_size)
            for batch in DataLoader(dataset, self.p.eval_batch_size, num_workers=self.p.num_workers):
                yield self.encoder.embed_images(batch["pixels"].to(pick_device()))

        return self._cached(list(shas), f"image-{self.p.image_size or 'own'}", compute)

    def texts(self, texts: Sequence[str], titles: Sequence[str]) -> Tensor:
        """(n, text_dim) embeddings of texts; the titles head their further windows."""
        p = self.p
        # Only windows make the title matter beside the text that begins with it.
        keys = [f"{title}\0{text}" if p.text_windows > 1 else text for title, text in zip(titles, texts, strict=True)]
        pair_of = dict(zip(keys, zip(titles, texts, strict=True), strict=True))

        def compute(some: list[str]) -> Iterator[Tensor]:
            titles, texts = zip(*(pair_of[key] for key in some), strict=True)
            input_ids = self.encoder.processor.tokenize(texts, titles, p.max_text_length, p.text_windows)
            for ids in input_ids.split(p.eval_batch_size):
                yield self.encoder.embed_texts(ids.to(pick_device()))

        kind = f"text-{p.max_text_length}" + (f"x{p.text_windows}" if p.text_windows > 1 else "")
        return self._cached(keys, kind, compute)

    def _cached(self, keys: list[str], kind: str, compute: Callable[[list[str]], Iterator[Tensor]]) -> Tensor:
        """One row per key, (n, dim); what the cache lacks is computed once a key, and saved chunk by chunk."""
        precision = pick_precision(self.p.mixed_precision)
        kind += "" if precision == "fp32" else f"-{precision}"  # else a run would depend on which ones went before it
        folder, unique = self.folder / kind, list(dict.fromkeys(keys))
        row_of, table = _read_cache(folder)
        if any(_hash(key) not in row_of for key in unique):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):  # folds side by side: one computes, the others wait
                row_of, _ = _read_cache(folder)
                missing = [key for key in unique if _hash(key) not in row_of]
                with progress(total=len(missing), desc=f"embedding {kind}", unit=" products", leave=False) as bar:
                    for start in range(0, len(missing), CACHE_CHUNK):
                        chunk = missing[start : start + CACHE_CHUNK]
                        self._write(folder, [_hash(key) for key in chunk], compute(chunk), bar)
            row_of, table = _read_cache(folder)
        return table[[row_of[_hash(key)] for key in keys]]

    @torch.inference_mode()
    def _write(self, folder: Path, names: list[str], batches: Iterator[Tensor], bar: tqdm) -> None:
        parts = []
        with autocast(self.p.mixed_precision):
            for batch in batches:
                parts.append(batch.float().cpu())
                bar.update(len(batch))
        with atomic_path(folder / f"{_hash(' '.join(names))}.safetensors") as temporary:
            save_file({"embeddings": torch.cat(parts)}, temporary, metadata={"names": " ".join(names)})


class TextEmbedder(Embedder):
    """Embeddings of texts from the encoder in p.extra_embeddings: mean pooled, of length 1; kept by content, too."""

    def __init__(self, p: Params) -> None:
        self.p = p
        name = _model_hash(resolve(p.extra_embeddings), photos=False)
        self.folder = resolve(p.outputs_dir) / "cache" / "embeddings" / name

    @cached_property
    def encoder(self) -> TextEncoder:
        """The frozen text encoder, on the device that is there."""
        return TextEncoder(self.p.extra_embeddings, EXTRA_MAX_LENGTH).requires_grad_(False).to(pick_device()).eval()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, dim) embeddings of texts."""

        def compute(some: list[str]) -> Iterator[Tensor]:
            tokens = self.encoder.tokenize(some)
            dataset = TokensDataset(tokens, self.encoder.tokenizer.pad_token_id)
            order = dataset.lengths.argsort(stable=True)  # like with like: less padding
            parts = [
                self.encoder(dataset.__getitems__(rows.tolist())["input_ids"].to(pick_device()))
                for rows in order.split(self.p.eval_batch_size)
            ]
            yield nn.functional.normalize(torch.cat(parts).float(), dim=-1)[order.argsort().to(pick_device())]

        return self._cached(list(texts), f"mean-{EXTRA_MAX_LENGTH}", compute)


def _read_cache(folder: Path) -> tuple[dict[str, int], Tensor]:
    """Row of each name, and the embeddings (n, dim), of all files of a cache folder."""
    names: list[str] = []
    parts = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names += file.metadata()["names"].split()
                parts.append(file.get_tensor("embeddings"))
        except Exception:  # not of our making: files are written whole
            raise GoodsError(f"the embeddings cache {path} is damaged; delete it, and it is computed again") from None
    return {name: row for row, name in enumerate(names)}, torch.cat(parts) if parts else torch.empty(0, 0)


def pick_device() -> torch.device:
    """The accelerator there is (CUDA, MPS ...), else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def pick_precision(mixed_precision: str) -> str:
    """fp32, fp16 or bf16; auto is bf16 on a GPU that has it in hardware, fp16 on another GPU, fp32 elsewhere.

    Raises GoodsError for fp16 on a CPU, where Accelerate would train in fp32 without a word.
    """
    if mixed_precision == "fp16" and pick_device().type == "cpu":
        raise GoodsError("mixed_precision fp16 needs a GPU, and there is none; take auto, which is fp32 here, or bf16")
    if mixed_precision != "auto":
        return mixed_precision
    if not torch.cuda.is_available():
        return "fp32"
    # A T4 says yes to the plain question, by emulation.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(mixed_precision: str) -> AbstractContextManager:
    """The autocast context of that precision on the device that is there."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(pick_precision(mixed_precision))
    return torch.autocast(pick_device().type, dtype=dtype) if dtype else nullcontext()


def _model_hash(folder: Path, photos: bool = True) -> str:
    """Hash of the contents of a model directory's files that matter to embeddings."""
    _check_model_dir(folder, photos)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".model"):
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
