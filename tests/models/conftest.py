"""Backbones that tests share: the sample's, a copy to spoil, a miniature CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import encoder_of
from conftest import Sample
from transformers import CLIPConfig, CLIPModel

from goods.models.backbone import DualEncoder
from goods.params import Params, load_params


@pytest.fixture(scope="session")
def encoder(sample: Sample) -> DualEncoder:
    return encoder_of(sample.model)


@pytest.fixture
def model_copy(sample: Sample, tmp_path: Path) -> Path:
    """The tiny SigLIP's directory, to be spoilt."""
    return Path(shutil.copytree(sample.model, tmp_path / "some-siglip"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature CLIP directory: 77 tokens, 32 pixels, letters for a vocabulary, embeddings of 24 numbers."""
    folder = tmp_path_factory.mktemp("models") / "clip-mini"
    folder.mkdir()
    letters = [".", "!", *map(chr, range(ord("a"), ord("z") + 1))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    begin, end = len(vocabulary) - 2, len(vocabulary) - 1
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    files = {
        "vocab.json": {token: i for i, token in enumerate(vocabulary)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", **special},
        "preprocessor_config.json": {
            **{"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor", "resample": 3},
            **{"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "size": {"shortest_edge": 32}},
            **{"do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": end + 1, "max_position_embeddings": 77, "bos_token_id": begin, "eos_token_id": end}
    vision = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=tower | text | {"pad_token_id": end}, vision_config=tower | vision)
    config.projection_dim = 24
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def p(mini: dict[str, Any], tmp_path: Path) -> Params:
    return load_params(**mini | {"eval_batch_size": 4}, outputs_dir=str(tmp_path / "outputs"))
