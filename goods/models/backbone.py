"""Dual encoders for photo and text from a local directory: SigLIP, SigLIP 2 FixRes, CLIP."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from goods.errors import GoodsError
from goods.files import resolve
from goods.params import Params

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork of a DataLoader


@functools.cache
def quiet_transformers() -> ModuleType:
    """transformers without its bars and hints. Imported where a model is loaded: other steps start .7 s sooner."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


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
        texts, titles = _lower(texts), _lower(titles)
        rows = [[t] for t in texts] if windows == 1 else windows_of(self.tokenizer, texts, titles, max_length, windows)
        flat = [window for row in rows for window in row]
        ids = self.tokenizer(_lower(flat), padding="max_length", truncation=True, max_length=max_length)["input_ids"]
        full = torch.full((len(rows), windows, max_length), self.tokenizer.pad_token_id)
        place = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
        if place:
            row, window = torch.tensor(place).T
            full[row, window] = torch.tensor(ids)
        return full

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the end token included, nothing cut."""
        return [len(ids) for ids in self.tokenizer(_lower(texts))["input_ids"]]


def windows_of(
    tokenizer: Any, texts: Sequence[str], titles: Sequence[str], max_length: int, windows: int
) -> list[list[str]]:
    """Of each product its text, and where that is longer than max_length tokens, windows of what is left of it.

    Each of those begins with the title; there are `windows` in all at most.
    """
    tokens = tokenizer([*texts, *titles], add_special_tokens=False)["input_ids"]
    room = max_length - 2  # begin and end tokens, where the tokenizer has them
    rows = []
    for text, whole, title in zip(texts, tokens[: len(texts)], tokens[len(texts) :], strict=True):
        title = title[: room // 2]
        rest, step = whole[room:], room - len(title)
        stretches = [rest[at : at + step] for at in range(0, len(rest), step)][: windows - 1]
        rows.append([text, *(tokenizer.decode([*title, *stretch]) for stretch in stretches)])
    return rows


def _lower(texts: Sequence[str]) -> list[str]:
    # SigLIP 1's and CLIP's tokenizers do it anyway; SigLIP 2's was trained so and doesn't.
    return [text.lower() for text in texts]


def load_processor(model_name: str) -> Processor:
    """The processor of a local directory; raises GoodsError when the directory is missing, incomplete or damaged."""
    folder = resolve(model_name)
    check_model_dir(folder)
    try:
        auto = quiet_transformers().AutoProcessor
        processor = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        photo = processor.image_processor
        return Processor(processor.tokenizer, tuple(photo.image_mean), tuple(photo.image_std))
    except Exception as error:  # each tokenizer library has its own
        why = f"the processor in {folder} can't be loaded: {first_line(error)}"
        raise GoodsError(f"{why}; {_model_advice(folder)}") from error


def load_backbone(model_name: str) -> PreTrainedModel:
    """The dual encoder of a local directory, in fp32; safetensors only, and no code from the directory.

    Raises GoodsError when the directory is missing, incomplete, damaged, or holds another kind of model.
    """
    folder = resolve(model_name)
    check_model_dir(folder)
    try:
        backbone, loading = quiet_transformers().AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # counted below: the error it gives names no tensor
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # config, safetensors and torch each have their own
        why = f"the model in {folder} can't be loaded: {first_line(error)}"
        raise GoodsError(f"{why}; {_model_advice(folder)}") from error
    if bad := sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}):
        raise GoodsError(f"the weights in {folder} don't fit its config.json: {len(bad)} are missing or of another "
                         f"shape, such as {bad[0]}; {_model_advice(folder)}")  # fmt: skip
    return check_is_dual(backbone, model_name)


def check_is_dual(backbone: PreTrainedModel, model_name: str) -> PreTrainedModel:
    """The backbone; raises GoodsError where it isn't of both photo and text."""
    if not hasattr(backbone, "get_image_features") or not hasattr(backbone, "get_text_features"):
        of_photos = backbone.main_input_name == "pixel_values"
        more = ", or a text encoder beside it in text_model_name" if of_photos else ""
        raise GoodsError(f"{resolve(model_name)} holds a {type(backbone).__name__}; a dual encoder such as SigLIP is "
                         f"needed{more}")  # fmt: skip
    return backbone


def check_model_dir(folder: Path, photos: bool = True, texts: bool = True) -> None:
    """Raises GoodsError when a model directory or a file it needs is missing.

    A text encoder needs nothing for `photos`, an image encoder nothing for `texts`.
    """
    if not folder.is_dir():
        raise GoodsError(f"there is no model directory {folder}; {_model_advice(folder)}")
    needs = {"config.json": ["config.json"], "weights (*.safetensors)": ["*.safetensors"]}
    if texts:
        needs["a tokenizer (tokenizer_config.json)"] = ["tokenizer_config.json"]
    if photos:
        needs["an image processor (preprocessor_config.json)"] = ["preprocessor_config.json", "processor_config.json"]
    missing = [what for what, patterns in needs.items() if not any(any(folder.glob(name)) for name in patterns)]
    if missing:
        lacking, hint = f"the model directory {folder} lacks {', '.join(missing)}", ""
        if len(missing) == 1 and "processor" in missing[0]:
            hint = "; a text encoder has none: it is for kind text, text_model_name or extra_embeddings"
        elif len(missing) == 1 and "tokenizer" in missing[0]:
            hint = "; an image encoder has none: it is for kind image, or for kind dual with text_model_name"
        raise GoodsError(f"{lacking}{hint}; {_model_advice(folder)}")


def _model_advice(folder: Path) -> str:
    if folder.name == "siglip-tiny":
        return "the embedded sample's model is made by: python -m goods.data.sample"
    if folder.name.startswith("siglip"):
        return f"download it with: hf download google/{folder.name} --local-dir models/{folder.name}"
    return ("download its directory from the Hugging Face hub (config.json, *.safetensors, tokenizer) into "
            f"models/{folder.name}")  # fmt: skip


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; the error's class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


@functools.cache
def say_once(sentence: str) -> None:
    """Says what a person should hear of an encoder, the first time that this process loads it."""
    print(sentence, flush=True)


class PhotoEncoder(nn.Module):
    """What encoders of photos share: photos squashed to a square and normalised; of several photos the mean."""

    image_size: int

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size), normalised, to (batch, image_dim); each kind of encoder has its own."""
        raise NotImplementedError

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size) uint8 to (batch, image_dim)."""
        return self.features((pixels.float() / 255 - self.mean) / self.std)

    def embed_several(self, pixels: Tensor, photos: Tensor) -> Tensor:
        """(batch, most, 3, size, size) uint8, of which each product has `photos`, (batch,), to means (batch, dim)."""
        own = torch.arange(pixels.shape[1], device=photos.device) < photos[:, None]  # (batch, most)
        parts = pixels[own].split(len(pixels))  # no more at once than where each product has one
        return mean_by_product(torch.cat([self.embed_images(part) for part in parts]), own.nonzero()[:, 0], photos)


class DualEncoder(PhotoEncoder):
    """A dual encoder fed as it was trained: photos as PhotoEncoder has them, texts without attention mask."""

    def __init__(self, backbone: PreTrainedModel, processor: Processor, p: Params) -> None:
        super().__init__(processor.mean, processor.std)
        self.backbone = backbone
        self.image_size = check_image_size(backbone, p.image_size)
        self.interpolate = self.image_size != backbone.config.vision_config.image_size
        self.max_text_length = check_text_length(backbone, p.max_text_length)
        self.processor = processor

    def features(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size), normalised, to (batch, image_dim)."""
        return _pooled(self.backbone.get_image_features(pixel_values=pixels, interpolate_pos_encoding=self.interpolate))

    def tokenize(self, texts: Sequence[str], titles: Sequence[str], windows: int = 1) -> Tensor:
        """(n, windows, max_text_length) token ids; see Processor.tokenize."""
        return self.processor.tokenize(texts, titles, self.max_text_length, windows)

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """(batch, windows, max_text_length) ids to (batch, text_dim), the mean over the windows that hold text."""
        used = input_ids[..., 0] != self.processor.tokenizer.pad_token_id  # (batch, windows)
        used[:, 0] = True  # an empty text is padding, too, and is encoded all the same
        # SigLIP never saw an attention mask, and CLIP's text tower is causal: none is given.
        embeddings = _pooled(self.backbone.get_text_features(input_ids=input_ids[used]))  # (used windows, text_dim)
        return mean_by_product(embeddings, used.nonzero()[:, 0], used.sum(1))


def mean_by_product(embeddings: Tensor, product: Tensor, parts: Tensor) -> Tensor:
    """(all parts, dim) embeddings, which product's each is, and how many each has, (n,), to their means, (n, dim)."""
    total = embeddings.new_zeros(len(parts), embeddings.shape[1]).index_add(0, product, embeddings)
    return total / parts[:, None]


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
