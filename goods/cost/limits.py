"""What can't run on this machine, said before it starts: a process that takes all memory is killed without a word."""

from __future__ import annotations

import torch

from goods.cost.empty import read_config
from goods.cost.footprint import measure_footprint, micro_batch_size
from goods.cost.frozen import measure_further, measure_heads, measure_texts
from goods.cost.plan import count_rows
from goods.errors import GoodsError
from goods.machine import memory_of_machine
from goods.models.device import pick_device, pick_precision
from goods.models.encoders import SIDES
from goods.params import Params

GB = 10**9
TRAINED_BYTES = 16  # per trained parameter in fp32: its weight, its gradient, AdamW's two moments
WORKER_BYTES = 25 * 10**6  # of a process that reads photos, its own alone, and no photo
READ_AHEAD = 2  # batches, by each of them
HELD_PREDICTIONS = 3  # at once, at least: of three outputs, of three costs that are tried, before and after calibration


def refuse_too_large(p: Params, large: dict[str, int], counted: str, sides: tuple[str, ...] | None) -> None:
    """Raises GoodsError where a run takes more memory than there is; `large`: what is unusual of it.

    counted: what computes its predictions, "training" (of `sides` of a product), "embedding", "texts" or "heads"; ""
    where that isn't known. On a GPU, where batches are halved when memory runs out, it is counted with one product at a
    time.
    """
    device = pick_device()
    on_gpu = device.type == "cuda"
    one = p.model_copy(update={"micro_batch_size": 1, "eval_batch_size": 1}) if on_gpu else p
    try:
        needed = computing(one, counted, sides)
    except GoodsError:
        raise
    except Exception as error:  # torch has many for sizes that no number of 64 bits can hold
        raise GoodsError(f"{_said(large)}: that is more than can be counted ({error}); lower it") from None
    if on_gpu:
        _refuse(large, 1, needed, torch.cuda.get_device_properties(device).total_memory, "GPU")
    at_once = 1 if on_gpu else max(micro_batch_size(p), p.eval_batch_size)
    _refuse(large, at_once, held(p, counted) + (0 if on_gpu else needed), memory_of_machine(), "machine")


def _refuse(large: dict[str, int], at_once: int, needed: int, memory: int, what: str) -> None:
    if memory and needed > memory:
        raise GoodsError(f"{_said(large)}: with up to {at_once} products at a time the run takes {needed / GB:,.0f} GB "
                         f"of memory, and this {what} has {memory / GB:,.0f}; lower it")  # fmt: skip


def _said(large: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in large.items())


def held(p: Params, counted: str) -> int:
    """Bytes of the machine's memory for predictions, and for the processes that read photos, where photos are read."""
    (train, _), _ = count_rows(p)
    predictions = 8 * max(HELD_PREDICTIONS, len(p.runs)) * train * p.num_classes
    batch = 3 * (p.image_size or 0) ** 2 * p.eval_batch_size
    workers = p.num_workers if counted in ("training", "embedding") else 0
    return predictions + workers * (WORKER_BYTES + READ_AHEAD * batch)


def computing(p: Params, counted: str, sides: tuple[str, ...] | None) -> int:
    """Bytes that a device needs to compute predictions; see refuse_too_large."""
    precision = pick_precision(p.mixed_precision)
    further = measure_further(p, precision) if counted in ("training", "embedding", "heads") else None
    needed, of_training = [sum(further.memory.values())] if further else [0], None
    if counted == "texts":
        needed.append(measure_texts(p, precision))
    elif counted == "heads":
        p = _no_more_than_rows(p)
        of_training = measure_heads(p)
    elif counted == "training":
        of_training = measure_footprint(read_config(p.model_name), p, precision, sides)
    elif counted == "embedding" and not p.embeddings_files:
        p = p.model_copy(update={"tune": "head"})
        needed.append(measure_footprint(read_config(p.model_name), p, precision, SIDES).allocated(p))
    if of_training:
        needed += [of_training.allocated(p), TRAINED_BYTES * of_training.trainable]
    return max(needed)


def _no_more_than_rows(p: Params) -> Params:
    """Parameters with the largest batches that there are products for."""
    most = max(count_rows(p)[0])
    sizes = ("batch_size", "micro_batch_size", "eval_batch_size")
    return p.model_copy(update={name: min(size, most) for name in sizes if (size := getattr(p, name))})
