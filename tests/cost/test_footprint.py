"""What is counted of memory, FLOPs and disk, against independent truths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from goods.cost.empty import read_config
from goods.cost.footprint import (
    ACTIVATIONS,
    COPIES,
    DTYPES,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
    CudaDropout,
    Footprint,
    StepMeter,
    count_step,
    cpu_autocast,
    measure_footprint,
    optimizer_buffers,
    optimizer_bytes,
)
from goods.cost.plan import plan_run
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.heads import GoodsClassifier, GoodsHeads
from goods.models.tuning import block_rates, halve_frozen, save_trained, set_trainable
from goods.params import Params
from goods.run import Run
from goods.training.checkpoint import save_state
from goods.training.optim import make_optimizer, trainable_parameters


def footprint_of(p: Params, precision: str = "fp16") -> Footprint:
    return measure_footprint(read_config(p.model_name), p, precision)


class Mlp(nn.Module):
    """Two layers without biases, called like a classifier."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, classes, bias=False)

    def forward(self, pixels: Tensor, input_ids: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
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
        with cpu_autocast(dtype):
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_activations_grow_in_a_line_with_the_batch(small: Any) -> None:
    one, two, four = (
        footprint_of(small(micro_batch_size=n, gradient_checkpointing=True)).step_most[ACTIVATIONS] for n in (2, 4, 8)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


@pytest.mark.slow
def test_frozen_weights_take_16_bits(small: Any) -> None:
    half, full = footprint_of(small(tune="lora"), "fp16"), footprint_of(small(tune="lora"), "fp32")
    assert half.step[WEIGHTS] < full.step[WEIGHTS]
    assert full.step.get(COPIES, 0) == 0


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_disk_is_what_the_files_take(sample: Any, tmp_path: Path, tune: str) -> None:
    p = Params(model_name=str(sample.model), image_size=64, hidden_dim=64, tune=tune, n_folds=3, warm_start_epochs=1,
               train_csv="no/train.csv", test_csv="no/test.csv")  # fmt: skip
    made, model = plan_run(p, "T4", products=100), real_classifier(p, "fp32")
    save_trained(model, tmp_path / "weights.safetensors")
    assert made.disk["weights of all folds"] == pytest.approx(
        3e-9 * (tmp_path / "weights.safetensors").stat().st_size, rel=0.05
    )
    state = {f"model.{name}": q for name, q in trainable_parameters(model).items()}
    state |= {
        f"{moment}.{name}": torch.zeros_like(q) for moment in "mv" for name, q in trainable_parameters(model).items()
    }
    fold = Run(tmp_path).fold(0)
    save_state(fold, state, {})
    saved = fold.state.stat().st_size
    assert made.disk["states of a fold in training"] == pytest.approx(2e-9 * saved, rel=0.05)
    width = model.heads.image_mean.numel() + model.heads.text_mean.numel()
    assert made.disk["embeddings"] == pytest.approx(100 * 4 * width / 1e9)
