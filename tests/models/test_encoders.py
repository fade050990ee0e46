"""An image and a text encoder of two makers as the towers of one: tokens, masks, windows, and what is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from backbones import image_encoder_dir
from tokenizers.decoders import WordPiece
from torch.testing import assert_close

from goods.data.datasets import NO_TOKEN, collate
from goods.errors import GoodsError
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.embeddings import embed_products, embedders_of
from goods.models.encoders import SIDES, EncoderPair, load_encoder, token_counter
from goods.models.image_encoder import load_image_encoder
from goods.models.text_encoder import load_text_encoder
from goods.models.tuning import block_rates, fixed_sides, set_trainable
from goods.params import Params, load_params

TITLES = ["Blue cup", "", "Lamp"]
TEXTS = ["Blue cup made of stone", "", "Lamp " + "with a warm light " * 12]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_encoder_dir(tmp_path_factory.mktemp("models") / "vit-mini", "vit")


@pytest.fixture
def p(vit: Path, encoder_dir: Path, tmp_path: Path) -> Params:
    return load_params(None, model_name=str(vit), text_model_name=str(encoder_dir), outputs_dir=str(tmp_path),
                       image_size=None, max_text_length=16, text_windows=3, eval_batch_size=2)  # fmt: skip


@pytest.fixture
def pair(p: Params) -> EncoderPair:
    return load_encoder(p).eval()


def test_texts_go_to_the_text_encoder_as_they_are_each_with_its_mask(pair: EncoderPair, encoder_dir: Path) -> None:
    alone = load_text_encoder(str(encoder_dir), 16).eval()
    ids = pair.tokenize(TEXTS, TITLES)
    assert ids.shape == (3, 1, 16) and (ids[1, 0] != NO_TOKEN).sum() == 2  # begin and end of nothing
    with torch.no_grad():
        found = pair.embed_texts(ids)
        for row, text in enumerate(TEXTS):
            assert_close(found[[row]], alone(torch.tensor(alone.tokenize([text]))), rtol=0, atol=1e-5)
    pair.text.tokenizer.backend_tokenizer.normalizer = None  # which makes lower case by itself here
    assert not torch.equal(pair.tokenize(["Blue"], [""]), pair.tokenize(["blue"], [""]))


def test_a_long_text_is_the_mean_of_its_windows(pair: EncoderPair) -> None:
    pair.text.tokenizer.backend_tokenizer.decoder = WordPiece()  # which each BERT's has
    ids = pair.tokenize(TEXTS, TITLES, 3)
    assert ids.shape == (3, 3, 16) and (ids[:, :, 0] != NO_TOKEN).sum(1).tolist() == [1, 1, 3]
    with torch.no_grad():
        found, windows = pair.embed_texts(ids), pair.text(ids[2])
    assert_close(found[2], windows.mean(0), rtol=0, atol=1e-5)
    title = pair.text.tokenizer("Lamp", add_special_tokens=False)["input_ids"]
    assert all(window[1 : 1 + len(title)].tolist() == title for window in ids[2])


def test_frozen_embeddings_are_those_of_the_pair(p: Params, pair: EncoderPair) -> None:
    embedders = embedders_of(p)
    ids = ["a", "b", "c"]
    kept = embedders["text"].texts(TEXTS, TITLES, ids)
    with torch.no_grad():
        assert_close(kept, pair.embed_texts(pair.tokenize(TEXTS, TITLES, 3)), rtol=0, atol=1e-5)
    assert torch.equal(embedders_of(p)["text"].texts(TEXTS, TITLES, ids), kept)  # from the cache
    assert_close(embedders["text"].pass_texts(TEXTS, TITLES, ids), kept, rtol=0, atol=1e-5)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert_close(embedders["image"].pass_photos([pixels], ids), pair.embed_images(pixels), rtol=0, atol=1e-5)


def test_no_batch_is_longer_than_its_texts(pair: EncoderPair) -> None:
    ids = pair.tokenize(TEXTS, TITLES, 3)
    batch = collate([{"input_ids": row} for row in ids[:2]])
    assert batch["input_ids"].shape == (2, 3, int((ids[0, 0] != NO_TOKEN).sum()))
    with torch.no_grad():
        assert_close(pair.embed_texts(batch["input_ids"]), pair.embed_texts(ids)[:2], rtol=0, atol=1e-5)
    assert collate([{"input_ids": torch.full((1, 4), NO_TOKEN)}])["input_ids"].shape == (1, 1, 1)


def trained(pair: EncoderPair, p: Params, **given: object) -> set[str]:
    set_trainable(pair.backbone, p.model_copy(update=given))
    return {name for name, parameter in pair.backbone.named_parameters() if parameter.requires_grad}


def towers(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_both_towers_are_tuned(pair: EncoderPair, p: Params) -> None:
    last = trained(pair, p, tune="last", last_blocks=1)
    assert towers(last) == {"vision_model", "text_model"} and not any(".0." in name for name in last)
    full = trained(pair, p, tune="full")
    assert towers(full) == {"vision_model", "text_model"}
    assert not any("word_embeddings" in n or n.startswith("text_model.backbone.pooler") for n in full)
    assert any(name.startswith("vision_model.backbone.pooler") for name in full)  # ViT's, which is used
    rates = block_rates(pair.backbone, p.model_copy(update={"learning_rate": 1.0, "layer_decay": 0.5}))
    assert {tower: {rate for n, rate in rates.items() if n.startswith(tower)} for tower in towers(full)} == {
        "vision_model": {1.0, 0.5, 0.25}, "text_model": {1.0, 0.5, 0.25}}  # fmt: skip
    assert towers(trained(pair, p, tune="full", frozen=("text_model",))) == {"vision_model"}


def test_each_tower_gets_adapters_unless_it_is_frozen(p: Params, tmp_path: Path) -> None:
    p = p.model_copy(update={"model_name": str(image_encoder_dir(tmp_path / "dino", "dinov3"))})
    both = trained(load_encoder(p), p, tune="lora", lora_targets=("q_proj", "query"))
    assert towers(both) == {"vision_model", "text_model"} and all(".lora_" in name for name in both)
    with pytest.raises(GoodsError, match=r"lora_targets query match no layer of the vision_model; its .* q_proj"):
        trained(load_encoder(p), p, tune="lora", lora_targets=("query",))
    alone = trained(load_encoder(p), p, tune="lora", lora_targets=("query",), frozen=("vision_model",))
    assert towers(alone) == {"text_model"}
    with pytest.raises(GoodsError, match="frozen leaves no layer for the adapters of tune lora"):
        trained(
            load_encoder(p), p, tune="lora", lora_targets=("query", "q_proj"), frozen=("vision_model", "text_model")
        )
    own = load_encoder(p)
    set_trainable(own.backbone, p.model_copy(update={"tune": "lora", "lora_targets": ("query", "q_proj"),
                                                     "frozen": ("vision_model",)}))  # fmt: skip
    assert towers({name for name, _ in own.backbone.named_parameters() if ".lora_" in name}) == {"text_model"}


def test_a_side_is_fixed_where_nothing_that_reads_it_is_trained(p: Params, pair: EncoderPair) -> None:
    def fixed(encoder: Any, sides: tuple[str, ...] = SIDES, **given: object) -> tuple[str, ...]:
        own = p.model_copy(update=given)
        set_trainable(encoder.backbone, own)
        return fixed_sides(encoder.backbone, own, sides)

    assert fixed(pair, tune="full") == fixed(pair, tune="last") == ()
    locked = {"tune": "full", "frozen": ("vision_model",)}
    assert fixed(pair, **locked) == ("image",)
    assert fixed(pair, **locked, augment_flip=0.5) == fixed(pair, **locked, test_time_flip=True) == ()
    assert fixed(pair, tune="last", frozen=("text_model",), augment_flip=0.5) == ("text",)
    assert fixed(pair, tune="full", frozen=("vision_model.backbone.embeddings",)) == ()
    assert fixed(pair, tune="full", frozen=("vision_model", "text_model")) == SIDES
    assert fixed(load_image_encoder(p.model_name, None), ("image",), tune="full") == ()


def test_clip_reads_photos_with_its_projection_too(p: Params, clip: Path) -> None:
    encoder = load_encoder(p.model_copy(update={"model_name": str(clip), "text_model_name": None}))
    for frozen, expected in ((("vision_model",), ()), (("vision_model", "visual_projection"), ("image",))):
        own = p.model_copy(update={"tune": "full", "frozen": frozen})
        set_trainable(encoder.backbone, own)
        assert fixed_sides(encoder.backbone, own, SIDES) == expected


def test_parameters_that_do_not_fit(p: Params, encoder_dir: Path, vit: Path) -> None:
    with pytest.raises(GoodsError, match="max_text_length 400 is more than the 300 tokens the text encoder can read"):
        load_encoder(p.model_copy(update={"max_text_length": 400}))
    with pytest.raises(GoodsError, match=r"lacks a tokenizer .* an image encoder has none"):
        load_encoder(p.model_copy(update={"text_model_name": str(vit)}))
    with pytest.raises(GoodsError, match=r"lacks an image processor .* a text encoder has none"):
        load_encoder(p.model_copy(update={"model_name": str(encoder_dir)}))
    with pytest.raises(GoodsError, match=r"lacks a tokenizer .* for kind dual with text_model_name"):
        load_encoder(p.model_copy(update={"text_model_name": None}))
    with pytest.raises(GoodsError, match=r"frozen names 'vision_tower', but .* one that does is vision_model.backbone"):
        trained(load_encoder(p), p, tune="full", frozen=("vision_tower",))


def test_tokens_are_counted_as_the_text_encoder_reads_them(p: Params, encoder_dir: Path, sample) -> None:
    tokenizer = load_text_encoder(str(encoder_dir)).tokenizer
    assert token_counter(p)(TEXTS) == [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    dual = p.model_copy(update={"text_model_name": None, "model_name": str(sample.model)})
    assert token_counter(dual)([""]) == [1]


def test_a_product_is_embedded_side_by_side(p: Params, sample) -> None:
    table = pd.DataFrame({"id": ["a"], "title": [""], "text": ["a cup"], "image": [""], "sha": [""]})
    assert set(embed_products(p, table)) == {"image", "text"}
    assert set(embed_products(p.model_copy(update={"text_model_name": None}), table, ("image",))) == {"image"}


def test_a_dual_encoder_with_another_ones_tokenizer_is_refused(sample, encoder_dir, tmp_path):
    folder = Path(shutil.copytree(sample.model, tmp_path / "mixed"))
    for file in encoder_dir.glob("token*"):
        shutil.copy(file, folder)
    known, made = load_backbone(str(sample.model)).config.text_config.vocab_size, 800
    assert known < made
    p = load_params(model_name=str(folder), image_size=64)
    with pytest.raises(GoodsError, match=rf"in .*mixed doesn't fit its model, which knows {known} tokens: it has 80"):
        load_encoder(p)
    encoder = DualEncoder(load_backbone(p.model_name), load_processor(p.model_name), p)
    with pytest.raises(GoodsError, match=r"doesn't fit its model, .*: it made \d+ of a text"):
        encoder.tokenize(["a lamp " * 40, "zebra"], ["", ""])
