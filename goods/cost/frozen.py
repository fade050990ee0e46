"""What is counted without an image encoder: heads on vectors made elsewhere, text encoders."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from goods.cost.dims import columns_dim, further_dim, given_dims
from goods.cost.empty import empty_text_encoder
from goods.cost.footprint import (
    ACTIVATIONS,
    PARTS,
    WEIGHTS,
    Footprint,
    StepMeter,
    count_step,
    cpu_autocast,
    fake_of,
    micro_batch_size,
    optimizer_bytes,
)
from goods.models.device import DTYPES
from goods.models.heads import GoodsHeads, TextClassifier
from goods.models.text_encoder import PLAIN_LENGTH, TextEncoder
from goods.models.tuning import checkpoint_activations, halve_frozen, set_trainable
from goods.params import Params
from goods.places import names_vectors


def measure_heads(p: Params) -> Footprint:
    """As measure_footprint, of the heads alone, which learn from the vectors in p.embeddings_files and those beside.

    They compute in fp32, whatever the precision of others.
    """
    given, micro = given_dims(p), micro_batch_size(p)
    extra = given.get("extra", 0) + further_dim(p)
    with FakeTensorMode():
        heads = GoodsHeads(given.get("image", 0), given.get("text", 0), p, extra, columns_dim(p))
        evaluation = StepMeter()
        evaluation.hold([*heads.parameters(), *heads.buffers()], WEIGHTS)
        some = _vectors(heads, p.eval_batch_size)
        evaluation.hold(some.values(), ACTIVATIONS)
        with torch.no_grad(), evaluation:
            heads.eval()(**some)
        step = count_step(heads, None, None, None, micro < p.batch_size, _vectors(heads, micro))
    return Footprint(
        image_size=0,
        total=sum(parameter.numel() for parameter in heads.parameters()),
        trained={f"heads.{name}": parameter.shape for name, parameter in heads.named_parameters()},
        rates={},
        dims=heads.dims,
        step=step.peak,
        step_most=step.most,
        evaluation=evaluation.peak,
        evaluation_most=evaluation.most,
        embedded={},
        flops={"heads": sum(step.flops.values()) / micro},
    )


def _vectors(heads: GoodsHeads, batch: int) -> dict[str, Tensor]:
    return {name: torch.empty(batch, dim) for name, dim in heads.dims.items()}


# Further text encoders, each of which embeds all texts once, before anything is trained -------------------------------


@dataclass(frozen=True)
class Further:
    """Of the encoders in extra_embeddings: FLOPs per product, of all; bytes by part, of the one that takes most."""

    flops: float
    memory: dict[str, int]


def measure_further(p: Params, precision: str) -> Further | None:
    """A batch of each encoder on fake tensors; None where there is none. Reads extra_embeddings and eval_batch_size.

    Texts are taken as PLAIN_LENGTH tokens long, which few are.
    """
    encoders = [name for name in p.extra_embeddings if not names_vectors(name)]
    meters = [_meter(empty_text_encoder(name), p.eval_batch_size, precision) for name in encoders]
    if not meters:
        return None
    largest = max((meter.peak for meter in meters), key=lambda parts: sum(parts.values()))
    return Further(
        sum(meter.flops["forward"] for meter in meters) / p.eval_batch_size, dict.fromkeys(PARTS, 0) | largest
    )


def measure_texts(p: Params, precision: str) -> int:
    """Bytes that kind text takes at most, of texts of PLAIN_LENGTH tokens or fewer."""
    encoder = empty_text_encoder(p.model_name)
    length, micro = min(p.max_text_length, PLAIN_LENGTH), micro_batch_size(p)
    with torch.device("meta"):
        set_trainable(encoder.backbone, p)
        classifier = TextClassifier(encoder, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    evaluation = _meter(empty_text_encoder(p.model_name), p.eval_batch_size, precision, length)
    with FakeTensorMode():
        input_ids = torch.empty(micro, length, dtype=torch.int64)
        step = count_step(fake_of(classifier), None, input_ids, DTYPES.get(precision), micro < p.batch_size)
    trained = (parameter.shape for parameter in classifier.parameters() if parameter.requires_grad)
    state = sum(optimizer_bytes(shape, p.optimizer) for shape in trained)
    return state + max(sum(step.peak.values()), sum(evaluation.peak.values()))


def _meter(encoder: TextEncoder, batch: int, precision: str, length: int = PLAIN_LENGTH) -> StepMeter:
    halve_frozen(encoder, precision)
    meter = StepMeter()
    with FakeTensorMode():
        input_ids = torch.empty(batch, length, dtype=torch.int64)
        meter.hold([*fake_of(encoder).eval().parameters(), *encoder.buffers()], WEIGHTS)
        meter.hold([input_ids], ACTIVATIONS)
        with torch.no_grad(), meter, cpu_autocast(DTYPES.get(precision)):
            encoder(input_ids)
    return meter
