"""Dual encoders for photo and text from a local directory: SigLIP, SigLIP 2 FixRes, CLIP."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
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
    from transformers import PretrainedConfig, PreTrainedModel
FOREIGN = 0.01  # share of a model's vocabulary by which its tokenizer may know more words: some have a few for photos
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
        rows = [[text] for text in texts]
        if windows > 1:
            rows = windows_of(self.tokenizer, _lower(texts), _lower(titles), max_length, windows)
        flat = [window for row in rows for window in row]
        ids = self.tokenizer(_lower(flat), padding="max_length", truncation=True, max_length=max_length)["input_ids"]
        found = torch.tensor(ids, dtype=torch.int64).reshape(-1, max_length)
        return in_windows(found, list(map(len, rows)), windows, self.tokenizer.pad_token_id)

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


def in_windows(ids: Tensor, counts: Sequence[int], windows: int, empty: int) -> Tensor:
    """(n, windows, length) from the token ids of all windows, (all, length), of which each product has so many.

    The windows that a product doesn't have are `empty` throughout.
    """
    full = torch.full((len(counts), windows, ids.shape[1]), empty)
    full[torch.arange(windows) < torch.tensor(counts, dtype=torch.int64)[:, None]] = ids
    return full


def mean_of_windows(encode: Callable[[Tensor], Tensor], input_ids: Tensor, empty: int) -> Tensor:
    """(batch, dim) from (batch, windows, length) ids: the mean over the windows that hold text, encoded together."""
    used = input_ids[..., 0] != empty  # (batch, windows)
    used[:, 0] = True  # an empty text is encoded all the same
    return mean_by_product(encode(input_ids[used]), used.nonzero()[:, 0], used.sum(1))


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
    backbone, lacking = load_pretrained(folder)
    refuse_lacking(folder, lacking)
    return check_is_dual(backbone, model_name)


def load_pretrained(folder: Path, **how: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model of a directory, in fp32, and which of its tensors the files lack or have in another shape.

    safetensors only, and no code from the directory; `how` is handed to transformers. Raises GoodsError where it can't
    be loaded.
    """
    try:
        model, loading = quiet_transformers().AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # counted: the error it gives names no tensor
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **how,
        )
    except Exception as error:  # config, safetensors and torch each have their own
        why = f"the model in {folder} can't be loaded: {first_line(error)}"
        raise GoodsError(f"{why}; {_model_advice(folder)}") from error
    return model, {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}


def refuse_lacking(folder: Path, names: Collection[str]) -> None:
    """Raises GoodsError where the files of a model lack tensors of these names, or have them in another shape."""
    if names:
        raise GoodsError(f"the weights in {folder} don't fit its config.json: {len(names)} are missing or of another "
                         f"shape, such as {min(names)}; {_model_advice(folder)}")  # fmt: skip


def check_is_dual(backbone: PreTrainedModel, model_name: str) -> PreTrainedModel:
    """The backbone; raises GoodsError where it isn't of both photo and text."""
    if not hasattr(backbone, "get_image_features") or not hasattr(backbone, "get_text_features"):
        of_photos = backbone.main_input_name == "pixel_values"
        more = ", or a text encoder beside it in text_model_name" if of_photos else ""
        raise GoodsError(f"{resolve(model_name)} holds a {type(backbone).__name__}; a dual encoder such as SigLIP is "
                         f"needed{more}")  # fmt: skip
    return backbone


def check_tokenizer(folder: Path, tokenizer: Any, known: int) -> None:
    """Raises GoodsError where a tokenizer has more words than its model, which knows so many: they don't belong
    together."""
    words = tokenizer.get_vocab().values()
    if sum(word >= known for word in words) > FOREIGN * known:
        raise no_fit(folder, known, f"it has {len(words):,}")


def no_fit(folder: str | Path, known: int, what: str) -> GoodsError:
    """What to raise where a tokenizer makes words that its model doesn't know."""
    return GoodsError(f"the tokenizer in {folder} doesn't fit its model, which knows {known:,} tokens: {what}; "
                      "download both from the same place")  # fmt: skip


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


class PhotoEncoder(nn.Module, ABC):
    """What encoders of photos share: photos squashed to a square and normalised; of several photos the mean."""

    image_size: int

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size), normalised, to (batch, image_dim); each kind of encoder has its own."""

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
        self.image_size = check_image_size(backbone.config.vision_config, p.image_size)
        self.interpolate = self.image_size != backbone.config.vision_config.image_size
        self.max_text_length = check_text_length(backbone, p.max_text_length)
        self.processor = processor

    def features(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size), normalised, to (batch, image_dim)."""
        return _pooled(self.backbone.get_image_features(pixel_values=pixels, interpolate_pos_encoding=self.interpolate))

    def tokenize(self, texts: Sequence[str], titles: Sequence[str], windows: int = 1) -> Tensor:
        """(n, windows, max_text_length) token ids; see Processor.tokenize."""
        ids = self.processor.tokenize(texts, titles, self.max_text_length, windows)
        known = self.backbone.config.text_config.vocab_size
        if ids.numel() and (largest := int(ids.max())) >= known:
            raise no_fit(self.processor.tokenizer.name_or_path, known, f"it made {largest} of a text")
        return ids

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """(batch, windows, max_text_length) ids to (batch, text_dim), the mean over the windows that hold text."""
        return mean_of_windows(self._of_windows, input_ids, self.processor.tokenizer.pad_token_id)

    def _of_windows(self, input_ids: Tensor) -> Tensor:
        # SigLIP never saw an attention mask, and CLIP's text tower is causal: none is given.
        return _pooled(self.backbone.get_text_features(input_ids=input_ids))  # (windows, text_dim)


def mean_by_product(embeddings: Tensor, product: Tensor, parts: Tensor) -> Tensor:
    """(all parts, dim) embeddings, which product's each is, and how many each has, (n,), to their means, (n, dim)."""
    total = embeddings.new_zeros(len(parts), embeddings.shape[1]).index_add(0, product, embeddings)
    return total / parts[:, None]


def _pooled(features: Any) -> Tensor:
    # transformers 5 wraps the embedding in an output object, 4 did not.
    return features if isinstance(features, Tensor) else features.pooler_output


def check_image_size(config: PretrainedConfig, image_size: int | None, usual: int | None = None) -> int:
    """The side of the square photo: image_size, or else what is `usual`, or what the encoder of this config was trained
    with; raises GoodsError where it isn't a multiple of the patch."""
    trained = side_of(getattr(config, "image_size", None))
    own = usual or trained
    step = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)  # Hiera's patches overlap
    size, patch = image_size or own, side_of(step) or 1
    if not size:
        raise GoodsError("the image encoder's files don't say how large its photos are; set image_size, such as 224")
    # 384 with patches of 14 is what so400m was trained with: the rest of 6 pixels is cut off.
    if size not in (own, trained) and size % patch:
        near = max(1, round(size / patch)) * patch
        raise GoodsError(f"image_size {size} is not a multiple of the patch of {patch}; take {near}")
    return size


def side_of(size: Any) -> int | None:
    """One number of an image size, however a config writes it."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return (size[0] if size else None) if isinstance(size, list | tuple) else size


def check_text_length(backbone: PreTrainedModel, max_text_length: int) -> int:
    """max_text_length, which may not exceed the backbone's positions."""
    most = backbone.config.text_config.max_position_embeddings
    if max_text_length > most:
        raise GoodsError(f"max_text_length {max_text_length} is more than the {most} tokens the backbone can read")
    return max_text_length
