"""Encoders as their config.json describes them, without weights: what a plan counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from goods.errors import GoodsError
from goods.files import resolve
from goods.models.backbone import DualEncoder, Processor, check_is_dual, quiet_transformers
from goods.models.encoders import Encoder, EncoderPair
from goods.models.image_encoder import ImageEncoder, PhotoSettings, check_takes_photos, image_config
from goods.models.text_encoder import TextEncoder, check_reads_texts
from goods.models.text_encoding import read_encoding
from goods.params import Params

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PretrainedConfig, PreTrainedModel

NO_TOKENIZER = SimpleNamespace(pad_token_id=0)


def read_config(model_name: str) -> PretrainedConfig:
    """The config.json of a local model directory; raises GoodsError when it is missing or unusable."""
    folder = resolve(model_name)
    if not (folder / "config.json").is_file():
        raise GoodsError(f"there is no {folder / 'config.json'}; a plan needs at least this file of the model")
    try:
        return quiet_transformers().AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, json and huggingface_hub each have their own
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> GoodsError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return GoodsError(f"{folder / 'config.json'} can't be used: {why}; download it again")


def empty_encoder(config: PretrainedConfig, p: Params, sides: tuple[str, ...]) -> Encoder:
    """As goods.models.encoders.load_encoder, without weights or tokenizers: what these say doesn't matter here.

    config: that of model_name.
    """
    if "text" in sides and not p.text_model_name:
        backbone = check_is_dual(empty_model(config, p.model_name), p.model_name)
        with torch.device("meta"):
            return DualEncoder(backbone, Processor(NO_TOKENIZER, (0.5,) * 3, (0.5,) * 3), p)
    tower = check_takes_photos(empty_model(image_config(config), p.model_name), p.model_name)
    with torch.device("meta"):
        image = ImageEncoder(tower, PhotoSettings(), p.image_size)
    return EncoderPair(image, empty_text_encoder(str(p.text_model_name))) if "text" in sides else image


def empty_text_encoder(model_name: str) -> TextEncoder:
    """As goods.models.text_encoder.load_text_encoder, without weights or tokenizer, its pooling as the mean."""
    backbone = check_reads_texts(empty_model(read_config(model_name), model_name), model_name)
    encoding = replace(read_encoding(resolve(model_name)), pooling="mean", after=())  # weigh nothing beside the tokens
    return TextEncoder(backbone.requires_grad_(False), NO_TOKENIZER, encoding)


def empty_model(config: PretrainedConfig, model_name: str) -> PreTrainedModel:
    """The model that a config describes, on torch's meta device; raises GoodsError where it describes none."""
    try:
        with torch.device("meta"):
            return quiet_transformers().AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:  # a config.json can be wrong in any way
        raise _unusable(resolve(model_name), error) from error
