"""Devices that a plan is made for: graphics cards by their data sheets, and this machine's processor."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import torch

from goods.errors import GoodsError
from goods.machine import memory_of_machine

GIB = 2**30
HERE, CPU = "here", "CPU"


@dataclass(frozen=True)
class Gpu:
    """A graphics card: memory as torch reports it (GiB), dense peaks (TFLOP/s), and the share of them to expect."""

    name: str
    memory_gib: float
    tflops_16: float | None = None
    tflops_32: float | None = None
    bf16: bool = True  # in hardware
    utilisation: float = 0.35  # share of the peak that the training loop reaches; assumed, not measured

    @property
    def is_cpu(self) -> bool:
        """Whether it is no card, but the machine's processor and memory."""
        return self.name == CPU


# NVIDIA's data sheets, without sparsity; the smallest memory where a card is sold with several.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 14.6, 65, 8.1, bf16=False, utilisation=0.30),  # its 70 W limit throttles it
        Gpu("P100", 15.9, 18.7, 9.3, bf16=False, utilisation=0.40),
        Gpu("V100", 15.7, 112, 14, bf16=False),
        Gpu("L4", 22.0, 121, 30),
        Gpu("A100", 39.4, 312, 19.5, utilisation=0.40),
        Gpu("H100", 79.1, 989, 67),
        Gpu("H200", 139.8, 989, 67),
        Gpu("RTX PRO 6000", 94.9),  # its dense peaks are published for no use like this
    )
}


def find_gpu(name: str | None = None) -> Gpu:
    """The card of that name; without a name this machine's GPU, else a T4; "here": that GPU, else the processor.

    Raises GoodsError for an unknown name.
    """
    if name == HERE:
        if not torch.cuda.is_available():
            return this_processor()
        name = None
    if name is None and not torch.cuda.is_available():
        return GPUS["T4"]
    full_name = torch.cuda.get_device_name() if name is None else name
    known = next((gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name}\b", full_name, re.IGNORECASE)), None)
    if name is not None:
        if known is None:
            raise GoodsError(f"there is no plan for the GPU '{name}'; the known ones are {', '.join(GPUS)}, or {HERE}")
        return known
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    if known is None:
        return Gpu(full_name, memory, bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    return replace(known, memory_gib=memory)


def this_processor() -> Gpu:
    """This machine's processor as a device: its memory, and what it multiplies matrices at, tried for a moment."""
    memory = memory_of_machine() or 8 * GIB
    side, seconds = 768, []
    matrix = torch.ones(side, side)
    for _ in range(8):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    tflops = 2 * side**3 / min(seconds) / 1e12
    return Gpu(CPU, memory / GIB, tflops_32=tflops, bf16=False, utilisation=0.7)
