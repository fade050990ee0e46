"""What a run will take, known before it: trained parameters, memory, FLOPs, hours and disk."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd

from goods.cost.dims import encoded_dim, vectors_bytes
from goods.cost.empty import read_config
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
)
from goods.cost.frozen import measure_further, measure_heads
from goods.cost.gpus import GIB, Gpu, find_gpu
from goods.data.further import further_columns
from goods.data.table_files import rows_of
from goods.errors import GoodsError, listing
from goods.files import resolve
from goods.models.encoders import SIDES
from goods.models.text_encoder import PLAIN_LENGTH
from goods.params import Params
from goods.places import table_pieces

GB = 10**9
CUDA_CONTEXT_GIB = 0.6  # about what CUDA, cuBLAS and cuDNN take beside torch's allocator
ALLOCATOR_SLACK = 0.05  # share that torch's allocator holds on top: blocks are rounded up, and some stay unused
DEFAULT_ROWS = (50_000, 10_000)  # products to train on and to predict, where there is no table to count
KAGGLE_DISK_GB = 20  # of output that a Kaggle session may leave
SMALLER_IMAGE = 224
FURTHER_TEXTS = "further texts"  # what the encoders in extra_embeddings read, once
HEADS, HEADS_STEP = "heads", 0.004  # seconds of a step of heads beside its arithmetic: optimizer, batch, log
# A notebook's page may set <pre> in its text font, and break lines: then columns don't line up.
MONOSPACE = "font-family: monospace; white-space: pre; overflow-x: auto; line-height: 1.25"


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run will take.

    memory: {phase: {part: GiB}} that torch allocates when the phase takes most. flops: per product. hours and disk (GB)
    by what they are spent on. rows: products to train on and to predict. dims: numbers per product that the heads read,
    by where they come from; vectors: GiB that these take in the machine's memory. changes: parameters to change so that
    the run fits the GPU; empty when it fits, or when no change is enough.
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
    sides: tuple[str, ...] = SIDES
    dims: dict[str, int] = field(default_factory=dict)
    vectors: float = 0.0
    changes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def allocated_gib(self) -> float:
        """What torch.cuda.max_memory_allocated() should show."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def total_gib(self) -> float:
        """Most of the GPU's memory that is taken at any moment, CUDA's own and the allocator's slack included; of the
        machine's, where there is no GPU, with the vectors."""
        return with_overhead(self.allocated_gib) + (self.vectors if self.gpu.is_cpu else 0.0)

    @property
    def fits(self) -> bool:
        """Whether the run fits the GPU's memory."""
        return self.total_gib <= self.gpu.memory_gib

    @property
    def where(self) -> str:
        """The device in a sentence."""
        return "this machine's memory" if self.gpu.is_cpu else f"a {self.gpu.name}"

    @property
    def advice(self) -> str:
        """A sentence on the memory, with the parameters to change when it isn't enough."""
        if self.fits:
            return f"fits {self.where}: {self.total_gib:.1f} of {self.gpu.memory_gib:.1f} GiB"
        wanted = " ".join(f"{name}={_yaml(value)}" for name, value in self.changes.items())
        what = f"set {wanted}" if wanted else "no parameter helps; a larger GPU or a smaller model is needed"
        return f"doesn't fit {self.where}: {self.total_gib:.1f} of {self.gpu.memory_gib:.1f} GiB; {what}"

    def table(self) -> pd.DataFrame:
        """One row per number: part, item, value, unit."""
        rows = [("parameters", "trained", self.trainable / 1e6, "M"), ("parameters", "all", self.total / 1e6, "M")]
        for phase, parts in self.memory.items():
            rows += [(f"memory, {phase}", part, value, "GiB") for part, value in parts.items()]
        rows += [("memory", "CUDA context and slack", with_overhead(self.allocated_gib) - self.allocated_gib, "GiB")]
        rows += [("memory", "vectors, of the machine's", self.vectors, "GiB")]
        rows += [("memory", "at most", self.total_gib, "GiB"), ("memory", "GPU", self.gpu.memory_gib, "GiB")]
        rows += [("work per product", name, value / 1e9, "GFLOP") for name, value in self.flops.items()]
        rows += [("time", name, value, "h") for name, value in self.hours.items()]
        rows += [("time", "all", sum(self.hours.values()), "h")] if self.hours else []
        rows += [("disk", name, value, "GB") for name, value in self.disk.items()]
        rows += [("disk", "all", sum(self.disk.values()), "GB")]
        return pd.DataFrame(rows, columns=["part", "item", "value", "unit"])

    def __str__(self) -> str:
        return "\n".join(_report(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f'<pre style="{MONOSPACE}">{html.escape(str(self))}</pre>'


def plan_run(p: Params, gpu: str | None = None, products: int | None = None, sides: tuple[str, ...] = SIDES) -> Plan:
    """What a run will take on one GPU: T4, P100, V100, L4, A100, H100 or H200.

    sides: those of a product that its encoder looks at, "image" or both "image" and "text"; none, where heads learn
    from the vectors in embeddings_files. No weights are needed, only the config.json of the model directories, but
    files of vectors are read. The rows of train.csv and test.csv are counted where these exist, and the values of
    further columns; `products` is given in place of train.csv's rows. A debug run's plan is that of the full run.
    Raises GoodsError for an unknown GPU, a missing or unusable config.json, another kind of model, files of vectors
    that can't be read, and parameters that don't fit the model.
    """
    card, config = find_gpu(gpu), read_config(p.model_name) if sides else None
    p = p if sides else p.model_copy(update={"tune": "head"})
    precision = p.mixed_precision
    if precision == "auto":
        precision = "fp32" if card.is_cpu else "bf16" if card.bf16 else "fp16"
    rows, rows_note = count_rows(p, products)

    @cache  # the suggestions differ from p in few parameters, and many share a footprint
    def cached(p: Params) -> Footprint:
        return measure_footprint(config, p, precision, sides) if config else measure_heads(p)

    def measure(p: Params) -> Footprint:
        return cached(p.model_copy(update={"optimizer": "adamw", "wise_ft": False, "ema_decay": 0.0, "soup": False}))

    footprint, further = measure(p), measure_further(p, precision)
    memory, flops = footprint.phases(p), footprint.flops
    if further:
        memory, flops = memory | {FURTHER_TEXTS: further.memory}, flops | {FURTHER_TEXTS: further.flops}
    vectors = vectors_bytes(p, footprint.dims, footprint.embedded, rows[0]) / GIB
    hours = estimate_hours(p, flops, footprint.embedded, rows, card, precision)
    disk = estimate_disk(p, footprint, rows)
    return Plan(
        params=p,
        gpu=card,
        precision=precision,
        image_size=footprint.image_size,
        micro_batch_size=micro_batch_size(p),
        trainable=footprint.trainable,
        total=footprint.total,
        memory={phase: {part: n / GIB for part, n in parts.items()} for phase, parts in memory.items()},
        flops=flops,
        hours=hours,
        disk=disk,
        rows=rows,
        sides=sides,
        dims=footprint.dims,
        vectors=vectors,
        changes=suggest(p, card.memory_gib - (vectors if card.is_cpu else 0), measure),
        notes=(*_notes(p, card, precision, rows_note, hours, disk),),
    )


def _notes(
    p: Params, card: Gpu, precision: str, rows_note: str, hours: dict[str, float], disk: dict[str, float]
) -> Iterator[str]:
    """What a plan assumes, and what to watch out for; reads text_windows, extra_embeddings and the further columns."""
    if precision == "bf16" and not card.bf16 and not card.is_cpu:
        yield f"a {card.name} only emulates bf16: set mixed_precision=fp16"
    yield rows_note
    if p.text_windows > 1:
        yield f"every text is assumed to fill its {p.text_windows} windows"
    if encoded_dim(p):
        yield f"further text encoders are assumed to read {PLAIN_LENGTH} tokens of every text"
    if further_columns(p) and not table_pieces(resolve(p.train_csv)):
        yield "each of the category_columns is assumed to have as many values as count"
    if HEADS in hours:
        yield f"a step of the heads is assumed to take {1000 * HEADS_STEP:g} ms beside its arithmetic"
    elif hours:
        peak = f"{card.utilisation:.0%} of the {card.name}'s {_peak(card, precision):.2g} TFLOP/s"
        yield f"hours assume {peak}, and that photos are read as fast"
    if sum(disk.values()) > KAGGLE_DISK_GB:
        yield f"a Kaggle session may leave {KAGGLE_DISK_GB} GB: optimizer=adafactor and tune=lora need less"


def with_overhead(allocated_gib: float) -> float:
    """Memory of the GPU (GiB) that is taken when torch has allocated that much."""
    return allocated_gib * (1 + ALLOCATOR_SLACK) + CUDA_CONTEXT_GIB


def count_rows(p: Params, products: int | None = None) -> tuple[tuple[int, int], str]:
    """Products to train on and to predict, and a note on where the numbers come from; reads train_csv and test_csv."""
    if products is not None:
        if products < 1:
            raise GoodsError(f"products is {products}; a plan needs at least one")
        train, source = products, "given"
    else:
        train, source = rows_of(resolve(p.train_csv), p.id_column), "in train.csv"
    test = rows_of(resolve(p.test_csv), p.id_column)
    assumed = [name for name, rows in (("train", train), ("test", test)) if rows is None]
    train, test = train or DEFAULT_ROWS[0], test or DEFAULT_ROWS[1]
    counted = f"{train:,} products to train on ({'assumed' if 'train' in assumed else source})"
    return (train, test), f"{counted}, {test:,} to predict ({'assumed' if 'test' in assumed else 'in test.csv'})"


def suggest(p: Params, memory_gib: float, measure: Callable[[Params], Footprint]) -> dict[str, Any]:
    """The parameters to change so that the run fits, the least harmful first; empty when it fits or nothing helps.

    Fewer products per forward pass come first, then gradient checkpointing, then smaller photos. What doesn't depend on
    the batch (wise_ft, optimizer, tune) is changed only where all of these aren't enough.
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
    """Bytes of each phase that no batch size changes, at most: parts that peak at different moments are added up."""
    floors = {}
    for phase, parts in footprint.phases(p).items():
        floors[phase] = sum(parts[part] for part in (WEIGHTS, OPTIMIZER, FURTHER))
        if phase == "optimizer":
            floors[phase] += parts[GRADIENTS] + parts[ACTIVATIONS]
        elif phase == "training":  # without accumulation gradients are made while 16-bit copies are freed
            both = (4 * footprint.trainable, footprint.step_most[COPIES])
            floors[phase] += sum(both) if accumulate else max(both)
        else:
            floors[phase] += footprint.evaluation_most[COPIES]
    return floors


def _smaller_batches(p: Params, footprint: Footprint, limit: float) -> dict[str, int] | None:
    """Lower batch sizes with which all phases fit, as changes; None when that isn't enough."""
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
    p: Params, flops: dict[str, float], once: Collection[str], rows: tuple[int, int], gpu: Gpu, precision: str
) -> dict[str, float]:
    """Hours of all folds by what they are spent on; empty for a card whose peak isn't known.

    flops: per product. once: the sides of a product that are embedded once.
    """
    peak = _peak(gpu, precision)
    if peak is None:
        return {}
    (train, test), folds, predicting = rows, len(p.chosen_folds), 1 if p.refit else len(p.chosen_folds)
    learned = (folds * (1 - 1 / p.n_folds) + p.refit) * p.num_epochs * train  # products, each as often as it is seen
    every = {name.removeprefix("forward, "): n for name, n in flops.items() if name.startswith("forward")}
    forward = sum(n for side, n in every.items() if side not in once)  # of those that are read again and again
    embedded = (train + test) * (sum(every.values()) - forward) + train * forward * bool(p.warm_start_epochs)
    work = {f"{FURTHER_TEXTS}, once": (train + test) * flops[FURTHER_TEXTS]} if FURTHER_TEXTS in flops else {}
    work |= {"embeddings, once": embedded} if embedded else {}
    if HEADS in flops:
        work |= {HEADS: learned * flops[HEADS]}
    elif p.tune != "head":
        step = sum(n for name, n in flops.items() if name.startswith("training"))
        validations = p.num_epochs + 1 + (4 if p.wise_ft else 0)
        twice = 2 if p.test_time_flip else 1
        work |= {
            "training": learned * step,
            "validation": folds * validations * train / p.n_folds * forward * twice,
            "test prediction": predicting * test * forward * twice,
        }
    hours = {name: n / (peak * 1e12 * gpu.utilisation) / 3600 for name, n in work.items()}
    if HEADS in work:  # which compute in fp32
        per_product = flops[HEADS] / (gpu.tflops_32 * 1e12 * gpu.utilisation) + HEADS_STEP / p.batch_size
        hours[HEADS] = learned * per_product / 3600
    return hours


def _peak(gpu: Gpu, precision: str) -> float | None:
    return gpu.tflops_32 if precision == "fp32" or gpu.is_cpu else gpu.tflops_16


def estimate_disk(p: Params, footprint: Footprint, rows: tuple[int, int]) -> dict[str, float]:
    """GB of disk by content: weights of all folds, one fold's two saved states, the cache of embeddings."""
    heads = sum(shape.numel() for name, shape in footprint.trained.items() if name.startswith("heads."))
    backbone = footprint.trainable - heads
    scale = 8 * sum(footprint.dims.values())  # mean and standard deviation of each dimension
    state = footprint.optimizer(p) + 4 * footprint.trainable * (1 + bool(p.ema_decay) + p.soup + p.wise_ft)
    train, test = rows
    kept = sum(footprint.embedded.values())
    warm = footprint.dims.get("image", 0) + footprint.dims.get("text", 0) - kept if p.warm_start_epochs else 0
    sizes = {
        "weights of all folds": (len(p.chosen_folds) + p.refit) * (2 * backbone + 4 * heads + scale),
        "states of a fold in training": 2 * state,
        "embeddings": 4 * ((train + test) * (kept + encoded_dim(p)) + train * warm),
    }
    return {name: size / GB for name, size in sizes.items() if size}


def _report(plan: Plan) -> Iterator[str]:
    """The lines of a plan, at most 80 characters each where the memory has four columns or fewer."""
    yield from _what(plan)
    share = plan.trainable / plan.total
    yield f"{plan.trainable / 1e6:.1f} M of {plan.total / 1e6:.1f} M parameters trained ({share:.1%})"
    yield ""
    yield f"{'memory, GiB':23}" + "".join(f"{phase:>14}" for phase in plan.memory)
    for part in PARTS:
        yield f"  {part:21}" + "".join(f"{parts[part]:14.2f}" for parts in plan.memory.values())
    yield f"  {'together':21}" + "".join(f"{sum(parts.values()):14.2f}" for parts in plan.memory.values())
    if plan.vectors:
        yield f"  {'vectors, in RAM':21}{plan.vectors:14.2f}"
    rest = "with Python and slack" if plan.gpu.is_cpu else "with CUDA and slack"
    yield f"  {rest:21}{plan.total_gib:14.2f}  of {plan.gpu.memory_gib:.1f}"
    for title, values, unit in (
        ("GFLOP per product", plan.flops, 1e9),
        ("hours on this CPU" if plan.gpu.is_cpu else "hours on one GPU", plan.hours, 1),
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


def _what(plan: Plan) -> Iterator[str]:
    """The lines that say what is planned."""
    p, device = plan.params, "this CPU" if plan.gpu.is_cpu else f"one {plan.gpu.name}"
    at_once = f"{p.batch_size} products per step"
    if p.tune != "head":
        at_once += f", {plan.micro_batch_size} at once, {p.optimizer}"
        at_once += ", gradient checkpointing" if p.gradient_checkpointing else ""
    if plan.sides:
        names = " and ".join(Path(name).name for name in (p.model_name, p.text_model_name) if name)
        yield f"{names}, tune {p.tune}, {plan.precision}, on {device}"
        windows = f"{p.text_windows} x " if p.text_windows > 1 else ""
        text = f"text {windows}{p.max_text_length} tokens, " if "text" in plan.sides else ""
        yield from wrap(f"image {plan.image_size}, {text}{at_once}", 80)
    else:
        files = listing([Path(name).name for name in p.embeddings_files])
        yield from wrap(f"heads on {files}, on {device}, {at_once}", 80)
    read = ", ".join(f"{dim:,} of {name}" for name, dim in plan.dims.items())
    yield from wrap(f"the heads read of each product {read}", 80)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
