"""The backbone: how photos and texts reach it, and which directories are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import TEXTS, change_weights, cut, encoder_of, photo
from conftest import Sample
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from goods.data.photos import load_photo
from goods.errors import GoodsError
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.heads import GoodsClassifier, make_heads
from goods.params import OUTPUTS, load_params


def given_pixels(encoder: DualEncoder, path: Path) -> np.ndarray:
    """What the image tower gets for a photo, (3, size, size)."""
    got = []
    hook = encoder.backbone.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: got.append(kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        encoder.embed_images(load_photo(str(path), encoder.image_size)[None])
    hook.remove()
    return got[0][0].numpy()


@pytest.mark.parametrize("size", [(90, 50), (45, 70), (64, 64)])
def test_pixels_are_those_of_the_image_processor(sample: Sample, encoder: DualEncoder, tmp_path: Path, size) -> None:
    path = photo(tmp_path / "photo.png", size)
    processor = AutoProcessor.from_pretrained(sample.model).image_processor
    expected = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    grey_levels = np.abs(given_pixels(encoder, path) - expected) * 127.5  # pixels go from -1 to 1
    assert grey_levels.max() < 2.01 and grey_levels.mean() < 0.25
    assert (grey_levels > 1.01).mean() < 1e-3  # torch and Pillow round differently between the two passes


def test_photos_are_squashed_even_where_the_processor_would_crop(clip: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "photo.png", (96, 32))
    squashed = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = ((squashed - [0.48, 0.46, 0.41]) / [0.27, 0.26, 0.28]).transpose(2, 0, 1)
    assert np.abs(given_pixels(encoder_of(clip, max_text_length=16), path) - expected).max() < 2.01 / 255 / 0.26


def test_texts_are_padded_to_the_full_length_and_never_masked(sample: Sample, encoder: DualEncoder) -> None:
    backbone, processor = AutoModel.from_pretrained(sample.model), AutoProcessor.from_pretrained(sample.model)
    given = processor(text=TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    ids = encoder.processor.tokenize(TEXTS, TEXTS, 64)
    assert torch.equal(ids[:, 0], given["input_ids"])
    mask = torch.zeros(3, 64, dtype=torch.long)
    for row, words in enumerate(processor.tokenizer(TEXTS)["input_ids"]):
        mask[row, : len(words)] = 1
    with torch.no_grad():
        found = encoder.embed_texts(ids)
        plain, masked = (
            backbone.get_text_features(input_ids=given["input_ids"], attention_mask=m).pooler_output
            for m in (None, mask)
        )
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    assert torch.cosine_similarity(found[:2], masked[:2]).max() < 0.999  # else the mask would not matter here


def test_texts_are_lower_case_for_a_tokenizer_that_leaves_them_be(model_copy: Path) -> None:
    config = json.loads((model_copy / "tokenizer_config.json").read_text())
    (model_copy / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    processor = load_processor(str(model_copy))
    upper, lower = ["Blue CUP"], ["blue cup"]
    assert processor.tokenizer(upper)["input_ids"] != processor.tokenizer(lower)["input_ids"]
    assert torch.equal(processor.tokenize(upper, upper, 8), processor.tokenize(lower, lower, 8))
    assert processor.count_tokens(upper) == processor.count_tokens(lower)


def test_tokens_are_counted_before_they_are_cut(encoder: DualEncoder) -> None:
    ordinary, empty, long = encoder.processor.count_tokens(TEXTS)
    assert empty == 1 and 5 < ordinary < 64 < long
    ids = encoder.processor.tokenize(TEXTS, TEXTS, 64)[:, 0]
    assert ((ids[0] == 1).nonzero()[0].item(), (ids[1] == 1).all().item()) == (ordinary - 1, True)


@pytest.mark.parametrize("size", [32, 96])
def test_another_image_size_interpolates_the_positions(encoder: DualEncoder, sample: Sample, size: int) -> None:
    other = encoder_of(sample.model, image_size=size)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = encoder.backbone.get_image_features(
            pixel_values=pixels / 127.5 - 1, interpolate_pos_encoding=True
        ).pooler_output
        torch.testing.assert_close(other.embed_images(pixels), expected, rtol=0, atol=1e-5)


def test_sizes_that_the_backbone_cannot_take(sample: Sample, clip: Path) -> None:
    with pytest.raises(GoodsError, match="image_size 70 is not a multiple of the patch of 8; take 72"):
        encoder_of(sample.model, image_size=70)
    with pytest.raises(GoodsError, match="max_text_length 65 is more than the 64 tokens the backbone can read"):
        encoder_of(sample.model, max_text_length=65)
    assert encoder_of(clip, max_text_length=77).image_size == 32


def test_a_clip_directory_goes_the_same_road(clip: Path, tmp_path: Path) -> None:
    encoder = encoder_of(clip, max_text_length=16)
    ids = encoder.processor.tokenize(["A lamp!", "more letters than there is room for", ""], [""] * 3, 16)
    end = ids.max()
    mask = (torch.arange(16) <= (ids[:, 0] == end).int().argmax(1, keepdim=True)).long()
    pixels = load_photo(str(photo(tmp_path / "photo.png")), 32)[None]
    with torch.no_grad():
        whole = encoder.backbone(
            input_ids=ids[:, 0], attention_mask=mask, pixel_values=(pixels / 255 - encoder.mean) / encoder.std
        )
        texts, images = encoder.embed_texts(ids), encoder.embed_images(pixels)
    torch.testing.assert_close(F.normalize(texts), whole.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(images), whole.image_embeds, rtol=0, atol=1e-5)

    p = load_params(model_name=str(clip), image_size=None, max_text_length=16, num_classes=3, hidden_dim=8)
    heads = make_heads({"image": images.repeat(4, 1), "text": texts.repeat(2, 1)[:4]}, p)
    logits = GoodsClassifier(encoder, heads)(pixels, ids[:1])
    assert {name: tuple(values.shape) for name, values in logits.items()} == dict.fromkeys(OUTPUTS, (1, 3))


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def to_pickle_beside_others(folder: Path) -> None:
    to_pickle(folder)
    save_file({"adapter": torch.zeros(2)}, folder / "adapter.safetensors", metadata={"format": "pt"})


def to_bert(folder: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=50, **tower)).save_pretrained(folder)


def lose_a_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{1 + k % 2:05}-of-00002.safetensors" for k, name in enumerate(weights)}
    first = {name: tensor for name, tensor in weights.items() if shards[name].startswith("model-00001")}
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


SPOILT = {
    "no folder": (shutil.rmtree, "there is no model directory .*some-siglip; download its directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "some-siglip lacks config.json; download it"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"lacks weights \(\*.safetensors\); download it"),
    "only a pickle": (to_pickle, r"lacks weights \(\*.safetensors\); download it"),
    "a pickle and others": (to_pickle_beside_others, "the model in .* can't be loaded: .*; download it"),
    "no processor": (lambda d: (d / "preprocessor_config.json").unlink(), "lacks an image processor"),
    "no tokenizer": (lambda d: (d / "tokenizer_config.json").unlink(), "lacks a tokenizer"),
    "no vocabulary": (lambda d: (d / "spiece.model").unlink(), "the processor in .* can't be loaded: .*; download it"),
    "half the vocabulary": (lambda d: cut(d / "spiece.model"), "the processor in .* can't be loaded: .*; download it"),
    "half a config": (lambda d: cut(d / "config.json"), "can't be loaded: .*config.json.*; download it"),
    "an unknown kind": (
        lambda d: (d / "config.json").write_text('{"model_type": "unheard-of"}'),
        r"the model in \S* can't be loaded: .{9,200}; download it",
    ),
    "half the weights": (lambda d: cut(d / "model.safetensors"), "the model in .* can't be loaded: .*; download it"),
    "a shard lost": (lose_a_shard, "can't be loaded: .*00002-of-00002.safetensors; download it"),
    "a tensor lost": (
        lambda d: change_weights(d, lambda weights, name: weights.pop(name)),
        "don't fit its config.json: 1 are missing .* such as text_model.encoder.layers.0.mlp.fc1.weight; download",
    ),
    "a tensor of another shape": (
        lambda d: change_weights(d, lambda weights, name: weights.update({name: weights[name][1:].clone()})),
        "don't fit its config.json: 1 are .* another shape, such as text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "one tower": (to_bert, "some-siglip holds a BertModel; a dual encoder such as SigLIP is needed"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_directories_that_hold_no_backbone(model_copy: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(model_copy)
    with pytest.raises(GoodsError, match=message) as caught:
        load_backbone(str(model_copy))
        load_processor(str(model_copy))
    assert "\n" not in str(caught.value)


def test_no_code_of_the_directory_is_run(model_copy: Path, tmp_path: Path) -> None:
    config = json.loads((model_copy / "config.json").read_text())
    auto = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model"}
    (model_copy / "config.json").write_text(json.dumps(config | {"model_type": "trap", "auto_map": auto}))
    (model_copy / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(GoodsError, match="can't be loaded"):
        load_backbone(str(model_copy))
    assert not (tmp_path / "sprung").exists()


def test_the_sample_model_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(GoodsError, match=r"is made by: python -m goods\.data\.sample$"):
        load_backbone(str(tmp_path / "siglip-tiny"))


SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 64, "fold": 1}  # fmt: skip


def test_windows_carry_the_title_and_go_through_the_whole_text(make):
    processor = load_processor(make().model_name)
    words = [f"w{i}" for i in range(40)]
    text = "red guitar. " + " ".join(f"guitar strings {w}" for w in words)
    short = "red guitar"
    ids = processor.tokenize([text, short, ""], ["red guitar", "red guitar", ""], 32, windows=3)
    assert ids.shape == (3, 3, 32)
    assert torch.equal(ids[:, 0], processor.tokenize([text, short, ""], ["", "", ""], 32)[:, 0])
    title = processor.tokenize(["red guitar"], [""], 32)[0, 0, :2]
    assert torch.equal(ids[0, 1, :2], title) and torch.equal(ids[0, 2, :2], title)
    assert not torch.equal(ids[0, 1], ids[0, 2])
    assert (ids[1, 1:] == processor.tokenizer.pad_token_id).all()


def test_a_texts_embedding_is_the_mean_over_its_windows(make):
    p = make(text_windows=3, max_text_length=32)
    processor = load_processor(p.model_name)
    encoder = DualEncoder(load_backbone(p.model_name), processor, p).eval()
    text = "red guitar " * 30
    ids = processor.tokenize([text, "red guitar"], ["red guitar"] * 2, 32, windows=3)
    with torch.no_grad():
        both = encoder.embed_texts(ids)
        each = torch.cat([encoder.embed_texts(ids[:1, i : i + 1]) for i in range(3)])
        torch.testing.assert_close(both[0], each.mean(0))
        torch.testing.assert_close(both[1:], encoder.embed_texts(ids[1:, :1]))
