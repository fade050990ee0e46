"""What a run will cost, before it: parameters, memory, FLOPs, hours and disk, from the parameters and a config.json.

One training step of the real classifier is run on fake tensors, which have shapes and types but neither memory nor
values, and every tensor that lives in between is counted.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
import torch

from goods.cost.footprint import (
    ACTIVATIONS,
    COPIES,
    FURTHER,
    GRADIENTS,
    OPTIMIZER,
    PARTS,
    WEIGHTS,
    Footprint,
    measure_footprint,
    micro_batch_size,
    read_config,
)
from goods.errors import GoodsError
from goods.files import resolve
from goods.params import Params

GIB, GB = 2**30, 10**9
CUDA_CONTEXT_GIB = 0.6  # what CUDA, cuBLAS and cuDNN take for themselves beside torch's allocator, about
ALLOCATOR_SLACK = 0.05  # share that torch's allocator holds on top, in blocks rounded up and left over
DEFAULT_ROWS = (50_000, 10_000)  # products to train on and to predict, where no table tells
KAGGLE_DISK_GB = 20  # of output that a Kaggle session may leave
SMALLER_IMAGE = 224


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


def plan_run(p: Params, gpu: str | None = None, products: int | None = None) -> Plan:
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


def estimate_hours(
    p: Params, flops: dict[str, float], rows: tuple[int, int], gpu: Gpu, precision: str
) -> dict[str, float]:
    """Hours of all folds by what they go to; empty for a card whose peak isn't known."""
    peak = _peak(gpu, precision)
    if peak is None:
        return {}
    (train, test), folds = rows, len(p.chosen_folds)
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
        "weights of all folds": len(p.chosen_folds) * (2 * backbone + 4 * heads + scale),
        "states of a fold in training": 2 * state,
        "embeddings": embedded * footprint.embedding,
    }
    return {name: size / GB for name, size in sizes.items() if size}


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
