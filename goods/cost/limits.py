"""What can't run on this machine, said before it starts: a process that takes all memory is killed without a word."""

from __future__ import annotations

import torch

from goods.cost.footprint import measure_footprint, measure_further, measure_texts, micro_batch_size, read_config
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
VECTOR_DIM = 256  # of vectors made elsewhere, at least about


def refuse_too_large(p: Params, large: dict[str, int], counted: str, sides: tuple[str, ...] = ()) -> None:
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


def computing(p: Params, counted: str, sides: tuple[str, ...]) -> int:
    """Bytes that a device needs to compute predictions; see refuse_too_large."""
    precision = pick_precision(p.mixed_precision)
    further = measure_further(p, precision) if counted in ("training", "embedding", "heads") else None
    needed = [sum(further.memory.values())] if further else [0]
    if counted == "heads":
        needed.append(_of_heads(p))
    elif counted == "texts":
        needed.append(measure_texts(p, precision))
    elif counted == "training" or (counted == "embedding" and not p.embeddings_files):
        p = p if counted == "training" else p.model_copy(update={"tune": "head"})
        footprint = measure_footprint(read_config(p.model_name), p, precision, sides or SIDES)
        needed += [footprint.allocated(p), TRAINED_BYTES * footprint.trainable if counted == "training" else 0]
    return max(needed)


def _of_heads(p: Params) -> int:
    """Bytes of heads on vectors, with the largest batch that there are products for."""
    rows, _ = count_rows(p)
    batch = min(max(micro_batch_size(p), p.eval_batch_size), max(rows))
    weights = p.hidden_dim * (VECTOR_DIM + p.num_classes)
    return TRAINED_BYTES * weights + 4 * batch * (3 * p.hidden_dim + 2 * p.num_classes)
