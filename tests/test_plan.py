"""Plans: what is counted against independent truths, what is advised, and the two plans that a T4 must bear."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from goods.cost.footprint import (
    ACTIVATIONS,
    COPIES,
    DTYPES,
    FURTHER,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
    CudaDropout,
    Footprint,
    StepMeter,
    _backbone,
    _cpu_autocast,
    count_step,
    measure_footprint,
    optimizer_buffers,
    optimizer_bytes,
    read_config,
)
from goods.cost.plan import GIB, GPUS, Gpu, Plan, find_gpu, plan_run, with_overhead
from goods.errors import GoodsError
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import block_rates, halve_frozen, save_trained, set_trainable
from goods.params import Params
from goods.training.checkpoint import save_state
from goods.training.optim import make_optimizer, trainable_parameters

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_config(folder: Path, size: dict[str, int], **text: int) -> str:
    folder.mkdir()
    config = {
        "model_type": "siglip",
        "vision_config": size | {"image_size": 384, "patch_size": 14},
        "text_config": size
        | {"vocab_size": 32000, "max_position_embeddings": 64, "projection_size": size["hidden_size"]}
        | text,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def so400m(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plans for the real model's config, each made once: so400m(gpu, name=value ...)."""
    model_name = write_config(tmp_path_factory.mktemp("models") / "siglip-so400m-patch14-384", SO400M)

    @cache
    def make(gpu: str, **given: Any) -> Plan:
        began = time.process_time()
        made = plan_run(Params(model_name=model_name, train_csv="no/train.csv", test_csv="no/test.csv", **given), gpu)
        assert time.process_time() - began < 15  # seconds of one core
        return made

    return make


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parameters with a small model that has nothing but a config: small(name=value ...)."""
    model_name = write_config(tmp_path_factory.mktemp("models") / "small", SMALL)

    def make(**given: Any) -> Params:
        size = {"image_size": 224, "batch_size": 16, "hidden_dim": 64, "last_blocks": 1}
        return Params(model_name=model_name, train_csv="no/train.csv", test_csv="no/test.csv", **size | given)

    return make


def footprint_of(p: Params, precision: str = "fp16") -> Footprint:
    return measure_footprint(read_config(p.model_name), p, precision)


# The two plans that a T4 must bear, and what is known of so400m


FULL = {"tune": "full", "optimizer": "adafactor", "gradient_checkpointing": True}
T4_PLANS = [(FULL | {"image_size": size, "batch_size": 16, "micro_batch_size": 8}, 14.5) for size in (384, 224)]
LORA = {"tune": "lora", "gradient_checkpointing": True, "batch_size": 16, "micro_batch_size": 8}
T4_PLANS += [(LORA | {"image_size": 384}, 8)]
ADAMW = {"tune": "full", "batch_size": 4, "micro_batch_size": 2, "image_size": 384}


@pytest.mark.parametrize("given, limit", T4_PLANS)
def test_so400m_fits_a_t4(so400m: Any, given: dict[str, Any], limit: float) -> None:
    made = so400m("T4", **given)
    assert made.fits and made.total_gib < limit
    assert made.precision == "fp16" and made.changes == {} and made.advice.startswith("fits a T4")


def test_so400m_parameters(so400m: Any) -> None:
    made = so400m("T4", **T4_PLANS[0][0])
    heads = sum(q.numel() for q in GoodsHeads(1152, 1152, made.params).parameters())
    assert made.total - heads == 877_960_498
    assert made.trainable == made.total - 32_000 * 1152 - 2  # token embeddings, logit_scale, logit_bias
    backbone = _backbone(read_config(made.params.model_name), made.params)
    assert sum(q.numel() for q in backbone.vision_model.parameters()) / 1e6 == pytest.approx(428.2, abs=0.05)
    assert sum(q.numel() for q in backbone.text_model.parameters()) / 1e6 == pytest.approx(449.7, abs=0.05)


def test_so400m_flops(so400m: Any) -> None:
    made = so400m("T4", **T4_PLANS[0][0])
    assert made.flops["forward, image"] / 1e9 == pytest.approx(670, rel=0.01)
    assert made.flops["forward, text"] / 1e9 == pytest.approx(55, rel=0.05)
    forward = made.flops["training, forward"]
    assert made.flops["training, backward"] == pytest.approx(2 * forward, rel=0.05)
    assert 0.5 * forward < made.flops["training, recomputed"] <= forward
    third = so400m("T4", **T4_PLANS[1][0]).flops["forward, image"] / made.flops["forward, image"]
    assert third == pytest.approx(1 / 3, rel=0.1)  # 224 costs a third of 384


def test_so400m_memory(so400m: Any) -> None:
    adamw = so400m("A100", **ADAMW).memory["training"]
    before = sum(adamw[part] for part in (WEIGHTS, GRADIENTS, OPTIMIZER, COPIES))
    assert before == pytest.approx(14.7, rel=0.05)  # FACTS counts the frozen token embeddings in
    assert adamw[ACTIVATIONS] / 2 == pytest.approx(0.85, rel=0.15)  # GiB a product
    checkpointed = so400m("T4", **T4_PLANS[0][0]).memory["training"]
    assert checkpointed[ACTIVATIONS] / 8 == pytest.approx(0.1, rel=0.15)


# The meter against independent truths


class Mlp(nn.Module):
    """Two layers without biases, called like a classifier."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, classes, bias=False)

    def forward(self, pixels: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        return {"fused": self.last(self.first(pixels))}


@pytest.mark.parametrize("accumulate", [False, True])
def test_meter_on_an_mlp_counts_what_pencil_and_paper_do(accumulate: bool) -> None:
    width, hidden, classes, batch = 64, 512, 2, 8
    model, pixels = Mlp(width, hidden, classes), torch.randn(batch, width)
    meter = count_step(model, pixels, torch.zeros(1), None, accumulate)
    first, last = 4 * width * hidden, 4 * hidden * classes
    assert meter.live[WEIGHTS] == first + last
    # Worst when the first layer's gradient is made: its input is there, the gradient of its output, and the last
    # layer's gradient; the activations are gone. Gradients of before come on top.
    alive = 4 * batch * width + 4 * batch * hidden + first + last + (first if accumulate else 0)
    assert sum(meter.peak.values()) - (first + last) == pytest.approx(alive, abs=256)  # labels and loss
    # A Linear costs 2 FLOPs a weight and row forward, as many for its weight's gradient, and for its input's.
    assert meter.flops["forward"] == 2 * batch * (width * hidden + hidden * classes)
    assert meter.flops["backward"] == 2 * batch * (width * hidden + 2 * hidden * classes)


def real_classifier(p: Params, precision: str) -> GoodsClassifier:
    """The same classifier with weights, as make_classifier builds it."""
    backbone = load_backbone(p.model_name)
    set_trainable(backbone, p)
    if p.gradient_checkpointing:
        enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    width = backbone.config.vision_config.hidden_size
    heads = GoodsHeads(width, width, p)
    model = GoodsClassifier(DualEncoder(backbone, load_processor(p.model_name), p), heads)
    halve_frozen(model, precision)
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CudaDropout
    return model


def real_batch(p: Params, batch: int) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (batch, 3, p.image_size, p.image_size), dtype=torch.uint8)
    return pixels, torch.randint(2, 50, (batch, 1, p.max_text_length))


def profiled_peak(model: nn.Module, pixels: Tensor, input_ids: Tensor, dtype: torch.dtype | None) -> int:
    """Bytes that the CPU allocator hands out at most in a step, as torch's profiler records them."""

    def step() -> None:
        with _cpu_autocast(dtype):
            logits = model(pixels, input_ids)
        loss = sum(F.cross_entropy(v.float(), torch.zeros(len(pixels), dtype=torch.int64)) for v in logits.values())
        del logits
        loss.backward()

    model.train()
    step()  # what is made once and kept
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


CASES = [("full", False, "fp32"), ("full", True, "bf16"), ("lora", False, "bf16"), ("lora", True, "fp32"),
         ("last", False, "bf16")]  # fmt: skip


@pytest.mark.parametrize("tune, checkpointing, precision", CASES)
def test_fake_step_is_the_real_one(sample: Any, tune: str, checkpointing: bool, precision: str) -> None:
    p = Params(model_name=str(sample.model), tune=tune, gradient_checkpointing=checkpointing, image_size=64,
               batch_size=8, hidden_dim=64)  # fmt: skip
    model, (pixels, input_ids), dtype = real_classifier(p, precision), real_batch(p, 8), DTYPES.get(precision)
    fake, real = footprint_of(p, precision), count_step(model, pixels, input_ids, dtype)
    for part, size in real.peak.items():
        assert fake.step[part] == pytest.approx(size, abs=64)  # a scalar more or less
    assert fake.flops["training, backward"] == real.flops["backward"] / 8
    assert fake.flops.get("training, recomputed", 0) == real.flops["recomputed"] / 8
    model.zero_grad()
    counted = sum(real.peak.values()) - real.peak[WEIGHTS] - pixels.nbytes - input_ids.nbytes
    # Not more than the allocator saw; less by what single kernels take for themselves.
    assert 0.9 <= counted / profiled_peak(model, pixels, input_ids, dtype) <= 1.001


def test_accumulation_holds_all_gradients_all_the_time(sample: Any) -> None:
    p = Params(model_name=str(sample.model), image_size=64, batch_size=8, micro_batch_size=4, hidden_dim=64)
    real = count_step(real_classifier(p, "bf16"), *real_batch(p, 4), torch.bfloat16, accumulate=True)
    fake = footprint_of(p, "bf16")
    assert fake.step[GRADIENTS] == real.peak[GRADIENTS] == 4 * fake.trainable
    assert fake.step[ACTIVATIONS] == pytest.approx(real.peak[ACTIVATIONS], abs=64)
    whole = footprint_of(p.model_copy(update={"micro_batch_size": 8}), "bf16")
    assert whole.step[GRADIENTS] < fake.step[GRADIENTS]


def test_flops_are_those_of_torch(sample: Any) -> None:
    p = Params(model_name=str(sample.model), image_size=64, batch_size=4, hidden_dim=64, gradient_checkpointing=True)
    model, batch = real_classifier(p, "fp32").train(), real_batch(p, 4)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it knows no other on a CPU
        sum(F.cross_entropy(v, torch.zeros(4, dtype=torch.int64)) for v in model(*batch).values()).backward()
    with sdpa_kernel(SDPBackend.MATH):
        plain = count_step(model, *batch)
    assert sum(plain.flops.values()) == counter.get_total_flops()
    assert count_step(model, *batch).flops["forward"] == plain.flops["forward"]  # the fused attention's formula


def test_views_are_counted_once() -> None:
    meter = StepMeter()
    with meter:
        whole = torch.zeros(100)
        parts = [whole[:50], whole.view(10, 10).t()]
    assert meter.live[ACTIVATIONS] == 400
    del parts
    assert meter.live[ACTIVATIONS] == 400
    del whole
    assert meter.live[ACTIVATIONS] == 0 and meter.peak == {ACTIVATIONS: 400}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_optimizer_state_is_that_of_the_real_one(sample: Any, optimizer: str) -> None:
    p = Params(model_name=str(sample.model), image_size=64, hidden_dim=64, optimizer=optimizer, layer_decay=0.9)
    model = real_classifier(p, "fp32")
    step = make_optimizer(model, p)
    for group in step.param_groups:
        group["foreach"] = True  # AdamW's own choice on a GPU; Adafactor has none
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.full_like(parameter, 1e-3)
    step.step()
    meter = StepMeter()
    meter.hold([*model.parameters(), *(q.grad for q in model.parameters() if q.grad is not None)], WEIGHTS)
    meter.hold([t for s in step.state.values() for t in s.values() if isinstance(t, Tensor)], OPTIMIZER)
    with meter:
        step.step()
    tensors = [t for s in step.state.values() for t in s.values() if isinstance(t, Tensor) and t.ndim]
    assert sum(optimizer_bytes(q.shape, optimizer) for q in trainable_parameters(model).values()) == sum(
        t.nbytes for t in tensors
    )
    shapes = {name.removeprefix("encoder.backbone."): q.shape for name, q in trainable_parameters(model).items()}
    planned = optimizer_buffers(shapes, block_rates(model.encoder.backbone, p), p)
    scalars = 64 * len(shapes)
    assert meter.most[ACTIVATIONS] <= planned + scalars
    if optimizer == "adamw":
        assert meter.most[ACTIVATIONS] >= planned


# What changes memory and hours, and how


def training_gib(p: Params) -> float:
    return sum(plan_run(p, "T4").memory["training"].values())


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
    assert (soup["training"][FURTHER], soup["evaluation"][FURTHER]) == (0, pytest.approx(2 * fp32))


def test_activations_grow_in_a_line_with_the_batch(small: Any) -> None:
    one, two, four = (
        footprint_of(small(micro_batch_size=n, gradient_checkpointing=True)).step_most[ACTIVATIONS] for n in (2, 4, 8)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


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


def test_frozen_weights_take_16_bits(small: Any) -> None:
    half, full = footprint_of(small(tune="lora"), "fp16"), footprint_of(small(tune="lora"), "fp32")
    assert half.step[WEIGHTS] < full.step[WEIGHTS]
    assert full.step.get(COPIES, 0) == 0


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


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_disk_is_what_the_files_take(sample: Any, tmp_path: Path, tune: str) -> None:
    p = Params(model_name=str(sample.model), image_size=64, hidden_dim=64, tune=tune, n_folds=3, warm_start_epochs=1,
               train_csv="no/train.csv", test_csv="no/test.csv")  # fmt: skip
    made, model = plan_run(p, "T4", products=100), real_classifier(p, "fp32")
    save_trained(model, tmp_path / "model.safetensors")
    assert made.disk["weights of all folds"] == pytest.approx(
        3e-9 * (tmp_path / "model.safetensors").stat().st_size, rel=0.05
    )
    state = {f"model.{name}": q for name, q in trainable_parameters(model).items()}
    state |= {
        f"{moment}.{name}": torch.zeros_like(q) for moment in "mv" for name, q in trainable_parameters(model).items()
    }
    save_state(tmp_path, state, {})
    saved = (tmp_path / "checkpoint/state.safetensors").stat().st_size
    assert made.disk["states of a fold in training"] == pytest.approx(2e-9 * saved, rel=0.05)
    width = model.heads.image_mean.numel() + model.heads.text_mean.numel()
    assert made.disk["embeddings"] == pytest.approx(100 * 4 * width / 1e9)


def test_disk_of_so400m(so400m: Any) -> None:
    full, lora = so400m("T4", **T4_PLANS[0][0]), so400m("T4", **T4_PLANS[2][0])
    assert full.disk["weights of all folds"] < 12 and lora.disk["weights of all folds"] < 0.5
    adamw = so400m("A100", **ADAMW)
    assert any("20 GB" in note for note in adamw.notes) and not any("20 GB" in note for note in full.notes)


# Advice


def tiny_gpu(monkeypatch: pytest.MonkeyPatch, allocated_gib: float) -> None:
    """A T4 on which torch may allocate so much."""
    gpu = GPUS["T4"]
    small = Gpu("T4", with_overhead(allocated_gib), gpu.tflops_16, gpu.tflops_32, bf16=False)
    monkeypatch.setitem(GPUS, "T4", small)


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


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_advice_always_fits(small: Any, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    p = small(wise_ft=True, ema_decay=0.99, image_size=384, eval_batch_size=64)
    tiny_gpu(monkeypatch, share * plan_run(p, "T4").allocated_gib)
    tight = plan_run(p, "T4")
    assert tight.changes and plan_run(p.model_copy(update=tight.changes), "T4").fits
    assert "tune" not in tight.changes


def test_advice_on_so400m(so400m: Any) -> None:
    tight = so400m("T4", tune="full", batch_size=16, image_size=384, mixed_precision="fp16")
    assert not tight.fits
    assert tight.changes["optimizer"] == "adafactor" and "micro_batch_size" in tight.changes
    assert "optimizer=adafactor" in tight.advice and "doesn't fit a T4" in tight.advice


def test_advice_changes_what_is_trained_last(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    p = small(optimizer="adafactor", gradient_checkpointing=True, micro_batch_size=1, eval_batch_size=1)
    lora = plan_run(p.model_copy(update={"tune": "lora"}), "T4")
    assert lora.allocated_gib < plan_run(p, "T4").allocated_gib
    tiny_gpu(monkeypatch, 1.02 * lora.allocated_gib)
    assert plan_run(p, "T4").changes == {"tune": "lora"}
    tiny_gpu(monkeypatch, 1e-4)
    made = plan_run(p, "T4")
    assert made.changes == {} and "larger GPU" in made.advice


# Names, errors and what is shown


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
    size = SMALL | {"projection_dim": 96}
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
