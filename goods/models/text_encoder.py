"""Text encoders from a local directory: BERT, DeBERTa, XLM-R, a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from goods.errors import GoodsError
from goods.files import resolve
from goods.models.backbone import check_model_dir, first_line

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel


class TextEncoder(nn.Module):
    """A text encoder (BERT, DeBERTa, XLM-R, a sentence-transformers model): the mean of its last hidden states."""

    def __init__(self, model_name: str, max_length: int) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(model_name)
        self.backbone = load_text_backbone(model_name)
        self.max_length = max_length

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut to max_length, not padded."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids, padded at the end, to (batch, dim)."""
        mask = input_ids != self.tokenizer.pad_token_id
        mask[:, 0] = True  # an empty text of a tokenizer without special tokens is nothing but padding
        states = self.backbone(
            input_ids=input_ids, attention_mask=mask.long()
        ).last_hidden_state  # (batch, length, dim)
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def load_text_backbone(model_name: str) -> PreTrainedModel:
    """The text encoder of a local directory, in fp32; safetensors only. Raises GoodsError when it isn't one."""
    folder = resolve(model_name)
    check_model_dir(folder, photos=False)
    try:
        backbone, loading = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:
        raise GoodsError(f"the model in {folder} can't be loaded: {first_line(error)}") from error
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):  # unused
        raise GoodsError(f"the weights in {folder} lack {len(missing)} of its tensors, such as {missing[0]}")
    if hasattr(backbone, "get_image_features") or getattr(backbone.config, "is_encoder_decoder", False):
        raise GoodsError(f"{folder} holds a {type(backbone).__name__}; a text encoder such as BERT is needed")
    return backbone


def load_tokenizer(model_name: str) -> Any:
    """The tokenizer of a local directory; raises GoodsError when it can't be loaded or can't pad."""
    folder = resolve(model_name)
    check_model_dir(folder, photos=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise GoodsError(f"the tokenizer in {folder} can't be loaded: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        raise GoodsError(f"the tokenizer in {folder} has no padding token; take an encoder, such as BERT or DeBERTa")
    return tokenizer
