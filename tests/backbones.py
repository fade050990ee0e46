"""Photos, encoders and classifiers for tests, and ways to spoil a model's directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PretrainedConfig,
    ResNetConfig,
    ViTConfig,
)

from goods.files import write_text
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


_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2]}
PIXELS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
IMAGE_ENCODERS: dict[str, Callable[[], PretrainedConfig]] = {
    "vit": lambda: ViTConfig(**_TRANSFORMER, image_size=32, patch_size=8),
    "convnext": lambda: ConvNextConfig(**_STAGES, num_stages=2, image_size=32),
    "dinov2": lambda: Dinov2Config(**_TRANSFORMER, image_size=56, patch_size=8),
    "dinov3": lambda: DINOv3ViTConfig(**_TRANSFORMER, image_size=32, patch_size=8),
    "resnet": lambda: ResNetConfig(**_STAGES, embedding_size=8),
}


def image_encoder_dir(folder: Path, name: str, drop: str = "none of them", **said: Any) -> Path:
    """A miniature image encoder of 32 pixels, without the tensors whose names begin with `drop`.

    `said`: more of its preprocessor_config.json.
    """
    torch.manual_seed(0)
    model = AutoModel.from_config(IMAGE_ENCODERS[name]())
    kept = {n: t.contiguous() for n, t in model.state_dict().items() if not n.startswith(drop)}
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    processor = PIXELS | {"do_center_crop": True, "size": {"shortest_edge": 36}, "crop_size": 32} | said
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def classifier(p: Params) -> GoodsClassifier:
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    encoder = DualEncoder(backbone, load_processor(p.model_name), p)
    width = backbone.config.vision_config.hidden_size
    return GoodsClassifier(encoder, make_heads({"image": torch.randn(9, width), "text": torch.randn(9, width)}, p))


# Text encoders -------------------------------------------------------------------------------------------------------


def say_how(folder: Path, pooling: dict[str, Any], *more: str, settings: Any = None, config: Any = None) -> Path:
    """Adds sentence-transformers' files to a text encoder's directory: pooling, the modules `more` behind it, ..."""
    modules = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{k}_{name}" for k, name in enumerate(modules[1:], 1))]
    entries = [{"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{name}"}
               for k, (name, path) in enumerate(zip(modules, paths, strict=True))]  # fmt: skip
    files = {"modules.json": entries, f"{paths[1]}/config.json": pooling, "sentence_bert_config.json": settings,
             "config_sentence_transformers.json": config}  # fmt: skip
    for name, value in files.items():
        if value is not None:
            write_text(folder / name, value if isinstance(value, str) else json.dumps(value))
    return folder


END = "<|endoftext|>"


def make_decoder(folder: Path, texts: list[str], padding_side: str = "left") -> Path:
    """A miniature Qwen3 whose texts end with the token that it is padded with, as Qwen3-Embedding's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    tokenizer, letters = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[END], initial_alphabet=letters)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=END, eos_token=END, padding_side=padding_side, model_max_length=131072
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
                         max_position_embeddings=512)  # fmt: skip
    Qwen3Model(config).save_pretrained(folder)
    return folder
