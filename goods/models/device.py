"""The device that is there, and the precision it computes in."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from goods.errors import GoodsError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # of a precision that autocast computes in; fp32 has none


def pick_device() -> torch.device:
    """The accelerator there is (CUDA, MPS ...), else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def pick_precision(mixed_precision: str) -> str:
    """fp32, fp16 or bf16; auto is bf16 on a GPU that has it in hardware, fp16 on another GPU, fp32 elsewhere.

    Raises GoodsError for fp16 on a CPU, where Accelerate would train in fp32 without a word.
    """
    if mixed_precision == "fp16" and pick_device().type == "cpu":
        raise GoodsError("mixed_precision fp16 needs a GPU, and there is none; take auto, which is fp32 here, or bf16")
    if mixed_precision != "auto":
        return mixed_precision
    if not torch.cuda.is_available():
        return "fp32"
    # A T4 says yes to the plain question, by emulation.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(mixed_precision: str) -> AbstractContextManager:
    """The autocast context of that precision on the device that is there."""
    dtype = DTYPES.get(pick_precision(mixed_precision))
    return torch.autocast(pick_device().type, dtype=dtype) if dtype else nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager:
    """Inside, autocast is off on that device: what is given in fp32 is computed in fp32."""
    return torch.autocast(device.type, enabled=False)


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        if tensors[name].numel():
            digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
