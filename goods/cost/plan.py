"""What a run will cost, before it: parameters, memory, FLOPs, hours and disk, from the parameters and a config.json.

One training step of the real classifier is run on fake tensors, which have shapes and types but neither memory nor
values, and every tensor that lives in between is counted.
"""

from __future__ import annotations

import html
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from textwrap import wrap
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModel, PretrainedConfig

from goods_model import (
    DualEncoder,
    GoodsClassifier,
    GoodsHeads,
    Processor,
    block_rates,
    checkpoint_activations,
    halve_frozen,
    set_trainable,
)
from goods_params import GoodsError, Params, resolve

GIB, GB = 2**30, 10**9
CUDA_CONTEXT_GIB = 0.6  # what CUDA, cuBLAS and cuDNN take for themselves beside torch's allocator, about
ALLOCATOR_SLACK = 0.05  # share that torch's allocator holds on top, in blocks rounded up and left over
ADAFACTOR_BUFFERS = 5  # tensors of the size of the parameter at hand that a step of Adafactor holds at once
DEFAULT_ROWS = (50_000, 10_000)  # products to train on and to predict, where no table tells
KAGGLE_DISK_GB = 20  # of output that a Kaggle session may leave
SMALLER_IMAGE = 224
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PARTS = ("weights", "gradients", "optimizer state", "further weights", "16-bit copies", "activations, buffers")
WEIGHTS, GRADIENTS, OPTIMIZER, FURTHER, COPIES, ACTIVATIONS = PARTS


# ---------------------------------------------------------------------------------------------------------------------
# 8 Plan
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """What a card can do: memory as torch reports it (GiB), dense peaks (TFLOP/s), and how much of them to expect."""

    name: str
    memory_gib: float
    tflops_16: float | None = None
    tflops_32: float | None = None
    bf16: bool = True  # in hardware
    utilisation: float = 0.35  # assumed, not measured: share of the peak that the whole loop reaches


# NVIDIA's data sheets, without sparsity; the smallest memory where a card is sold with several.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 14.6, 65, 8.1, bf16=False, utilisation=0.30),  # 70 W throttle it
        Gpu("P100", 15.9, 18.7, 9.3, bf16=False, utilisation=0.40),
        Gpu("V100", 15.7, 112, 14, bf16=False),
        Gpu("L4", 22.0, 121, 30),
        Gpu("A100", 39.4, 312, 19.5, utilisation=0.40),
        Gpu("H100", 79.1, 989, 67),
        Gpu("H200", 139.8, 989, 67),
    )
}


def find_gpu(name: str | None = None) -> Gpu:
    """The card of that name; without one the GPU there is, else a T4. Raises GoodsError for a name that isn't known."""
    if name is None and not torch.cuda.is_available():
        return GPUS["T4"]
    called = torch.cuda.get_device_name() if name is None else name
    known = next((gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name}\b", called, re.IGNORECASE)), None)
    if name is not None:
        if known is None:
            raise GoodsError(f"there is no plan for the GPU '{name}'; the known ones are {', '.join(GPUS)}")
        return known
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    if known is None:
        return Gpu(called, memory, bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    return replace(known, memory_gib=memory)


@dataclass(frozen=True)
class Plan:
    """What a run will cost.

    memory: {phase: {part: GiB}} that torch allocates at the phase's worst moment; flops: a product; hours and disk (GB)
    by what they go to; changes: parameters to change so that it fits (empty when it does, or when none would do).
    """

    params: Params
    gpu: Gpu
    precision: str
    image_size: int
    micro_batch_size: int
    trainable: int
    total: int
    memory: dict[str, dict[str, float]]
    flops: dict[str, float]
    hours: dict[str, float]
    disk: dict[str, float]
    rows: tuple[int, int]
    changes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def allocated_gib(self) -> float:
        """What torch.cuda.max_memory_allocated() should show."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def total_gib(self) -> float:
        """Memory of the GPU that is taken at the worst moment, CUDA's own and the allocator's slack included."""
        return with_overhead(self.allocated_gib)

    @property
    def fits(self) -> bool:
        """Whether the run fits the GPU's memory."""
        return self.total_gib <= self.gpu.memory_gib

    @property
    def advice(self) -> str:
        """A sentence on the memory, with the parameters to change when it doesn't suffice."""
        if self.fits:
            return f"fits a {self.gpu.name}: {self.total_gib:.1f} of {self.gpu.memory_gib:.1f} GiB"
        wanted = " ".join(f"{name}={_yaml(value)}" for name, value in self.changes.items())
        what = f"set {wanted}" if wanted else "no parameter mends that; a larger GPU or a smaller model is needed"
        return f"doesn't fit a {self.gpu.name}: {self.total_gib:.1f} of {self.gpu.memory_gib:.1f} GiB; {what}"

    def table(self) -> pd.DataFrame:
        """One row a figure: part, item, value, unit."""
        rows = [("parameters", "trained", self.trainable / 1e6, "M"), ("parameters", "all", self.total / 1e6, "M")]
        for phase, parts in self.memory.items():
            rows += [(f"memory, {phase}", part, value, "GiB") for part, value in parts.items()]
        rows += [("memory", "CUDA context and slack", self.total_gib - self.allocated_gib, "GiB")]
        rows += [("memory", "at most", self.total_gib, "GiB"), ("memory", "GPU", self.gpu.memory_gib, "GiB")]
        rows += [("work a product", name, value / 1e9, "GFLOP") for name, value in self.flops.items()]
        rows += [("time", name, value, "h") for name, value in self.hours.items()]
        rows += [("time", "all", sum(self.hours.values()), "h")] if self.hours else []
        rows += [("disk", name, value, "GB") for name, value in self.disk.items()]
        rows += [("disk", "all", sum(self.disk.values()), "GB")]
        return pd.DataFrame(rows, columns=["part", "item", "value", "unit"])

    def __str__(self) -> str:
        return "\n".join(_report(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def plan(p: Params, gpu: str | None = None, products: int | None = None) -> Plan:
    """What a run with these parameters will cost on one GPU: T4, P100, V100, L4, A100, H100 or H200.

    No weights are needed, only the model directory's config.json. `products` stands for the rows of train.csv, which
    are counted where the table exists, as are test.csv's. A debug run's plan is that of the run it stands for.
    Raises GoodsError for an unknown GPU, a missing or unusable config.json, parameters that don't fit the model, and
    other kinds than dual.
    """
    card = find_gpu(gpu)
    if p.kind != "dual":
        raise GoodsError(f"plans are made for dual encoders, not for kind {p.kind}")
    config = read_config(p.model_name)
    precision = p.mixed_precision
    if precision == "auto":
        precision = "bf16" if card.bf16 else "fp16"
    notes = []
    if precision == "bf16" and not card.bf16:
        notes.append(f"a {card.name} only emulates bf16: set mixed_precision=fp16")
    rows, said = count_rows(p, products)
    notes.append(said)
    if p.text_windows > 1:
        notes.append(f"every text is taken to fill its {p.text_windows} windows")

    @cache  # suggestions are counted, too, and differ in no more than a few parameters
    def counted(p: Params) -> Footprint:
        return measure_footprint(config, p, precision)

    def measure(p: Params) -> Footprint:
        return counted(p.model_copy(update={"optimizer": "adamw", "wise_ft": False, "ema_decay": 0.0, "soup": False}))

    footprint = measure(p)
    hours = estimate_hours(p, footprint.flops, rows, card, precision)
    if hours:
        notes.append(f"hours assume {card.utilisation:.0%} of the {card.name}'s {_peak(card, precision):g} TFLOP/s, "
                     "and photos that are read as fast")  # fmt: skip
    disk = estimate_disk(p, footprint, rows)
    if sum(disk.values()) > KAGGLE_DISK_GB:
        notes.append(f"a Kaggle session may leave {KAGGLE_DISK_GB} GB: optimizer=adafactor and tune=lora need less")
    memory = {phase: {part: n / GIB for part, n in parts.items()} for phase, parts in footprint.phases(p).items()}
    return Plan(
        p, card, precision, footprint.image_size, micro_batch_size(p), footprint.trainable, footprint.total,
        memory, footprint.flops, hours, disk, rows, suggest(p, card.memory_gib, measure), tuple(notes),
    )  # fmt: skip


def with_overhead(allocated_gib: float) -> float:
    """Memory of the GPU that is taken when torch has allocated so much."""
    return allocated_gib * (1 + ALLOCATOR_SLACK) + CUDA_CONTEXT_GIB


def micro_batch_size(p: Params) -> int:
    """Products that go through the model at once in training."""
    return min(p.micro_batch_size or p.batch_size, p.batch_size)


def read_config(model_name: str) -> PretrainedConfig:
    """The config.json of a local model directory; raises GoodsError when it is missing or of no use."""
    folder = resolve(model_name)
    if not (folder / "config.json").is_file():
        raise GoodsError(f"there is no {folder / 'config.json'}; a plan needs at least that file of the model")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers, json and huggingface_hub each have their own
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> GoodsError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return GoodsError(f"{folder / 'config.json'} can't be used: {why}; get it again")


def count_rows(p: Params, products: int | None = None) -> tuple[tuple[int, int], str]:
    """Products to train on and to predict, and a note on where the numbers come from."""
    if products is not None:
        if products < 1:
            raise GoodsError(f"products is {products}; a plan needs at least one")
        train, source = products, "given"
    else:
        train, source = _csv_rows(resolve(p.train_csv)), "in train.csv"
    test = _csv_rows(resolve(p.test_csv))
    assumed = [name for name, rows in (("train", train), ("test", test)) if rows is None]
    train, test = train or DEFAULT_ROWS[0], test or DEFAULT_ROWS[1]
    counted = f"{train:,} products to train on ({'assumed' if 'train' in assumed else source})"
    return (train, test), f"{counted}, {test:,} to predict ({'assumed' if 'test' in assumed else 'in test.csv'})"


def _csv_rows(path: Path) -> int | None:
    try:
        return len(pd.read_csv(path, usecols=[0], dtype=str, encoding="utf-8-sig")) or None
    except (OSError, ValueError):  # read_goods says what is wrong with a table; a plan does without
        return None


# Memory and FLOPs, counted on a step ---------------------------------------------------------------------------------


class StepMeter(TorchDispatchMode):
    """While it is entered, counts FLOPs and the bytes of all tensor storages alive, each storage once.

    live and peak: bytes by kind, now and when the sum was highest; most: each kind's own highest. A storage is an
    activation unless `hold` says otherwise, or it is the 16-bit copy that autocast makes of a weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.most: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.phase = "forward"
        self._peak_bytes = 0
        self._storages: dict[int, tuple[str, int, weakref.ref]] = {}

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Counts these tensors' storages under that kind."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if known := self._storages.pop(id(storage), None):
                self.live[known[0]] -= known[1]
            self._add(storage, kind)

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: weakref.ref) -> None:
            kind, size, _ = self._storages.pop(key)
            self.live[kind] -= size

        self._storages[key] = (kind, size, weakref.ref(storage, gone))
        self.live[kind] += size
        self.most[kind] = max(self.most[kind], self.live[kind])
        if (total := sum(self.live.values())) > self._peak_bytes:
            self._peak_bytes, self.peak = total, dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # three of four calls on fake tensors; the long way doubles the time
            return args[0].fake_device
        if isinstance(args[0] if args else None, FakeTensor):
            func, args = _all_true(func, args)
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _FLOPS:
            # In the backward pass gradients are enabled only while checkpointed blocks are computed once more.
            again = self.phase == "backward" and torch.is_grad_enabled()
            self.flops["recomputed" if again else self.phase] += _FLOPS[packet](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._storages:
                self._add(storage, COPIES if self._is_copy(func, args, tensor) else ACTIVATIONS)
        return out

    def _is_copy(self, func: Any, args: tuple, tensor: Tensor) -> bool:
        if func is not torch.ops.aten._to_copy.default or tensor.dtype not in DTYPES.values():
            return False
        return self._storages.get(id(args[0].untyped_storage()), ("",))[0] == WEIGHTS


def _all_true(func: Any, args: tuple) -> tuple[Any, tuple]:
    """The call with its boolean mask taken as all true, since a fake mask has no values: every text window is used."""
    aten = torch.ops.aten
    if func is aten.nonzero.default:
        mask = args[0]
        return aten.new_empty.default, (mask.to(torch.int64), (mask.numel(), mask.ndim))
    if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
        mask = args[1][0]
        rows = mask.new_empty(mask.numel(), dtype=torch.int64)
        return func, (args[0], [rows] * mask.ndim + list(args[1][1:]))
    return func, args


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# torch's own formulas, those of FlopCounterMode, which leave out the CPU's attention.
_FLOPS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class CudaDropout(nn.Dropout):
    """Dropout as on CUDA, which keeps a mask of one byte an element; the CPU keeps one as wide as the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, unchanged."""
        if not self.training or self.p == 0:
            return input
        return torch.native_dropout(input, self.p, True)[0]


def count_step(
    model: nn.Module, pixels: Tensor, input_ids: Tensor, dtype: torch.dtype | None = None, accumulate: bool = False
) -> StepMeter:
    """Forward, loss and backward of a classifier's micro batch under a meter; on real or fake CPU tensors.

    dtype: of autocast, or None. accumulate: gradients of an earlier micro batch are there already.
    """
    # Fake CUDA tensors need a GPU: without one autocast turns itself off and the backward pass asks the driver for a
    # context (ran with torch 2.10), or a build for CPUs aborts (2.13). What differs on a CPU, beside CudaDropout: layer
    # norms and softmax keep 16 bits where CUDA's autocast goes to 32 (only pooled vectors meet that); its attention
    # stands for the memory-efficient kernel (both keep inputs, output and one sum a query); cuDNN takes no workspace.
    meter = StepMeter()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    meter.hold([*model.parameters(), *model.buffers()], WEIGHTS)
    meter.hold([pixels, input_ids], ACTIVATIONS)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if accumulate else None
    meter.hold([parameter.grad for parameter in trained if accumulate], GRADIENTS)
    hooks = [q.register_post_accumulate_grad_hook(lambda q: meter.hold([q.grad], GRADIENTS)) for q in trained]
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    model.train()
    with meter:
        with _cpu_autocast(dtype):  # as accelerate does: around the forward pass, not around the loss
            logits = model(pixels, input_ids)
        loss = sum(F.cross_entropy(values.float(), labels) for values in logits.values())
        del logits
        meter.phase = "backward"
        loss.backward()
    for hook in hooks:
        hook.remove()
    for parameter in trained:
        parameter.grad = None
    return meter


def count_embedding(
    encoder: DualEncoder, pixels: Tensor, input_ids: Tensor, dtype: torch.dtype | None = None
) -> tuple[StepMeter, int, int]:
    """The encoder's forward pass without gradients, FLOPs by "image" and "text"; and image_dim, text_dim."""
    meter = StepMeter()
    meter.hold([*encoder.parameters(), *encoder.buffers()], WEIGHTS)
    meter.hold([pixels, input_ids], ACTIVATIONS)
    encoder.eval()
    with torch.no_grad(), meter, _cpu_autocast(dtype):
        meter.phase = "image"
        image = encoder.embed_images(pixels)
        meter.phase = "text"
        text = encoder.embed_texts(input_ids)
    return meter, image.shape[1], text.shape[1]


def _cpu_autocast(dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()


@dataclass(frozen=True)
class Footprint:
    """What was counted: bytes of a step and of an evaluation by kind, the trained parameters, FLOPs."""

    image_size: int
    total: int  # parameters
    trained: dict[str, torch.Size]  # by the names of block_rates, the heads' by their own
    rates: dict[str, float]
    step: dict[str, int]  # at the step's worst moment
    step_most: Counter[str]  # each kind at its own worst moment
    evaluation: dict[str, int]
    evaluation_most: Counter[str]
    embedding: int  # of a product, in the cache
    flops: dict[str, float]  # a product

    @property
    def trainable(self) -> int:
        """Parameters that are trained."""
        return sum(shape.numel() for shape in self.trained.values())

    def optimizer(self, p: Params) -> int:
        """Bytes of the optimizer's state."""
        return sum(optimizer_bytes(shape, p.optimizer) for shape in self.trained.values())

    def phases(self, p: Params) -> dict[str, dict[str, int]]:
        """{phase: {part: bytes}} that torch allocates at each phase's worst moment."""
        if p.tune == "head":
            return {"embedding": dict.fromkeys(PARTS, 0) | self.evaluation}
        fp32 = 4 * self.trainable
        always = {WEIGHTS: self.step[WEIGHTS], OPTIMIZER: self.optimizer(p), FURTHER: fp32 if p.ema_decay else 0}
        # An average stands in for the weights while it is scored, and these are kept meanwhile; a soup is mixed first.
        seen = self.evaluation | always | {FURTHER: always[FURTHER] + (2 * fp32 if p.soup else always[FURTHER])}
        found = {
            "training": self.step | always,
            "optimizer": always | {GRADIENTS: fp32, ACTIVATIONS: optimizer_buffers(self.trained, self.rates, p)},
            "evaluation": seen,
        }
        if p.wise_ft:  # the tuned, the mixed, and the model's own weights while the mixed ones stand in for them
            found["interpolation"] = seen | {FURTHER: always[FURTHER] + 3 * fp32}
        return {phase: dict.fromkeys(PARTS, 0) | parts for phase, parts in found.items()}

    def allocated(self, p: Params) -> int:
        """Bytes that torch allocates at the worst moment."""
        return max(sum(parts.values()) for parts in self.phases(p).values())


def measure_footprint(config: PretrainedConfig, p: Params, precision: str) -> Footprint:
    """Builds the classifier that p describes without memory, runs an evaluation and a step, and counts."""
    backbone = _backbone(config, p)
    with torch.device("meta"):
        # Of the processor only pad token, mean and deviation are used, and no value matters here.
        encoder = DualEncoder(backbone, Processor(SimpleNamespace(pad_token_id=0), (0.5,) * 3, (0.5,) * 3), p)
    halve_frozen(encoder, precision)
    dtype, micro = DTYPES.get(precision), micro_batch_size(p)
    with FakeTensorMode():
        seen, *dims = count_embedding(_fake(encoder), *_inputs(encoder, p, p.eval_batch_size), dtype)
        model = GoodsClassifier(encoder, GoodsHeads(*dims, p))
        flops = {f"forward, {name}": seen.flops[name] / p.eval_batch_size for name in ("image", "text")}
        step = StepMeter()
        if p.tune != "head":
            for module in model.modules():
                if type(module) is nn.Dropout:
                    module.__class__ = CudaDropout
            step = count_step(model, *_inputs(encoder, p, micro), dtype, accumulate=micro < p.batch_size)
            flops |= {f"training, {name}": n / micro for name, n in step.flops.items()}
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Footprint(
        image_size=encoder.image_size,
        total=sum(parameter.numel() for parameter in model.parameters()),
        trained={name.removeprefix("encoder.backbone."): shape for name, shape in trained.items()},
        rates=block_rates(backbone, p),
        step=step.peak,
        step_most=step.most,
        evaluation=seen.peak,
        evaluation_most=seen.most,
        embedding=4 * sum(dims),
        flops=flops,
    )


def _backbone(config: PretrainedConfig, p: Params) -> nn.Module:
    with torch.device("meta"):
        try:
            backbone = AutoModel.from_config(config, dtype=torch.float32)
        except Exception as error:  # a config.json can be wrong in any way
            raise _unusable(resolve(p.model_name), error) from error
        if not hasattr(backbone, "get_image_features") or not hasattr(backbone, "get_text_features"):
            kind = type(backbone).__name__
            raise GoodsError(f"{resolve(p.model_name)} holds a {kind}; a dual encoder such as SigLIP is needed")
        set_trainable(backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(backbone)
    return backbone


def _fake(module: nn.Module) -> nn.Module:
    """The module with fake CPU tensors in place of its meta tensors, which autocast leaves alone."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def _inputs(encoder: DualEncoder, p: Params, batch: int) -> tuple[Tensor, Tensor]:
    size = encoder.image_size
    pixels = torch.empty(batch, 3, size, size, dtype=torch.uint8)
    return pixels, torch.empty(batch, p.text_windows, p.max_text_length, dtype=torch.int64)


def optimizer_bytes(shape: torch.Size, optimizer: str) -> int:
    """State of a parameter in fp32: two moments (adamw), or a second moment in rows and columns (adafactor)."""
    if optimizer == "adamw":
        return 8 * shape.numel()
    return 4 * (shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel() if len(shape) > 1 else shape.numel())


def optimizer_buffers(trained: dict[str, torch.Size], rates: dict[str, float], p: Params) -> int:
    """What a step holds for a moment: on a GPU, AdamW takes the roots of a whole parameter group at once."""
    if p.optimizer == "adafactor":
        return ADAFACTOR_BUFFERS * 4 * max(shape.numel() for shape in trained.values())
    groups: Counter[tuple[float, bool]] = Counter()
    for name, shape in trained.items():
        groups[rates.get(name, p.head_learning_rate), len(shape) > 1] += 4 * shape.numel()
    return max(groups.values())


# What to change ------------------------------------------------------------------------------------------------------


def suggest(p: Params, memory_gib: float, measure: Callable[[Params], Footprint]) -> dict[str, Any]:
    """The parameters to change so that the run fits, least harm first; empty when it fits or nothing helps.

    Smaller batches at once come first, then gradient checkpointing, then smaller photos. What no batch has a part in
    (wise_ft, optimizer, tune) is changed only when it must be.
    """
    limit = (memory_gib - CUDA_CONTEXT_GIB) / (1 + ALLOCATOR_SLACK) * GIB
    if measure(p).allocated(p) <= limit:
        return {}
    for fixed in _fixed_changes(p):
        tuned = p.model_copy(update=fixed)
        for change in _batch_changes(tuned, measure(tuned).image_size):
            trial = tuned.model_copy(update=change)
            footprint = measure(trial)
            smaller = _smaller_batches(trial, footprint, limit)
            if smaller is not None:
                return fixed | change | smaller
            if max(_floors(trial, footprint, micro_batch_size(trial) < trial.batch_size).values()) > limit:
                break  # no batch is small enough
    return {}


def _fixed_changes(p: Params) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = [{}]
    if p.tune != "head" and p.wise_ft:
        changes.append({"wise_ft": False})
    if p.tune in ("full", "last"):
        changes += [changes[-1] | {"optimizer": "adafactor"}] if p.optimizer == "adamw" else []
        changes.append({"tune": "lora"})
    return changes if p.tune == "head" else [*changes, {"tune": "head"}]


def _batch_changes(p: Params, image_size: int) -> list[dict[str, Any]]:
    changes: list[dict[str, Any]] = [{}]
    if p.tune != "head" and not p.gradient_checkpointing:
        changes.append({"gradient_checkpointing": True})
    return [*changes, changes[-1] | {"image_size": SMALLER_IMAGE}] if image_size > SMALLER_IMAGE else changes


def _floors(p: Params, footprint: Footprint, accumulate: bool) -> dict[str, int]:
    """Bytes of each phase that no batch size changes, at most: kinds that peak at different moments are added up."""
    floors = {}
    for phase, parts in footprint.phases(p).items():
        floors[phase] = sum(parts[part] for part in (WEIGHTS, OPTIMIZER, FURTHER))
        if phase == "optimizer":
            floors[phase] += parts[GRADIENTS] + parts[ACTIVATIONS]
        elif phase == "training":  # without accumulation gradients come as copies go
            both = (4 * footprint.trainable, footprint.step_most[COPIES])
            floors[phase] += sum(both) if accumulate else max(both)
        else:
            floors[phase] += footprint.evaluation_most[COPIES]
    return floors


def _smaller_batches(p: Params, footprint: Footprint, limit: float) -> dict[str, int] | None:
    """The batch sizes to lower so that all phases fit, as changes; None when that doesn't suffice."""
    changes: dict[str, int] = {}
    floors = _floors(p, footprint, accumulate=True)  # as in smaller micro batches
    for phase, parts in footprint.phases(p).items():
        if sum(parts.values()) <= limit:
            continue
        name, batch, most = "eval_batch_size", p.eval_batch_size, footprint.evaluation_most
        if phase == "training":
            name, batch, most = "micro_batch_size", micro_batch_size(p), footprint.step_most
        products = min(batch // 2, int((limit - floors[phase]) / most[ACTIVATIONS] * batch))
        if products < 1:
            return None
        changes[name] = min(changes.get(name, batch), 2 ** int(math.log2(products)))
    return changes


# Hours and disk ------------------------------------------------------------------------------------------------------


def estimate_hours(
    p: Params, flops: dict[str, float], rows: tuple[int, int], gpu: Gpu, precision: str
) -> dict[str, float]:
    """Hours of all folds by what they go to; empty for a card whose peak isn't known."""
    peak = _peak(gpu, precision)
    if peak is None:
        return {}
    (train, test), folds = rows, len(p.folds)
    forward = sum(n for name, n in flops.items() if name.startswith("forward"))
    if p.tune == "head":
        work = {"embeddings, once": (train + test) * forward}
    else:
        step = sum(n for name, n in flops.items() if name.startswith("training"))
        validations = p.num_epochs * (1 + p.soup) + 1 + (3 if p.wise_ft else 0)
        twice = 2 if p.test_time_flip else 1
        work = {"embeddings, once": train * forward} if p.warm_start_epochs else {}
        work |= {
            "training": folds * p.num_epochs * train * (1 - 1 / p.n_folds) * step,
            "validation": folds * validations * train / p.n_folds * forward * twice,
            "test prediction": folds * test * forward * twice,
        }
    return {name: n / (peak * 1e12 * gpu.utilisation) / 3600 for name, n in work.items()}


def _peak(gpu: Gpu, precision: str) -> float | None:
    return gpu.tflops_32 if precision == "fp32" else gpu.tflops_16


def estimate_disk(p: Params, footprint: Footprint, rows: tuple[int, int]) -> dict[str, float]:
    """GB of disk by what they hold: weights of all folds, one fold's two saved states, the cache of embeddings."""
    heads = sum(shape.numel() for name, shape in footprint.trained.items() if name.startswith("heads."))
    backbone, scale = footprint.trainable - heads, 2 * footprint.embedding  # mean and deviation of each dimension
    state = footprint.optimizer(p) + 4 * footprint.trainable * (1 + bool(p.ema_decay) + p.soup)
    train, test = rows
    embedded = train + test if p.tune == "head" else train if p.warm_start_epochs else 0
    sizes = {
        "weights of all folds": len(p.folds) * (2 * backbone + 4 * heads + scale),
        "states of a fold in training": 2 * state,
        "embeddings": embedded * footprint.embedding,
    }
    return {name: size / GB for name, size in sizes.items() if size}


# The report ----------------------------------------------------------------------------------------------------------


def _report(plan: Plan) -> Iterator[str]:
    """The lines of a plan, at most 80 characters each."""
    p = plan.params
    at_once = f"{p.batch_size} products a step"
    if p.tune != "head":
        at_once += f", {plan.micro_batch_size} at once, {p.optimizer}"
        at_once += ", gradient checkpointing" if p.gradient_checkpointing else ""
    windows = f"{p.text_windows} x " if p.text_windows > 1 else ""
    yield f"{Path(p.model_name).name}, tune {p.tune}, {plan.precision}, on one {plan.gpu.name}"
    yield from wrap(f"image {plan.image_size}, text {windows}{p.max_text_length} tokens, {at_once}", 80)
    share = plan.trainable / plan.total
    yield f"{plan.trainable / 1e6:.1f} M of {plan.total / 1e6:.1f} M parameters trained ({share:.1%})"
    yield ""
    yield f"{'memory, GiB':23}" + "".join(f"{phase:>14}" for phase in plan.memory)
    for part in PARTS:
        yield f"  {part:21}" + "".join(f"{parts[part]:14.2f}" for parts in plan.memory.values())
    yield f"  {'together':21}" + "".join(f"{sum(parts.values()):14.2f}" for parts in plan.memory.values())
    yield f"  {'with CUDA and slack':21}{plan.total_gib:14.2f}  of {plan.gpu.memory_gib:.1f}"
    for title, values, unit in (
        ("GFLOP a product", plan.flops, 1e9),
        ("hours on one GPU", plan.hours, 1),
        ("disk, GB", plan.disk, 1),
    ):
        yield ""
        yield title
        yield from (f"  {name:28}{value / unit:7,.2f}" for name, value in values.items())
        if unit == 1:
            yield f"  {'together':28}{sum(values.values()):7,.2f}" if values else f"  not known for {plan.gpu.name}"
    yield ""
    for sentence in (plan.advice, *plan.notes):
        yield from wrap(sentence, 80, subsequent_indent="  ", break_on_hyphens=False)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
