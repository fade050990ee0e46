"""Which parts of a backbone are trained, how fast, and how what was trained is saved."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from goods.advice import train_again
from goods.errors import GoodsError
from goods.files import atomic_path
from goods.models.backbone import first_line
from goods.models.device import DTYPES
from goods.params import AugmentParams, Params

if TYPE_CHECKING:  # a second and a half that only those who load a model pay
    from transformers import PreTrainedModel


TOWERS = {"image": "vision_model", "text": "text_model"}  # what each side of a product goes through
# By the start of their names within a tower; a classifier gives the first three no gradient, and what follows a text
# encoder's pooling ("after.") stays as its maker trained it.
NEVER_TRAINED = ("logit_scale", "logit_bias", "embeddings.mask_token", "embeddings.token_embedding",
                 "embeddings.word_embeddings", "embeddings.tok_embeddings", "embed_tokens", "after.")  # fmt: skip


def set_trainable(backbone: PreTrainedModel, p: Params) -> None:
    """Leaves trainable what p.tune says: the last blocks, LoRA adapters (added here), or everything.

    Never trained are the token embeddings, what p.frozen names, and logit_scale and logit_bias: a classifier gives the
    latter two no gradient, and DDP dies of that at its second step.
    """
    backbone.requires_grad_(p.tune == "full")
    if p.tune == "lora":
        _add_adapters(backbone, p)
    before_end, image_alone = _blocks_from_end(backbone), getattr(backbone, "main_input_name", "") == "pixel_values"
    for name, parameter in backbone.named_parameters():
        if p.tune == "last" and before_end[name] < p.last_blocks:
            parameter.requires_grad_(True)
        tower, own = _in_tower(name)
        unused = own.startswith("pooler.") and not image_alone and tower != "vision"  # TextEncoder leaves it out
        if unused or own.startswith(NEVER_TRAINED) or name.startswith(p.frozen):
            parameter.requires_grad_(False)
    if missing := [part for part in p.frozen if not any(n.startswith(part) for n, _ in backbone.named_parameters())]:
        some = next(iter(backbone.named_parameters()))[0].rpartition(".")[0]
        raise GoodsError(f"frozen names '{missing[0]}', but no part of the backbone begins so; one that does is {some}")


def fixed_sides(backbone: PreTrainedModel, p: Params, sides: Sequence[str]) -> tuple[str, ...]:
    """Those of a product's sides, "image" and "text", whose embeddings stay what they are through a training.

    What set_trainable left of the backbone to train reads none of them, and photos are not changed at random. Reads
    frozen, augment_* and test_time_flip.
    """
    trained = {name.startswith("text") for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    changed = any(getattr(p, name) for name in AugmentParams.model_fields)
    moving = {"image": False in trained or changed, "text": True in trained}
    return tuple(side for side in sides if not moving[side])


def drop_towers(backbone: nn.Module, sides: Sequence[str]) -> None:
    """Takes the towers of these sides out, and their weights out of memory: what they'd embed comes from elsewhere."""
    for side in sides:
        if hasattr(backbone, TOWERS[side]):
            setattr(backbone, TOWERS[side], nn.Identity())


def _add_adapters(backbone: PreTrainedModel, p: Params) -> None:
    """Puts LoRA adapters (arXiv 2106.09685) into the layers p.lora_targets of the blocks of both towers."""
    from peft import LoraConfig, inject_adapter_in_model  # three seconds that only this mode pays

    # Blocks alone: the pooling head's attention has an out_proj, too, but never calls it.
    within = rf"{_BLOCK.pattern}(.*\.)?"
    layers = [n for n, module in backbone.named_modules() if isinstance(module, nn.Linear) and _BLOCK.match(n)]
    unknown = [t for t in p.lora_targets if not any(re.fullmatch(within + re.escape(t), name) for name in layers)]
    if unknown:
        raise GoodsError(f"lora_targets {', '.join(unknown)} match no layer of the backbone; its blocks have "
                         f"{_last_names(layers)}")  # fmt: skip
    pattern = f"{within}({'|'.join(map(re.escape, p.lora_targets))})"
    for tower in ("vision", "text"):
        own = [name for name in layers if _in_tower(name)[0] == tower and not name.startswith(p.frozen)]
        if own and not any(re.fullmatch(pattern, name) for name in own):
            raise GoodsError(f"lora_targets {', '.join(p.lora_targets)} match no layer of the {tower}_model; its "
                             f"blocks have {_last_names(own)}")  # fmt: skip
    if all(name.startswith(p.frozen) for name in layers):
        raise GoodsError(
            "frozen leaves no layer for the adapters of tune lora; where nothing is to be tuned, tune=head"
        )
    frozen = rf"({'|'.join(map(re.escape, p.frozen))}).*" if p.frozen else None
    shape = {"r": p.lora_rank, "lora_alpha": p.lora_alpha, "lora_dropout": p.lora_dropout}
    inject_adapter_in_model(LoraConfig(**shape, target_modules=pattern, exclude_modules=frozen), backbone)


def _last_names(layers: list[str]) -> str:
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))


# A block of a dual encoder's tower, or of an encoder by itself, as its parameters' names begin: layers, or in stages.
_TOWER = r"(?:(vision|text)_model\.(?:backbone\.)?)*"  # an EncoderPair's hold their backbones
_STAGE = r"(?:model\.)?(?:encoder\.|transformer\.)?(?:stages|layers?|blocks)\.(\d+)\."
_BLOCK = re.compile(rf"{_TOWER}{_STAGE}(?:(?:layers?|blocks)\.(\d+)\.)?")

# What follows a tower's blocks: the norm of their output, the pooling head, the projection into the shared space.
_AFTER = re.compile(
    rf"{_TOWER}(?:model\.)?(?:post_layernorm|final_layer_norm|final_norm|layer_?norm|norm|head|pooler)\."
    r"|(?:visual|text)_projection\."
)


def _in_tower(name: str) -> tuple[str | None, str]:
    """Which tower a parameter is of, "vision", "text" or None, and what it is called there."""
    tower = re.match(_TOWER, name)
    return tower[1], name[tower.end() :]


def _blocks_from_end(backbone: PreTrainedModel) -> dict[str, int]:
    """How far before its tower's end each parameter stands: 0 in the last block and after it, at most all blocks.

    All of them lie between the end and what stands before or beside them: embeddings, CLIP's pre_layrnorm, the relative
    positions that DeBERTa's blocks share. Its gradient would run back through every block.
    """
    block_of = {name: _BLOCK.match(name) for name, _ in backbone.named_parameters()}
    blocks: defaultdict[str | None, set[tuple[int, int]]] = defaultdict(set)  # of each tower; None: there is one alone
    for block in filter(None, block_of.values()):
        blocks[block[1]].add(_place(block))
    order = {tower: sorted(places, reverse=True) for tower, places in blocks.items()}
    found = {}
    for name, block in block_of.items():
        if block:
            found[name] = order[block[1]].index(_place(block))
        else:
            found[name] = 0 if _AFTER.match(name) else len(order.get(_in_tower(name)[0], ()))
    return found


def _place(block: re.Match) -> tuple[int, int]:
    """Where a block stands; what leads from one stage to the next stands with the first block of its stage."""
    return int(block[2]), int(block[3] or 0)


def block_rates(backbone: PreTrainedModel, p: Params) -> dict[str, float]:
    """Learning rate of each trained parameter: learning_rate times layer_decay for each block after its own."""
    before_end = _blocks_from_end(backbone)
    return {
        name: p.learning_rate * p.layer_decay ** before_end[name]
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Keeps only each block's input for the backward pass, which computes the rest again (arXiv 1604.06174).

    Raises GoodsError where the architecture has no such way.
    """
    if isinstance(backbone, nn.ModuleDict):  # of an EncoderPair
        for tower in backbone.values():
            checkpoint_activations(tower.backbone)
        return
    # transformers 5.24 has a new name for it.
    enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise GoodsError(f"gradient_checkpointing is not for a {type(backbone).__name__}; leave it false, and lower "
                         "micro_batch_size where memory is short") from error  # fmt: skip


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


# Adapters that are merged ---------------------------------------------------------------------------------------------

_BACKBONE = "encoder.backbone."  # what the names of its parameters begin with in a classifier's state


def has_adapters(weights: Path) -> bool:
    """Whether saved weights hold LoRA adapters."""
    return any(".lora_" in name for name in _names(weights))


def save_merged(model: nn.Module, path: Path) -> None:
    """Saves what was trained as save_trained does, each adapter added into the fp32 weights of the layer it changes."""
    from peft.tuners.lora import LoraLayer

    state = {name: tensor for name, tensor in trained_state(model).items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight.float()
            state[f"{name}.weight"] = weight + sum(layer.get_delta_weight(each) for each in layer.active_adapters)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def set_as_saved(backbone: PreTrainedModel, p: Params, weights: Path) -> None:
    """set_trainable, for weights that were saved: where adapters are merged, what they are merged into takes part."""
    names = _names(weights)
    if p.tune != "lora" or any(".lora_" in name for name in names):
        set_trainable(backbone, p)
        return
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_BACKBONE + name in names)


def _names(weights: Path) -> set[str]:
    """The names of saved tensors; raises GoodsError when the file isn't whole."""
    try:
        with safe_open(weights, framework="pt") as file:
            return set(file.keys())
    except Exception as error:
        raise GoodsError(
            f"the weights {weights} can't be loaded: {first_line(error)}; {train_again(weights)}"
        ) from error


def load_trained(model: nn.Module, path: Path) -> None:
    """Loads what save_trained wrote into a model built the same way; raises GoodsError when it doesn't fit."""
    set_trained(model, read_trained(path), path)


def read_trained(path: Path) -> dict[str, Tensor]:
    """What save_trained wrote, held in memory only as far as it is used; raises GoodsError when it isn't whole."""
    try:
        return load_file(path)
    except Exception as error:  # a torn file
        raise GoodsError(f"the weights {path} can't be loaded: {first_line(error)}; {train_again(path)}") from error


def set_trained(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Puts what read_trained gave into a model built the same way; raises GoodsError when it doesn't fit."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # tensors of other shapes
        raise GoodsError(f"the weights {path} can't be loaded: {first_line(error)}; {train_again(path)}") from error
    if unexpected or trained & set(missing):
        raise GoodsError(f"the weights {path} belong to another model or to other parameters; give back those in "
                         f"run.json, or {train_again(path)}")  # fmt: skip
