"""Texts compressed by a tiny local language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from language_model import write_goods

from goods.compress.job import compress_goods
from goods.compress.local import LocalLM
from goods.compress.params import DEFAULT_PROMPT, CompressParams
from goods.errors import GoodsError
from goods.params import read_params

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of two random layers with a byte-level tokenizer trained here, with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("lm") / "tiny-lm"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([DEFAULT_PROMPT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         initializer_range=0.5, bos_token_id=None, eos_token_id=fast.eos_token_id,
                         pad_token_id=fast.pad_token_id)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def local_params(tmp_path: Path, model: Path, **more: Any) -> CompressParams:
    (tmp_path / "goods").mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "outputs_dir": str(tmp_path / "out"), "data_dir": str(tmp_path / "goods"), "llm_model": str(model),
        "llm_max_tokens": 16, "llm_prompt": "Shorten.{classes}",
    }  # fmt: skip
    return read_params(fields | more, CompressParams)


def test_a_batch_answers_as_one_by_one(causal_lm: Path, tmp_path: Path) -> None:
    texts = ["a", "a red lamp", "a very long text of a lamp " * 8, "größer ✓ 猫", "x " * 100_000]
    lm = LocalLM(local_params(tmp_path, causal_lm), "Shorten.")
    together = lm.ask(texts)
    assert together == [lm.ask([text])[0] for text in texts]
    assert len({answer.text for answer in together}) == len(texts)
    assert [answer.prompt_tokens for answer in together] == [
        len(lm.tokenizer(lm._chat(lm._fit(t)))["input_ids"]) for t in texts
    ]
    assert together[-1].prompt_tokens + 16 <= 512


def test_a_local_job_and_its_resumption(causal_lm: Path, tmp_path: Path) -> None:
    train = [f"a lamp {k % 12} for the desk" for k in range(20)] + [""]
    write_goods(tmp_path / "goods", train, ["a chair"])
    p = local_params(tmp_path, causal_lm, eval_batch_size=5, llm_max_tokens=200)
    result = compress_goods(p)
    assert result.cost["texts answered now"] == 13 and result.cost["tokens written now"] > 0
    assert result.texts["compressed_status"].iloc[20] == "empty"
    moved = tmp_path / "moved"
    moved.symlink_to(causal_lm)
    again = compress_goods(p.model_copy(update={"llm_model": str(moved)}))
    assert again.cost["texts answered now"] == 0
    pd.testing.assert_frame_equal(again.texts, result.texts)


def test_max_hours_leave_the_rest_for_later(causal_lm: Path, tmp_path: Path) -> None:
    write_goods(tmp_path / "goods", ["one", "two"], ["three"])
    p = local_params(tmp_path, causal_lm, max_hours=1e-9)
    result = compress_goods(p)
    assert result.texts["compressed_status"].eq("failed: not asked, max_hours were over").all()
    assert compress_goods(p.model_copy(update={"max_hours": None})).cost["texts answered now"] == 3


def test_local_models_that_do_not_serve(causal_lm: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(GoodsError, match=r"is not a model directory with config\.json.*set llm to 'api'"):
        LocalLM(local_params(tmp_path, tmp_path), "Shorten.")
    with pytest.raises(GoodsError, match="leave no room for a text in the 512 tokens that tiny-lm reads"):
        LocalLM(local_params(tmp_path, causal_lm, llm_max_tokens=500), "Shorten.")
    bare = shutil.copytree(causal_lm, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(GoodsError, match="has no chat template; take an instruction-tuned model"):
        LocalLM(local_params(tmp_path, bare), "Shorten.")
    (bare / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    )
    assert LocalLM(local_params(tmp_path, bare), "Shorten.")._chat("lamp").startswith("<|start|>user Shorten.\n\nlamp")
    (bare / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(GoodsError, match=r"the causal LM in .*bare can't be loaded"):
        LocalLM(local_params(tmp_path, bare), "Shorten.")
