"""Image encoders from a local directory: ViT, ConvNeXt, DINOv2, DINOv3, Swin, or the image tower of a dual encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from goods.errors import GoodsError
from goods.files import read_json, resolve
from goods.models.backbone import (
    PhotoEncoder,
    check_image_size,
    check_model_dir,
    first_line,
    load_pretrained,
    quiet_transformers,
    refuse_lacking,
    say_once,
    side_of,
)

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PretrainedConfig, PreTrainedModel

HIDES_PATCHES = ("vit_mae",)  # most of them, at random: no photo has an embedding of its own
UNPROJECTED = ("siglip", "siglip2")  # dual encoders that take a photo's embedding from the tower as it is


@dataclass(frozen=True)
class PhotoSettings:
    """How an image encoder wants its photos: mean and standard deviation of pixels in 0 ... 1, and their side."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    size: int | None = None


class ImageEncoder(PhotoEncoder):
    """An image encoder fed as it was trained, its embedding the one that it pools itself, else its class token or mean.

    pooling: "pooler_output", "class token" or "mean". dim: of an embedding.
    """

    def __init__(self, backbone: nn.Module, settings: PhotoSettings, image_size: int | None) -> None:
        super().__init__(settings.mean, settings.std)
        self.backbone = backbone
        self.image_size = check_image_size(self.tower.config, image_size, settings.size)
        takes = inspect.signature(self.tower.forward).parameters
        interpolate = self.image_size != side_of(getattr(self.tower.config, "image_size", None))
        self._how = {"interpolate_pos_encoding": True} if interpolate and "interpolate_pos_encoding" in takes else {}
        self.pooling, self.dim = self._try_out("image_size null, its own" if image_size else "another encoder")

    @property
    def tower(self) -> PreTrainedModel:
        """The image encoder itself."""
        return self.backbone

    def features(self, pixels: Tensor) -> Tensor:
        """(batch, 3, size, size), normalised, to (batch, dim)."""
        return _pooled(self.tower(pixel_values=pixels, **self._how), self.pooling)

    def train(self, mode: bool = True) -> ImageEncoder:
        """As torch's, but batch norms keep the statistics that they came with: no training saves others."""
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def _try_out(self, advice: str) -> tuple[str, int]:
        """How it pools, and dim, found with a photo that has a shape and no pixels; GoodsError where it can't take one.

        That costs no time: nothing is computed.
        """
        tower, side = self.tower, self.image_size
        state = {name: tensor.to("meta") for name, tensor in [*tower.named_parameters(), *tower.named_buffers()]}
        pixels = torch.empty(1, 3, side, side, device="meta")
        try:
            with torch.no_grad():
                found = torch.func.functional_call(tower, state, kwargs={"pixel_values": pixels, **self._how})
            pooling = _pooling_of(tower, found)
            return pooling, _pooled(found, pooling).shape[1]
        except Exception as error:  # each architecture has its own
            raise GoodsError(f"the image encoder {type(tower).__name__} can't take photos of {side} pixels: "
                             f"{first_line(error)}; take {advice}") from error  # fmt: skip


def _pooling_of(tower: nn.Module, found: Any) -> str:
    if getattr(found, "pooler_output", None) is not None:
        return "pooler_output"
    names = [name.rpartition(".")[2] for name, _ in tower.named_parameters()]
    return "class token" if {"cls_token", "class_embedding"} & set(names) else "mean"


def _pooled(found: Any, pooling: str) -> Tensor:
    if pooling == "pooler_output":
        return found.pooler_output.flatten(1)  # of convolutions (batch, dim, 1, 1)
    states = found.last_hidden_state  # (batch, tokens, dim), or (batch, dim, height, width)
    if states.ndim == 4:
        return states.mean((2, 3))
    return states[:, 0] if pooling == "class token" else states.mean(1)


# From files ----------------------------------------------------------------------------------------------------------


def load_image_encoder(model_name: str, image_size: int | None) -> ImageEncoder:
    """The image encoder of a local directory, in fp32; says how it pools where its checkpoint has no pooling."""
    encoder = ImageEncoder(load_image_backbone(model_name), read_photo_settings(model_name), image_size)
    if encoder.pooling != "pooler_output":
        say_once(f"{resolve(model_name)} has no trained pooling: a photo's embedding is its {encoder.pooling}")
    return encoder


def load_image_backbone(model_name: str) -> PreTrainedModel:
    """The image encoder of a local directory, of a dual encoder its image tower; safetensors only, no code from there.

    Raises GoodsError when the directory is missing, incomplete, damaged, or holds another kind of model.
    """
    folder = resolve(model_name)
    check_model_dir(folder, texts=False)
    try:
        config = quiet_transformers().AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, json and huggingface_hub each have their own
        raise GoodsError(f"the model in {folder} can't be loaded: {first_line(error)}") from error
    backbone, lacking = load_pretrained(folder, config=image_config(config))
    check_takes_photos(backbone, model_name)
    if unpooled := {name for name in lacking if name.startswith("pooler.")}:
        backbone.pooler = None  # of random weights
    refuse_lacking(folder, lacking - unpooled)
    return backbone


def image_config(config: PretrainedConfig) -> PretrainedConfig:
    """Of a dual encoder's config that of its image tower, else the config itself."""
    return getattr(config, "vision_config", None) or config


def tower_is_whole(model_name: str) -> bool:
    """Whether a dual encoder's image tower, by itself, gives what the whole encoder gives of a photo.

    Read from the directory's files; where they don't say it, it isn't.
    """
    folder = resolve(model_name)
    config = read_json(folder / "config.json", "download it again")
    own = side_of(config.get("vision_config", {}).get("image_size"))
    return config.get("model_type") in UNPROJECTED and own == read_photo_settings(model_name).size is not None


def check_takes_photos(backbone: PreTrainedModel, model_name: str) -> PreTrainedModel:
    """The backbone; raises GoodsError where it is no image encoder."""
    found = f"{resolve(model_name)} holds a {type(backbone).__name__}"
    if backbone.main_input_name != "pixel_values":
        raise GoodsError(f"{found}; an image encoder such as ViT, ConvNeXt or DINOv2 is needed. A text encoder goes "
                         "into text_model_name, or into model_name of kind text")  # fmt: skip
    if backbone.config.model_type in HIDES_PATCHES:
        raise GoodsError(f"{found}, which hides most of a photo at random; take another image encoder, such as DINOv2")
    return backbone


def read_photo_settings(model_name: str) -> PhotoSettings:
    """What a model directory says of the photos it wants, read as it stands there: no library need know its class.

    Raises GoodsError where it doesn't say how pixels are scaled.
    """
    folder = resolve(model_name)
    check_model_dir(folder, texts=False)
    path = folder / "preprocessor_config.json"
    path = path if path.is_file() else folder / "processor_config.json"  # transformers 5 keeps it among others there
    said = read_json(path, "download it again")
    said = said.get("image_processor", said)
    if said.get("do_flip_channel_order"):
        raise GoodsError(f"{path} asks for photos in blue, green, red, which nothing here gives; take another encoder")
    size = side_of(said.get("crop_size") if said.get("do_center_crop") else said.get("size"))
    if said.get("do_normalize") is False:
        return PhotoSettings((0.0,) * 3, (1.0,) * 3, size)
    try:
        mean, std = (_channels(said[name]) for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise GoodsError(f"{path} has no image_mean and image_std of three numbers; download it again") from error
    if not all(std):
        raise GoodsError(f"{path} has an image_std of 0; download it again")
    return PhotoSettings(mean, std, size)


def _channels(values: Any) -> tuple[float, ...]:
    """Three numbers, of one the same three times."""
    numbers = tuple(map(float, values)) if isinstance(values, list) else (float(values),) * 3
    if len(numbers) != 3:
        raise ValueError
    return numbers
