"""The tiny SigLIP of the embedded sample."""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import os
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from goods.data.sample_files import whole_folder

# The tower's sizes: about 0.6 M parameters, a thousandth of so400m's.
TOWER = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
VOCAB_SIZE = 1000


def make_model(folder: str | os.PathLike, texts: Sequence[str], seed: int) -> bool:
    """Writes a SigLIP directory as google/siglip-so400m-patch14-384 is laid out; False when it is there, unchanged.

    64 pixels in patches of 8, 64 tokens, a vocabulary learnt from `texts`, weights drawn from the seed.
    """
    sha = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    with whole_folder(folder, {"seed": seed, "texts": sha}) as new:
        if new is None:
            return False
        plain = [text for text in map(_canonical, texts) if text]
        tokenizer = _train_tokenizer(plain)
        (new / "spiece.model").write_bytes(tokenizer.serialized_model_proto())
        files = _model_files(tokenizer.get_piece_size())
        for name, value in files.items():
            (new / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        embeddings = _token_embeddings(tokenizer, plain, seed)
        (new / "model.safetensors").write_bytes(_draw_weights(files["config.json"], embeddings, seed))
    return True


def _canonical(text: str) -> str:
    """The text without entities and tags, and then as SiglipTokenizer wants it: lower case, no punctuation."""
    text = re.sub(r"<[^>]+>", " ", html.unescape(text)).lower()
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A sentencepiece unigram processor: pad 0 (unused), eos 1, unk 2, as SigLIP's."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        # SiglipTokenizer puts "<unk>" before every text and cuts off as many pieces as it has: they must be known.
        required_chars="<>unk",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=False,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _model_files(vocab_size: int) -> dict[str, dict[str, Any]]:
    """What is in the directory's JSON files."""
    text = {"model_type": "siglip_text_model", "vocab_size": vocab_size, "max_position_embeddings": 64, **TOWER}
    text |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    vision = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 8, **TOWER}
    half = [0.5, 0.5, 0.5]
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    added = {key: {"content": token, "special": True, **flags} for key, token in (("1", "</s>"), ("2", "<unk>"))}
    return {
        "config.json": {
            "architectures": ["SiglipModel"],
            "initializer_factor": 1.0,
            "model_type": "siglip",
            "text_config": text,
            "torch_dtype": "float32",
            "vision_config": vision,
        },
        "preprocessor_config.json": {
            **{"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": half, "image_std": half},
            **{"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"},
            **{"resample": 3, "rescale_factor": 1 / 255, "size": {"height": 64, "width": 64}},
        },
        "special_tokens_map.json": {name: {"content": token, **flags} for name, token in names.items()},
        "tokenizer_config.json": {
            **{"added_tokens_decoder": added, "clean_up_tokenization_spaces": True, "do_lower_case": True, **names},
            **{"model_input_names": ["input_ids"], "model_max_length": 64, "processor_class": "SiglipProcessor"},
            **{"sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer"},
        },
    }


def _token_embeddings(tokenizer: Any, texts: Sequence[str], seed: int) -> np.ndarray:
    """(vocab, hidden) float32: tokens in like company lie close, so that the frozen tower knows something of words.

    Random indexing (Sahlgren 2005): a text is the sum of its tokens' random signs, a token the sum of its texts.
    """
    size = tokenizer.get_piece_size()
    count = np.zeros((len(texts), size))
    for row, text in enumerate(texts):
        count[row, tokenizer.encode(text)] = 1
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (size, TOWER["hidden_size"]))
    # Whole numbers all the way: the sums are exact, whatever the order in which BLAS adds.
    count *= np.rint(8 * np.log(len(texts) / count.sum(0).clip(1)))  # rare tokens weigh more
    embeddings = count.T @ (count @ signs)
    embeddings = embeddings * size - embeddings.sum(0)
    embeddings /= np.abs(embeddings).max(1, keepdims=True).clip(1) / 2
    embeddings[1] = 0  # padding, so that it adds nothing to the last position, which SigLIP pools
    return embeddings.astype(np.float32)


def _draw_weights(config: dict[str, Any], embeddings: np.ndarray, seed: int) -> bytes:
    """model.safetensors: every tensor but the token embeddings drawn from the seed."""
    import torch
    from safetensors.torch import save
    from transformers import SiglipConfig, SiglipModel

    with torch.device("meta"):  # names and shapes only
        model = SiglipModel(SiglipConfig(text_config=config["text_config"], vision_config=config["vision_config"]))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, meta in sorted(model.state_dict().items()):
        tensor = torch.randn(meta.shape, generator=generator)
        if name.endswith("token_embedding.weight"):
            tensor = torch.from_numpy(embeddings)
        elif name.startswith("logit_") or name.endswith("bias"):
            tensor.zero_()
        elif "norm" in name:
            tensor.fill_(1.0)
        elif name.endswith("patch_embedding.weight"):  # blocks of 4 x 4 pixels: colours and edges, not noise
            tensor = tensor[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3) * (4 / 14)
        elif "position_embedding" in name:
            tensor *= 0.5 if "vision" in name else 0.1
        elif "probe" not in name:
            tensor /= math.sqrt(meta.shape[-1])
        weights[name] = tensor.contiguous()
    return save(weights, metadata={"format": "pt"})
