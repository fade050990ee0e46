"""What is trained in each mode, at which rates, and what is saved of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backbones import classifier, cut
from conftest import Trained
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from goods.errors import GoodsError
from goods.models.backbone import load_backbone
from goods.models.heads import heads_like
from goods.models.tuning import block_rates, load_trained, save_trained, set_trainable
from goods.params import Params


def test_token_embeddings_and_logit_scale_are_never_trained(p: Params) -> None:
    model = classifier(p.model_copy(update={"tune": "full"}))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.removeprefix("encoder.backbone.") for name in frozen} == {
        "logit_scale", "logit_bias", "text_model.embeddings.token_embedding.weight",
    }  # fmt: skip
    ids = model.encoder.processor.tokenize(["cup", "lamp"], ["cup", "lamp"], 64)
    sum(v.square().sum() for v in model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ids).values()).backward()
    idle = [name for name, w in model.named_parameters() if w.requires_grad and w.grad is None]
    assert idle == []  # DistributedDataParallel dies of one


def test_weights_go_through_a_file_and_back(p: Params, tmp_path: Path) -> None:
    p = p.model_copy(update={"tune": "full"})
    model = classifier(p)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    save_trained(model, tmp_path / "weights.safetensors")
    saved = load_file(tmp_path / "weights.safetensors")
    own = {name for name, w in model.named_parameters() if w.requires_grad}
    scales = {f"heads.{part}_{what}" for part in ("image", "text") for what in ("mean", "std")}
    assert set(saved) == own | scales
    kinds = {(name.split(".")[0], tensor.dtype) for name, tensor in saved.items()}
    assert kinds == {("encoder", torch.float16), ("heads", torch.float32)}

    other = classifier(p.model_copy(update={"seed": 9}))
    load_trained(other, tmp_path / "weights.safetensors")
    for name, tensor in other.state_dict().items():
        if name in saved:
            expected = model.state_dict()[name]
            assert torch.equal(tensor, expected.half().float() if name.startswith("encoder.") else expected)
            assert tensor.dtype == torch.float32


def test_weights_of_another_model_are_refused(p: Params, trained: Trained, tmp_path: Path) -> None:
    file = Path(shutil.copy(trained.p.run_dir / "fold0" / "weights.safetensors", tmp_path))
    heads = heads_like(file, p)
    load_trained(heads, file)
    full = p.model_copy(update={"tune": "full"})
    save_trained(classifier(full), tmp_path / "full.safetensors")
    with pytest.raises(GoodsError, match=r"full\.safetensors belong to another model or to other parameters"):
        load_trained(heads, tmp_path / "full.safetensors")
    with pytest.raises(GoodsError, match=r"weights\.safetensors belong to another model or to other parameters"):
        load_trained(classifier(full), file)
    with pytest.raises(GoodsError, match=r"weights\.safetensors can't be loaded: .*"):
        load_trained(heads_like(file, p.model_copy(update={"num_classes": 4})), file)
    cut(file)
    with pytest.raises(GoodsError, match=r"weights\.safetensors can't be loaded"):
        load_trained(heads, file)
    with pytest.raises(GoodsError, match=r"weights\.safetensors can't be loaded"):
        heads_like(file, p)


SMALL = {"image_size": 64, "hidden_dim": 32, "batch_size": 16, "eval_batch_size": 64, "num_workers": 0, "n_folds": 3,
         "num_epochs": 2, "learning_rate": 1e-3, "max_text_length": 64, "fold": 1}  # fmt: skip


def trainable(p: Params) -> set[str]:
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_full_trains_all_but_the_token_embeddings_and_the_contrastive_scale(make):
    backbone = load_backbone(make().model_name)
    never = {"logit_scale", "logit_bias", "text_model.embeddings.token_embedding.weight"}
    assert trainable(make(tune="full")) == {name for name, _ in backbone.named_parameters()} - never


def test_last_trains_the_end_of_each_tower(make):
    names = trainable(make(tune="last", last_blocks=1))
    assert {name.split(".")[3] for name in names if ".encoder.layers." in name} == {"1"}
    assert any(name.startswith("vision_model.head.") for name in names) and "text_model.head.weight" in names
    assert not any(".embeddings." in name for name in names)


def deberta() -> DebertaV2Model:
    """A miniature DeBERTa-v3, whose blocks share relative positions, their norm and a convolution."""
    return DebertaV2Model(DebertaV2Config(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, relative_attention=True, position_buckets=4, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], conv_kernel_size=3, conv_act="gelu",
    ))  # fmt: skip


def backward_reaches(blocks: nn.ModuleList, run: Callable[[], object]) -> list[bool]:
    """Of each block whether a backward pass would run through it."""
    found: dict[nn.Module, bool] = {}

    def note(block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found[block] = (output if isinstance(output, Tensor) else output[0]).requires_grad

    for block in blocks:
        block.register_forward_hook(note)
    run()
    return [found[block] for block in blocks]


LAST = Params(tune="last", last_blocks=1)
FULL = Params(tune="full", learning_rate=1.0, layer_decay=0.5)


def test_last_leaves_out_what_all_blocks_of_deberta_share() -> None:
    backbone = deberta()
    set_trainable(backbone, LAST)
    names = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in backbone.named_parameters() if name.startswith("encoder.layer.1.")}
    ids = torch.arange(8).view(1, 8)
    assert backward_reaches(backbone.encoder.layer, lambda: backbone(input_ids=ids)) == [False, True]
    set_trainable(backbone, FULL)
    rates = block_rates(backbone, FULL)
    shared = ("encoder.rel_embeddings.weight", "encoder.LayerNorm.weight", "encoder.conv.conv.weight")
    assert {rates[name] for name in (*shared, "embeddings.LayerNorm.weight")} == {0.25}
    assert rates["encoder.layer.0.output.dense.weight"] == 0.5 and rates["encoder.layer.1.output.dense.weight"] == 1


def test_last_leaves_out_clips_norm_before_the_blocks(clip: Path) -> None:
    backbone = load_backbone(str(clip))
    set_trainable(backbone, LAST)
    names = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {name for name in names if ".layers." not in name} == {
        "visual_projection.weight", "text_projection.weight",
        "vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias",
        "text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias",
    }  # fmt: skip
    assert {name.split(".")[3] for name in names if ".layers." in name} == {"1"}
    pixels = torch.zeros(1, 3, 32, 32)
    blocks = backbone.vision_model.encoder.layers
    assert backward_reaches(blocks, lambda: backbone.get_image_features(pixel_values=pixels)) == [False, True]
    set_trainable(backbone, FULL)
    rates = block_rates(backbone, FULL)
    assert rates["vision_model.pre_layrnorm.weight"] == rates["vision_model.embeddings.class_embedding"] == 0.25
    assert rates["vision_model.post_layernorm.weight"] == rates["visual_projection.weight"] == 1


def test_lora_trains_adapters_alone_in_the_blocks_alone(make):
    names = trainable(make(tune="lora", lora_targets=["q_proj", "fc1", "out_proj"]))
    assert len(names) == 2 * 2 * 3 * 2  # towers, blocks, layers, A and B
    assert all("lora_" in name and ".encoder.layers." in name for name in names)


def test_what_is_named_frozen_is_frozen(make):
    names = trainable(make(tune="full", frozen=["vision_model.embeddings", "text_model.encoder.layers.0."]))
    assert not any(name.startswith(("vision_model.embeddings", "text_model.encoder.layers.0.")) for name in names)
    with pytest.raises(GoodsError, match="vision_tower"):
        trainable(make(run="b", tune="full", frozen=["vision_tower"]))


def test_lora_targets_that_match_nothing_are_told_what_there_is(make):
    with pytest.raises(GoodsError, match=r"lora_targets query match no layer .* fc1, fc2, k_proj, out_proj"):
        trainable(make(tune="lora", lora_targets=["query"]))


def test_each_lora_target_matches_a_layer(make):
    with pytest.raises(GoodsError, match=r"lora_targets query, gate match no layer .* fc1, fc2, k_proj, out_proj"):
        trainable(make(tune="lora", lora_targets=["fc1", "query", "gate"]))


def test_rates_fall_block_by_block(make):
    p = make(tune="full", learning_rate=1.0, layer_decay=0.5)
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    rates = block_rates(backbone, p)
    assert rates["vision_model.head.probe"] == rates["text_model.encoder.layers.1.mlp.fc1.weight"] == 1
    assert rates["vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.5
    assert rates["vision_model.embeddings.patch_embedding.weight"] == 0.25
