"""What can't run on this machine, said before it starts: a process that takes all memory is killed without a word."""

from __future__ import annotations

import torch

from goods.cost.empty import read_config
from goods.cost.footprint import measure_footprint, micro_batch_size
from goods.cost.frozen import measure_heads
from goods.errors import GoodsError
from goods.machine import memory_of_machine
from goods.models.device import pick_device, pick_precision
from goods.models.encoders import SIDES
from goods.params import Params

GB = 10**9
TRAINED_BYTES = 16  # per trained parameter in fp32: its weight, its gradient, AdamW's two moments


def refuse_too_large(p: Params, large: dict[str, int], sides: tuple[str, ...] | None = None) -> None:
    """Raises GoodsError where a run takes more memory than there is; `large`: what is unusual of it.

    sides: those of a product that it looks at; both, where nothing is said; (), where its heads read vectors. On a
    GPU, where batches are halved when memory runs out, it is counted with one product at a time.
    """
    device = pick_device()
    on_gpu = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else memory_of_machine()
    counted = p.model_copy(update={"micro_batch_size": 1, "eval_batch_size": 1}) if on_gpu else p
    try:
        if sides == ():
            footprint = measure_heads(counted)
        else:
            footprint = measure_footprint(read_config(p.model_name), counted, pick_precision(p.mixed_precision),
                                          sides or SIDES)  # fmt: skip
    except GoodsError:
        raise
    except Exception as error:  # torch has many for sizes that no number of 64 bits can hold
        raise GoodsError(f"{_said(large)}: that is more than can be counted ({error}); lower it") from None
    needed = max(footprint.allocated(counted), TRAINED_BYTES * footprint.trainable)
    if memory and needed > memory:
        at_once = 1 if on_gpu else max(micro_batch_size(p), p.eval_batch_size)
        what = "GPU" if on_gpu else "machine"
        raise GoodsError(f"{_said(large)}: with up to {at_once} products at a time the run takes {needed / GB:,.0f} GB "
                         f"of memory, and this {what} has {memory / GB:,.0f}; lower it")  # fmt: skip


def _said(large: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in large.items())
