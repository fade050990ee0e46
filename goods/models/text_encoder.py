"""Text encoders from a local directory, used as their makers mean them: BERT, ModernBERT, BGE, Qwen3-Embedding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from goods.data.datasets import NO_TOKEN
from goods.errors import GoodsError
from goods.files import resolve
from goods.models.backbone import (
    check_model_dir,
    check_tokenizer,
    first_line,
    load_pretrained,
    no_fit,
    quiet_transformers,
    refuse_lacking,
    say_once,
)
from goods.models.text_encoding import POOLINGS, Dense, Encoding, Normalize, read_encoding

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel

PLAIN_LENGTH = 256  # tokens of a text that are read where no modules.json says more, as most encoders were trained
LONGEST = 2048  # tokens that are read at most where a sentence-transformers directory names no number of its own


class TextEncoder(nn.Module):
    """Texts to vectors: prompt, tokens, pooling, and what follows it.

    backbone, tokenizer: as they are loaded. encoding: how they are used; its pooling and max_length are known. after:
    the modules behind the pooling. `dim` is the length of a vector, `pooling` the name of the pooling.
    """

    def __init__(
        self, backbone: nn.Module, tokenizer: Any, encoding: Encoding, after: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.encoding = backbone, tokenizer, encoding
        self.after = nn.Sequential(*after)
        self.pooling, self.max_length = encoding.pooling, encoding.max_length
        self.dim = encoding.dim_of(backbone.config.hidden_size)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text behind the prompt, cut to max_length, not padded; of an empty one NO_TOKEN.

        Raises GoodsError where the model doesn't know one: the tokenizer is another's.
        """
        given = [self.encoding.prompt + text for text in texts]
        given = [text.lower() for text in given] if self.encoding.lower else given
        tokens = self.tokenizer(given, truncation=True, max_length=self.max_length)["input_ids"]
        known = self.backbone.get_input_embeddings().num_embeddings
        if foreign := [ids for ids in tokens if max(ids, default=0) >= known]:
            raise no_fit(self.tokenizer.name_or_path, known, f"it made {max(foreign[0])} of a text")
        return [ids or [NO_TOKEN] for ids in tokens]

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, length) ids, NO_TOKEN behind the end of each text, to (batch, dim)."""
        mask = input_ids != NO_TOKEN
        mask[:, 0] = True  # of a text without any token
        filled = input_ids.masked_fill(input_ids == NO_TOKEN, self.tokenizer.pad_token_id or 0)  # attended to by none
        states = self.backbone(input_ids=filled, attention_mask=mask.long()).last_hidden_state  # (batch, length, dim)
        pooled = pool(states.float(), self._pooled_tokens(mask), self.pooling)
        return self.after(pooled)[:, : self.dim]

    def _pooled_tokens(self, mask: Tensor) -> Tensor:
        """(batch, length) which tokens are pooled: without the prompt's where the encoding leaves these out."""
        if self.encoding.pools_prompt or not self.encoding.prompt:
            return mask
        without = mask.clone()
        without[:, : self._prompt_length] = False
        return torch.where(without.any(1, keepdim=True), without, mask)

    @functools.cached_property
    def _prompt_length(self) -> int:
        ids = self.tokenizer(self.encoding.prompt)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)  # the end token comes behind the text


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(batch, length, dim) states of tokens, of which mask, (batch, length), are the text's, to (batch, dim)."""
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    if pooling == "max":
        return states.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    at = place.masked_fill(~mask, -1).amax(1) if pooling == "lasttoken" else mask.int().argmax(1)  # (batch,)
    return states[torch.arange(len(states), device=states.device), at]


class UnitLength(nn.Module):
    """Brings vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, dim) to the same."""
        return nn.functional.normalize(vectors.float(), dim=-1)


# From files ----------------------------------------------------------------------------------------------------------


def load_text_encoder(model_name: str, max_length: int | None = None, normalize: bool = True) -> TextEncoder:
    """The text encoder of a local directory, as its maker means it.

    A sentence-transformers directory says so itself (read_encoding); of a plain one the architecture's habit counts:
    the last token where each sees only those before it, as in a decoder, else the mean; and length 1. Said aloud once.
    max_length: tokens that are read, in place of the directory's own number. normalize: whether vectors are brought to
    length 1 where that is so.

    Raises GoodsError when the directory is missing, incomplete, damaged, or holds something else.
    """
    folder = resolve(model_name)
    encoding = read_encoding(folder)
    tokenizer, backbone = load_tokenizer(model_name), load_text_backbone(model_name)
    _check_fit(folder, encoding, tokenizer, backbone)
    if encoding.pooling is None:
        encoding = _by_habit(folder, encoding, backbone)
    for sentence in encoding.said:
        say_once(sentence)
    longest = max_length or encoding.max_length or min(tokenizer.model_max_length, LONGEST)
    if (positions := getattr(backbone.config, "max_position_embeddings", 0)) > 0:
        longest = min(longest, positions)
    steps = [step for step in encoding.after if normalize or not isinstance(step, Normalize)]
    return TextEncoder(backbone, tokenizer, replace(encoding, max_length=longest), [_module(step) for step in steps])


def with_max_length(encoder: TextEncoder, max_length: int) -> TextEncoder:
    """The same encoder, of the same weights, reading another number of tokens."""
    return TextEncoder(encoder.backbone, encoder.tokenizer, replace(encoder.encoding, max_length=max_length),
                       list(encoder.after))  # fmt: skip


def _by_habit(folder: Path, encoding: Encoding, backbone: nn.Module) -> Encoding:
    """What a plain directory leaves open, by its architecture."""
    causal = sees_only_before(backbone)
    pooling = "lasttoken" if causal else "mean"
    said = (f"{folder} has no modules.json that says how its tokens become one vector: {POOLINGS[pooling]} is taken, "
            f"as usual for {'decoders' if causal else 'encoders'}")  # fmt: skip
    return replace(encoding, pooling=pooling, max_length=PLAIN_LENGTH, said=(said,))


def _check_fit(folder: Path, encoding: Encoding, tokenizer: Any, backbone: nn.Module) -> None:
    """Raises GoodsError where tokenizer, model and pooling are of different models."""
    check_tokenizer(folder, tokenizer, backbone.get_input_embeddings().num_embeddings)
    dim = backbone.config.hidden_size
    if encoding.dim not in (None, dim):
        raise GoodsError(f"{folder} pools vectors of {encoding.dim} numbers, and its model makes {dim}: they are of "
                         "different models; download both from the same place")  # fmt: skip


@torch.no_grad()
def sees_only_before(backbone: nn.Module) -> bool:
    """Whether each token sees only those before it: whatever follows the first one, it stays the same."""
    pair = torch.tensor([[0, 1], [0, 2]], device=backbone.device)
    first, other = backbone(input_ids=pair, attention_mask=torch.ones_like(pair)).last_hidden_state[:, 0]
    return bool((first - other).abs().max() < 1e-5 * first.abs().max())


def _module(step: Dense | Normalize) -> nn.Module:
    """What does a step behind the pooling; a dense layer stays as its maker trained it."""
    if isinstance(step, Normalize):
        return UnitLength()
    path = step.folder / "model.safetensors"
    try:
        weights = load_file(path)
        linear = nn.Linear(weights["linear.weight"].shape[1], step.dim, bias="linear.bias" in weights)
        linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    except Exception as error:  # safetensors and torch each have their own
        raise GoodsError(f"the weights {path} can't be loaded: {first_line(error)}; download the model's directory "
                         "again, with its folders") from error  # fmt: skip
    return nn.Sequential(linear.float().requires_grad_(False), getattr(nn, step.activation)())


def load_text_backbone(model_name: str) -> PreTrainedModel:
    """The text encoder of a local directory, in fp32; safetensors only. Raises GoodsError when it isn't one."""
    folder = resolve(model_name)
    check_model_dir(folder, photos=False)
    backbone, lacking = load_pretrained(folder)
    refuse_lacking(folder, {name for name in lacking if not name.startswith("pooler.")})  # which is unused
    backbone.config.use_cache = False  # a decoder's, of what it has read: nothing is written on
    return check_reads_texts(backbone, model_name)


def check_reads_texts(backbone: PreTrainedModel, model_name: str) -> PreTrainedModel:
    """The backbone; raises GoodsError where it is no text encoder."""
    if not _reads_texts_alone(backbone):
        raise GoodsError(f"{resolve(model_name)} holds a {type(backbone).__name__}; a text encoder such as BERT is "
                         "needed")  # fmt: skip
    return backbone


def _reads_texts_alone(backbone: PreTrainedModel) -> bool:
    if hasattr(backbone, "get_image_features") or getattr(backbone.config, "is_encoder_decoder", False):
        return False
    try:
        return isinstance(backbone.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:  # of an architecture for sounds or photos
        return False


def load_tokenizer(model_name: str) -> Any:
    """The tokenizer of a local directory; raises GoodsError when it can't be loaded."""
    folder = resolve(model_name)
    check_model_dir(folder, photos=False)
    try:
        auto = quiet_transformers().AutoTokenizer
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise GoodsError(f"the tokenizer in {folder} can't be loaded: {first_line(error)}") from error
