"""Which parts of a backbone are trained, how fast, and how what was trained is saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from goods.errors import GoodsError
from goods.files import atomic_path
from goods.models.backbone import first_line
from goods.models.device import DTYPES
from goods.params import Params

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel


# A classifier gives the first two no gradient, nor the pooler that TextEncoder leaves out.
NEVER_TRAINED = ("logit_scale", "logit_bias", "pooler.", "text_model.embeddings.token_embedding",
                 "embeddings.word_embeddings", "embeddings.tok_embeddings")  # fmt: skip


def set_trainable(backbone: PreTrainedModel, p: Params) -> None:
    """Leaves trainable what p.tune says: the last blocks, LoRA adapters (added here), or everything.

    Never trained are the token embeddings, what p.frozen names, and logit_scale and logit_bias: a classifier gives the
    latter two no gradient, and DDP dies of that at its second step.
    """
    backbone.requires_grad_(p.tune == "full")
    if p.tune == "lora":
        _add_adapters(backbone, p)
    never = (*NEVER_TRAINED, *p.frozen)
    for name, parameter in backbone.named_parameters():
        if p.tune == "last" and _blocks_from_end(backbone, name) < p.last_blocks:
            parameter.requires_grad_(True)
        if name.startswith(never):
            parameter.requires_grad_(False)
    if missing := [part for part in p.frozen if not any(n.startswith(part) for n, _ in backbone.named_parameters())]:
        raise GoodsError(
            f"frozen names '{missing[0]}', but no part of the backbone begins so; such as vision_model.head"
        )


def _add_adapters(backbone: PreTrainedModel, p: Params) -> None:
    """Puts LoRA adapters (arXiv 2106.09685) into the layers p.lora_targets of the blocks of both towers."""
    from peft import LoraConfig, inject_adapter_in_model  # three seconds that only this mode pays

    # Blocks alone: the pooling head's attention has an out_proj, too, but never calls it.
    within = rf"{_BLOCK.pattern}(.*\.)?"
    layers = [n for n, module in backbone.named_modules() if isinstance(module, nn.Linear) and _BLOCK.match(n)]
    unknown = [t for t in p.lora_targets if not any(re.fullmatch(within + re.escape(t), name) for name in layers)]
    if unknown:
        own = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise GoodsError(f"lora_targets {', '.join(unknown)} match no layer of the backbone; "
                         f"its blocks have {', '.join(own)}")  # fmt: skip
    pattern = f"{within}({'|'.join(map(re.escape, p.lora_targets))})"
    config = LoraConfig(r=p.lora_rank, lora_alpha=p.lora_alpha, lora_dropout=p.lora_dropout, target_modules=pattern)
    inject_adapter_in_model(config, backbone)


# A block of a dual encoder's tower, or of a text encoder by itself, as its parameters' names begin.
_BLOCK = re.compile(r"(?:(vision|text)_model\.)?(?:encoder\.|transformer\.)?layers?\.(\d+)\.")


def _blocks_from_end(backbone: PreTrainedModel, name: str) -> int:
    """How far before the tower's end a parameter stands: 0 in the last block and after it, blocks + 1 in embeddings."""
    config = backbone.config
    if tower := re.match("vision|text", name):
        config = getattr(config, f"{tower[0]}_config", config)
    blocks = getattr(config, "num_hidden_layers", 0)
    if "embeddings." in name:
        return blocks
    match = _BLOCK.match(name)
    return blocks - 1 - int(match[2]) if match else 0


def block_rates(backbone: PreTrainedModel, p: Params) -> dict[str, float]:
    """Learning rate of each trained parameter: learning_rate times layer_decay for each block after its own."""
    return {
        name: p.learning_rate * p.layer_decay ** _blocks_from_end(backbone, name)
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Keeps only each block's input for the backward pass, which computes the rest again (arXiv 1604.06174)."""
    # transformers 5.24 has a new name for it.
    enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def halve_frozen(model: nn.Module, precision: str) -> None:
    """Keeps the weights of frozen linear layers in 16 bits where autocast would cast them at every step anyway."""
    dtype = DTYPES.get(precision)
    for module in model.modules() if dtype else ():
        if type(module) is nn.Linear and not any(parameter.requires_grad for parameter in module.parameters()):
            module.to(dtype)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a training makes of a model: the trained parameters, and all of the heads with their buffers."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {n: t for n, t in model.state_dict().items() if n in trained or not n.startswith("encoder.")}


def save_trained(model: nn.Module, path: Path) -> None:
    """Saves what was trained, as safetensors: the backbone's parameters in fp16, the heads as they are."""
    state = trained_state(model)
    halved = {n: t.half() for n, t in state.items() if n.startswith("encoder.")}
    state |= {n: t for n, t in halved.items() if t.isfinite().all()}  # a weight too large for fp16 stays as it is
    state = {n: t.contiguous().cpu() for n, t in state.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def load_trained(model: nn.Module, path: Path) -> None:
    """Loads what save_trained wrote into a model built the same way; raises GoodsError when it doesn't fit."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # a torn file, or tensors of other shapes
        raise GoodsError(f"the weights {path} can't be loaded: {first_line(error)}") from error
    if unexpected or trained & set(missing):
        raise GoodsError(f"the weights {path} belong to another model or to other parameters")
