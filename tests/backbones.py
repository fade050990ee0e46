"""Photos, encoders and classifiers for tests, and ways to spoil a model's directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.heads import GoodsClassifier, make_heads
from goods.models.tuning import set_trainable
from goods.params import Params, load_params

TEXTS = ["Blue Ceramic Cup, hand-made!", "", "a lamp " * 60]  # ordinary, empty, far too long


def photo(path: Path, size: tuple[int, int] = (90, 50)) -> Path:
    """A photo of soft blotches, saved in the format of its ending."""
    blotches = np.random.default_rng(sum(size)).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def encoder_of(model: Path, **given: Any) -> DualEncoder:
    p = load_params(model_name=str(model), **({"image_size": None} | given))
    return DualEncoder(load_backbone(p.model_name), load_processor(p.model_name), p).eval()


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor], str], Any]) -> None:
    """Applies `change` to the tensors and the name of one of them."""
    weights = load_file(folder / "model.safetensors")
    change(weights, "text_model.encoder.layers.0.mlp.fc1.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def classifier(p: Params) -> GoodsClassifier:
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    encoder = DualEncoder(backbone, load_processor(p.model_name), p)
    width = backbone.config.vision_config.hidden_size
    return GoodsClassifier(encoder, make_heads({"image": torch.randn(9, width), "text": torch.randn(9, width)}, p))
