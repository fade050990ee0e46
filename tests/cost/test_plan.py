"""Plans: what a T4 must bear, what changes memory and hours, what is advised and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import say_how

from goods.cost.empty import empty_model, read_config
from goods.cost.footprint import (
    ACTIVATIONS,
    COPIES,
    FURTHER,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
)
from goods.cost.gpus import GIB, GPUS, Gpu, find_gpu
from goods.cost.plan import plan_run, with_overhead
from goods.errors import GoodsError
from goods.files import write_json
from goods.models.heads import GoodsHeads
from goods.params import Params

FULL = {"tune": "full", "optimizer": "adafactor", "gradient_checkpointing": True}
T4_PLANS = [(FULL | {"image_size": size, "batch_size": 16, "micro_batch_size": 8}, 14.5) for size in (384, 224)]
LORA = {"tune": "lora", "gradient_checkpointing": True, "batch_size": 16, "micro_batch_size": 8}
T4_PLANS += [(LORA | {"image_size": 384}, 8)]
ADAMW = {"tune": "full", "batch_size": 4, "micro_batch_size": 2, "image_size": 384}


@pytest.mark.slow
@pytest.mark.parametrize("given, limit", T4_PLANS)
def test_so400m_fits_a_t4(so400m: Any, given: dict[str, Any], limit: float) -> None:
    made = so400m("T4", **given)
    assert made.fits and made.total_gib < limit
    assert made.precision == "fp16" and made.changes == {} and made.advice.startswith("fits a T4")


@pytest.mark.slow
def test_so400m_parameters(so400m: Any) -> None:
    made = so400m("T4", **T4_PLANS[0][0])
    heads = sum(q.numel() for q in GoodsHeads(1152, 1152, made.params).parameters())
    assert made.total - heads == 877_960_498
    assert made.trainable == made.total - 32_000 * 1152 - 2  # token embeddings, logit_scale, logit_bias
    backbone = empty_model(read_config(made.params.model_name), made.params.model_name)
    assert sum(q.numel() for q in backbone.vision_model.parameters()) / 1e6 == pytest.approx(428.2, abs=0.05)
    assert sum(q.numel() for q in backbone.text_model.parameters()) / 1e6 == pytest.approx(449.7, abs=0.05)


@pytest.mark.slow
def test_so400m_flops(so400m: Any) -> None:
    made = so400m("T4", **T4_PLANS[0][0])
    assert made.flops["forward, image"] / 1e9 == pytest.approx(670, rel=0.01)
    assert made.flops["forward, text"] / 1e9 == pytest.approx(55, rel=0.05)
    forward = made.flops["training, forward"]
    assert made.flops["training, backward"] == pytest.approx(2 * forward, rel=0.05)
    assert 0.5 * forward < made.flops["training, recomputed"] <= forward
    third = so400m("T4", **T4_PLANS[1][0]).flops["forward, image"] / made.flops["forward, image"]
    assert third == pytest.approx(1 / 3, rel=0.1)  # 224 costs a third of 384


@pytest.mark.slow
def test_so400m_memory(so400m: Any) -> None:
    adamw = so400m("A100", **ADAMW).memory["training"]
    before = sum(adamw[part] for part in (WEIGHTS, GRADIENTS, OPTIMIZER, COPIES))
    assert before == pytest.approx(14.7, rel=0.05)  # FACTS counts the frozen token embeddings in
    assert adamw[ACTIVATIONS] / 2 == pytest.approx(0.85, rel=0.15)  # GiB a product
    checkpointed = so400m("T4", **T4_PLANS[0][0]).memory["training"]
    assert checkpointed[ACTIVATIONS] / 8 == pytest.approx(0.1, rel=0.15)


def training_gib(p: Params) -> float:
    return sum(plan_run(p, "T4").memory["training"].values())


@pytest.mark.slow
def test_memory_goes_the_way_it_should(small: Any) -> None:
    base = small(micro_batch_size=8)
    usual = training_gib(base)
    assert training_gib(small(micro_batch_size=8, gradient_checkpointing=True)) < usual
    assert training_gib(small(micro_batch_size=4)) < usual < training_gib(small(micro_batch_size=15))
    assert training_gib(small(micro_batch_size=8, optimizer="adafactor")) < usual
    assert training_gib(small(micro_batch_size=8, image_size=384)) > usual
    assert training_gib(small(micro_batch_size=8, text_windows=4)) > usual
    assert training_gib(small(micro_batch_size=8, mixed_precision="fp32")) > usual
    averaged = plan_run(small(micro_batch_size=8, ema_decay=0.99, wise_ft=True), "T4")
    fp32 = 4 * averaged.trainable / GIB
    assert averaged.memory["training"][FURTHER] == pytest.approx(fp32)
    assert averaged.memory["evaluation"][FURTHER] == pytest.approx(2 * fp32)
    assert averaged.memory["interpolation"][FURTHER] == pytest.approx(4 * fp32)
    soup = plan_run(small(micro_batch_size=8, soup=True), "T4").memory
    assert (soup["training"][FURTHER], soup["evaluation"][FURTHER]) == pytest.approx((fp32, 2 * fp32))


@pytest.mark.slow
def test_what_is_trained(small: Any) -> None:
    share = {}
    for tune in ("head", "lora", "last", "full"):
        made = plan_run(small(tune=tune, frozen=("vision_model.head",) if tune == "full" else ()), "T4")
        share[tune] = made.trainable / made.total
    assert share["head"] < share["lora"] < share["last"] < share["full"] < 1
    made = plan_run(small(tune="lora", lora_rank=16), "T4")
    layers = 2 * 2 * (4 * 16 * (128 + 128) + 2 * 16 * (128 + 512))  # towers, blocks: attention, MLP
    heads = sum(q.numel() for q in GoodsHeads(128, 128, made.params).parameters())
    assert made.trainable == layers + heads
    assert list(plan_run(small(tune="head"), "T4").memory) == ["embedding"]


@pytest.mark.slow
def test_hours(small: Any) -> None:
    p = small(num_epochs=4, n_folds=5, mixed_precision="fp16")
    made = plan_run(p, "T4", products=1000)
    rate = 65e12 * find_gpu("T4").utilisation * 3600
    forward = made.flops["forward, image"] + made.flops["forward, text"]
    step = made.flops["training, forward"] + made.flops["training, backward"]
    assert made.hours["training"] == pytest.approx(5 * 4 * 800 * step / rate)
    assert made.hours["validation"] == pytest.approx(5 * 5 * 200 * forward / rate)
    assert made.hours["test prediction"] == pytest.approx(5 * 10_000 * forward / rate)
    flipped = plan_run(p.model_copy(update={"test_time_flip": True, "skip_folds": 4}), "T4", products=1000)
    assert flipped.hours["test prediction"] == pytest.approx(2 / 5 * made.hours["test prediction"])
    assert flipped.hours["training"] == pytest.approx(1 / 5 * made.hours["training"])
    slow = plan_run(p.model_copy(update={"mixed_precision": "fp32"}), "T4", products=1000)
    assert slow.hours["training"] == pytest.approx(65 / 8.1 * made.hours["training"])
    head = plan_run(small(tune="head"), "T4", products=1000)
    assert head.hours == {"embeddings, once": pytest.approx(11_000 * forward / rate)}


@pytest.mark.slow
def test_a_frozen_tower_costs_once(small: Any) -> None:
    p = small(num_epochs=4, n_folds=5, mixed_precision="fp16", tune="full")
    both, locked = (
        plan_run(p.model_copy(update={"frozen": of}), "T4", products=1000) for of in ((), ("vision_model",))
    )
    rate = 65e12 * find_gpu("T4").utilisation * 3600
    assert locked.hours["embeddings, once"] == pytest.approx(11_000 * locked.flops["forward, image"] / rate)
    assert locked.hours["validation"] == pytest.approx(5 * 5 * 200 * locked.flops["forward, text"] / rate)
    assert locked.flops["forward, image"] == both.flops["forward, image"]
    assert locked.flops["training, forward"] < both.flops["training, forward"] - both.flops["forward, image"] * 0.99
    assert locked.memory["training"][ACTIVATIONS] < both.memory["training"][ACTIVATIONS] / 2
    assert locked.disk["embeddings"] == pytest.approx(11_000 * 4 * 128 / 1e9) and "embeddings" not in both.disk
    moving = plan_run(p.model_copy(update={"frozen": ("vision_model",), "augment_flip": 0.5}), "T4", products=1000)
    assert moving.flops["training, forward"] == both.flops["training, forward"]


def test_rows_come_from_the_tables(small: Any, tmp_path: Path) -> None:
    p = small(tune="head")
    assert plan_run(p, "T4").rows == (50_000, 10_000)
    assert "50,000 products to train on (assumed), 10,000 to predict (assumed)" in str(plan_run(p, "T4"))
    (tmp_path / "train.csv").write_text('id,title\n1,"two\nlines"\n2,b\n3,c\n')
    (tmp_path / "test.csv").write_text("id,title\n4,d\n")
    p = p.model_copy(update={"train_csv": str(tmp_path / "train.csv"), "test_csv": str(tmp_path / "test.csv")})
    assert plan_run(p, "T4").rows == (3, 1)
    assert plan_run(p, "T4", products=7).rows == (7, 1)
    for text in ("", "id,title\n"):
        (tmp_path / "test.csv").write_text(text)
        assert plan_run(p, "T4").rows == (3, 10_000)
    with pytest.raises(GoodsError, match="at least one"):
        plan_run(p, "T4", products=0)


@pytest.mark.slow
def test_disk_of_so400m(so400m: Any) -> None:
    full, lora = so400m("T4", **T4_PLANS[0][0]), so400m("T4", **T4_PLANS[2][0])
    assert full.disk["weights of all folds"] < 12 and lora.disk["weights of all folds"] < 0.5
    adamw = so400m("A100", **ADAMW)
    assert any("20 GB" in note for note in adamw.notes) and not any("20 GB" in note for note in full.notes)


def tiny_gpu(monkeypatch: pytest.MonkeyPatch, allocated_gib: float) -> None:
    """A T4 on which torch may allocate so much."""
    gpu = GPUS["T4"]
    small = Gpu("T4", with_overhead(allocated_gib), gpu.tflops_16, gpu.tflops_32, bf16=False)
    monkeypatch.setitem(GPUS, "T4", small)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, spare, expected",
    [
        ({}, 0.5, {"micro_batch_size"}),
        ({"micro_batch_size": 1, "image_size": 384}, 0.4, {"gradient_checkpointing"}),
        ({"micro_batch_size": 1, "gradient_checkpointing": True, "image_size": 384}, 0.15, {"image_size"}),
        ({"tune": "lora", "eval_batch_size": 512, "micro_batch_size": 1}, 0.5, {"eval_batch_size"}),
        ({"tune": "head", "eval_batch_size": 64}, 0.5, {"eval_batch_size"}),
    ],
)
def test_advice_names_the_parameter(
    small: Any, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], spare: float, expected: set[str]
) -> None:
    """With room for everything but for all activations, what reduces these is named, and then it fits."""
    p = (
        small(optimizer="adafactor", eval_batch_size=1, **given)
        if "eval_batch_size" not in given
        else small(optimizer="adafactor", **given)
    )
    made = plan_run(p, "T4")
    worst = max(made.memory.values(), key=lambda parts: sum(parts.values()))
    tiny_gpu(monkeypatch, made.allocated_gib - (1 - spare) * worst[ACTIVATIONS])
    tight = plan_run(p, "T4")
    assert not tight.fits and expected <= set(tight.changes), tight.changes
    assert all(f"{name}=" in tight.advice for name in expected)
    assert plan_run(p.model_copy(update=tight.changes), "T4").fits


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_advice_always_fits(small: Any, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    p = small(wise_ft=True, ema_decay=0.99, image_size=384, eval_batch_size=64)
    tiny_gpu(monkeypatch, share * plan_run(p, "T4").allocated_gib)
    tight = plan_run(p, "T4")
    assert tight.changes and plan_run(p.model_copy(update=tight.changes), "T4").fits
    assert "tune" not in tight.changes


@pytest.mark.slow
def test_advice_on_so400m(so400m: Any) -> None:
    tight = so400m("T4", tune="full", batch_size=16, image_size=384, mixed_precision="fp16")
    assert not tight.fits
    assert tight.changes["optimizer"] == "adafactor" and "micro_batch_size" in tight.changes
    assert "optimizer=adafactor" in tight.advice and "doesn't fit a T4" in tight.advice


@pytest.mark.slow
def test_advice_changes_what_is_trained_last(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = small(optimizer="adafactor", gradient_checkpointing=True, micro_batch_size=1, eval_batch_size=1)
    lora = plan_run(p.model_copy(update={"tune": "lora"}), "T4")
    assert lora.allocated_gib < plan_run(p, "T4").allocated_gib
    tiny_gpu(monkeypatch, 1.02 * lora.allocated_gib)
    assert plan_run(p, "T4").changes == {"tune": "lora"}
    tiny_gpu(monkeypatch, 1e-4)
    made = plan_run(p, "T4")
    assert made.changes == {} and "larger GPU" in made.advice


def test_unknown_gpu(small: Any) -> None:
    with pytest.raises(GoodsError, match=r"'RTX 9999'.*T4, P100, V100, L4, A100, H100, H200"):
        plan_run(small(tune="head"), "RTX 9999")


def test_gpu_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_gpu("Tesla T4").name == find_gpu("t4").name == find_gpu().name == "T4"
    assert find_gpu("NVIDIA H100 80GB HBM3").name == "H100"
    with pytest.raises(GoodsError):
        find_gpu("NVIDIA L40S")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    properties = type("Properties", (), {"total_memory": 24 * GIB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert (find_gpu().name, find_gpu().memory_gib) == ("A100", 24)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert (find_gpu().memory_gib, find_gpu().tflops_16) == (24, None)


def test_a_gpu_that_is_not_known_has_no_hours(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goods.cost.plan.find_gpu", lambda name: Gpu("NVIDIA GeForce RTX 4090", 24))
    made = plan_run(small(tune="head"))
    assert made.hours == {} and "not known for NVIDIA GeForce RTX 4090" in str(made) and made.fits


def test_precision(small: Any) -> None:
    assert [plan_run(small(tune="head"), gpu).precision for gpu in ("V100", "L4")] == ["fp16", "bf16"]
    emulated = plan_run(small(tune="head", mixed_precision="bf16"), "T4")
    assert emulated.precision == "bf16" and any("emulates bf16" in note for note in emulated.notes)


def test_errors(small: Any, tmp_path: Path) -> None:
    p = small(tune="head")
    for given, message in (
        ({"image_size": 225}, "not a multiple of the patch"),
        ({"max_text_length": 65}, "64 tokens"),
        ({"tune": "lora", "lora_targets": ("nothing",)}, "no layer"),
        ({"model_name": str(tmp_path)}, "there is no .*config.json"),
    ):
        with pytest.raises(GoodsError, match=message):
            plan_run(p.model_copy(update=given), "T4")
    for text, message in (
        ("{", "can't be used"),
        ('{"model_type": "unheard-of"}', "can't be used"),
        ('{"model_type": "bert", "num_hidden_layers": 1}', "dual encoder"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(GoodsError, match=message):
            plan_run(p.model_copy(update={"model_name": str(tmp_path)}), "T4")


def test_clip(tmp_path: Path) -> None:
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
            "projection_dim": 96}  # fmt: skip
    config = {"model_type": "clip", "projection_dim": 96, "text_config": size,
              "vision_config": size | {"image_size": 64, "patch_size": 16}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    p = Params(model_name=str(tmp_path), image_size=64, hidden_dim=64, gradient_checkpointing=True)
    made = plan_run(p, "T4")
    assert made.fits and made.flops["training, recomputed"] > 0
    heads = GoodsHeads(96, 96, p)
    assert made.disk["weights of all folds"] > 5 * 4 * sum(q.numel() for q in heads.parameters()) / 1e9


@pytest.mark.parametrize("given", [{}, {"wise_ft": True, "ema_decay": 0.9, "text_windows": 3}, {"tune": "head"}])
def test_shown_in_80_columns(small: Any, given: dict[str, Any]) -> None:
    made = plan_run(small(**given), "T4")
    text = str(made)
    assert ("fill its 3 windows" in text) == (made.params.text_windows == 3)
    assert max(map(len, text.splitlines())) <= 80
    assert "activations, buffers" in text
    table = made.table()
    assert list(table.columns) == ["part", "item", "value", "unit"] and table.notna().all().all()
    assert set(table["unit"]) == {"M", "GiB", "GFLOP", "h", "GB"}
    assert f"{made.total_gib:.2f}" in text and table.set_index("item").loc["at most", "value"] == made.total_gib


def test_a_plan_changes_nothing(small: Any) -> None:
    state = torch.get_rng_state()
    assert plan_run(small(tune="lora"), "T4") == plan_run(small(tune="lora"), "T4")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.zeros(1).tolist() == [0.0]  # no fake mode is left on


def test_further_text_encoders_are_counted(small: Any, encoder_dir: Path, tmp_path: Path) -> None:
    folder = say_how(Path(shutil.copytree(encoder_dir, tmp_path / "pooled")), {"embedding_dimension": 32,
                     "pooling_mode": "cls"}, "Dense")  # fmt: skip
    write_json(folder / "2_Dense" / "config.json", {"out_features": 8, "activation_function": "torch.nn.Tanh"})
    p = small(tune="last")
    further = p.model_copy(update={"extra_embeddings": (str(encoder_dir), str(folder))})
    without, made = (plan_run(each, "T4") for each in (p, further))
    assert made.trainable - without.trainable == (32 + 8) * (p.hidden_dim + 2)  # a layer, and the norm before it
    assert set(made.memory) - set(without.memory) == {"further texts"} and made.memory["further texts"]["weights"]
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # of two blocks
    assert made.flops["further texts"] == pytest.approx(2 * 2 * 256 * (weights + 2 * 2 * 256 * 32), rel=0.01)
    assert set(made.hours) - set(without.hours) == {"further texts, once"}
    assert made.disk["embeddings"] - without.disk.get("embeddings", 0) == pytest.approx(60_000 * 40 * 4 / 1e9)
    assert "further text encoders are assumed to read 256 tokens of every text" in made.notes
