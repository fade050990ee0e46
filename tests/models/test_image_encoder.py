"""Image encoders by themselves: what they are fed, how they are pooled, what of them is trained, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import PIXELS, encoder_of, image_encoder_dir
from conftest import Sample
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, ViTMAEConfig, ViTMAEModel

from goods.errors import GoodsError
from goods.models.image_encoder import ImageEncoder, load_image_encoder
from goods.models.text_encoder import load_text_encoder
from goods.models.tuning import block_rates, checkpoint_activations, set_trainable
from goods.params import Params

PIXELS_OF_TWO = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).mul(37).remainder(256).to(torch.uint8)
LAST = {
    "vit": {"layers.1", "encoder.layer.1", "layernorm", "pooler.dense"},
    "convnext": {"encoder.stages.1.layers.1", "layernorm"},
    "dinov2": {"encoder.layer.1", "layernorm"},
    "dinov3": {"model.layer.1", "layer.1", "norm"},
}
names = pytest.mark.parametrize("name", LAST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a miniature image encoder, made once."""
    folder = tmp_path_factory.mktemp("models")
    return lambda name: folder / name if (folder / name).is_dir() else image_encoder_dir(folder / name, name)


def embedded(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder.eval().embed_images(pixels)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(PIXELS[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return (pixels / 255 - mean) / std


@names
def test_an_embedding_is_what_the_encoder_pools_of_its_own_pixels(made, name: str, capsys) -> None:
    encoder = load_image_encoder(str(made(name)), None)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(made(name)).eval()(pixel_values=normalised(PIXELS_OF_TWO)).pooler_output
    assert (encoder.image_size, encoder.dim, encoder.pooling) == (32, 16, "pooler_output")
    torch.testing.assert_close(embedded(encoder, PIXELS_OF_TWO), expected, rtol=0, atol=1e-5)
    assert "pooling" not in capsys.readouterr().out


def test_a_pooler_that_was_never_trained_gives_way_to_the_class_token(tmp_path: Path, capsys) -> None:
    folder = image_encoder_dir(tmp_path / "my-vit", "vit", drop="pooler.")
    encoder = load_image_encoder(str(folder), None)
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(pixel_values=normalised(PIXELS_OF_TWO)).last_hidden_state
    torch.testing.assert_close(embedded(encoder, PIXELS_OF_TWO), states[:, 0], rtol=0, atol=1e-5)
    assert "my-vit has no trained pooling: a photo's embedding is its class token" in capsys.readouterr().out


@names
def test_another_size_is_taken_where_the_patches_fit(made, name: str) -> None:
    encoder = load_image_encoder(str(made(name)), 48)
    assert embedded(encoder, torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 16)
    with pytest.raises(GoodsError, match=r"image_size 50 is not a multiple of the patch of \d; take (48|52)"):
        load_image_encoder(str(made(name)), 50)


def test_a_size_that_the_encoder_cannot_take_is_refused(made) -> None:
    with pytest.raises(GoodsError, match=r"ConvNextModel can't take photos of 4 pixels: .*; take image_size null"):
        load_image_encoder(str(made("convnext")), 4)


def test_a_dual_encoders_image_tower_is_an_image_encoder(sample: Sample, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sample.model, tmp_path / "siglip"))
    weights = load_file(folder / "model.safetensors")
    alone = {name: tensor for name, tensor in weights.items() if not name.startswith("text_model")}
    save_file(alone, folder / "model.safetensors", metadata={"format": "pt"})
    for file in (*folder.glob("token*"), *folder.glob("spiece*")):
        file.unlink()  # neither the text tower nor the tokenizer is needed
    encoder, dual = load_image_encoder(str(folder), None), encoder_of(sample.model)
    assert encoder.image_size == dual.image_size
    pixels = torch.randint(0, 256, (2, 3, dual.image_size, dual.image_size), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval().embed_images(pixels), dual.embed_images(pixels), rtol=0, atol=1e-6)


@names
def test_last_trains_the_last_block_and_what_follows_it(made, name: str) -> None:
    tower = load_image_encoder(str(made(name)), None).backbone
    set_trainable(tower, Params(tune="last", last_blocks=1))
    trained = [n for n, parameter in tower.named_parameters() if parameter.requires_grad]
    assert trained and all(n.startswith(tuple(LAST[name])) for n in trained)


@names
def test_full_trains_all_that_takes_part_and_earlier_blocks_more_slowly(made, name: str) -> None:
    encoder = load_image_encoder(str(made(name)), None)
    p = Params(tune="full", learning_rate=1.0, layer_decay=0.5)
    set_trainable(encoder.backbone, p)
    encoder.train().embed_images(PIXELS_OF_TWO).square().sum().backward()
    trained = {n: parameter for n, parameter in encoder.backbone.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())  # else DDP ends at its second step
    rates = block_rates(encoder.backbone, p)
    blocks = 3 if name == "convnext" else 2  # in stages of one and two
    first, *_, last = trained
    assert rates[first] == 0.5 ** (blocks if first.startswith("embeddings") else blocks - 1) and rates[last] == 1
    assert set(rates.values()) == {0.5**k for k in range(blocks + 1)}


def test_batch_norms_keep_their_statistics(made) -> None:
    encoder = load_image_encoder(str(made("resnet")), None)
    before = {name: buffer.clone() for name, buffer in encoder.backbone.named_buffers()}
    encoder.train().embed_images(PIXELS_OF_TWO)
    assert before and all(torch.equal(before[name], buffer) for name, buffer in encoder.backbone.named_buffers())


def test_what_has_no_gradient_checkpointing_says_so(made) -> None:
    with pytest.raises(GoodsError, match="gradient_checkpointing is not for a ResNetModel; leave it false"):
        checkpoint_activations(load_image_encoder(str(made("resnet")), None).backbone)


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in names}))

    return spoil


def saying(**said: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | said))

    return spoil


def another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_channels": 1}))


def to_mae(folder: Path) -> None:
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTMAEModel(ViTMAEConfig(**tower, image_size=32, patch_size=8)).save_pretrained(folder)


SPOILT = {
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "lacks an image processor"),
    "torn processor": (
        lambda d: (d / "preprocessor_config.json").write_text("{"),
        "preprocessor_config.json is missing or damaged",
    ),
    "no mean": (without("image_mean"), "has no image_mean and image_std of three numbers; download it again"),
    "two numbers": (saying(image_std=[0.5, 0.5]), "has no image_mean and image_std of three numbers"),
    "nothing to divide by": (saying(image_std=0), "has an image_std of 0"),
    "blue first": (saying(do_flip_channel_order=True), "asks for photos in blue, green, red"),
    "hides patches": (to_mae, "holds a ViTMAEModel, which hides most of a photo at random"),
    "of another shape": (another_shape, "don't fit its config.json: .* such as embeddings.patch_embeddings"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"lacks weights \(\*.safetensors\)"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_directories_that_cannot_be_used_are_refused(made, tmp_path: Path, name: str) -> None:
    folder, (spoil, sentence) = Path(shutil.copytree(made("vit"), tmp_path / "some-vit")), SPOILT[name]
    spoil(folder)
    with pytest.raises(GoodsError, match=sentence):
        load_image_encoder(str(folder), None)


def test_a_text_encoder_is_no_image_encoder_nor_the_reverse(encoder_dir: Path, made, tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"lacks an image processor .*; a text encoder has none: it is for kind text"):
        load_image_encoder(str(encoder_dir), None)
    with pytest.raises(GoodsError, match=r"lacks a tokenizer .*; an image encoder has none: it is for kind image"):
        load_text_encoder(str(made("vit")))
    both = Path(shutil.copytree(encoder_dir, tmp_path / "both"))
    shutil.copyfile(made("vit") / "preprocessor_config.json", both / "preprocessor_config.json")
    with pytest.raises(GoodsError, match=r"both holds a BertModel; an image encoder such as ViT.* text_model_name"):
        load_image_encoder(str(both), None)
    shutil.copytree(made("vit"), both, dirs_exist_ok=True)  # with a tokenizer
    with pytest.raises(GoodsError, match=r"holds a ViTModel; a dual encoder .* text encoder beside it in text_model"):
        encoder_of(both)
