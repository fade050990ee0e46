"""The state of an unfinished training: one safetensors file, the one before it, and nothing half-written."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from goods.errors import OtherRunError
from goods.files import atomic_path, clear_temporaries
from goods.models.device import tensors_hash
from goods.run import Fold

VERSION = 2  # of what a state holds; raised when an older one can't be gone on from

State = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and facts that JSON can hold


def save_state(fold: Fold, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON-able facts to the fold's checkpoint/; the state before this one is kept beside it.

    At every moment one of the two files is whole. Raises DiskFullError when there is no room, the earlier state intact.
    """
    # Three copies of a large state would not fit on Kaggle's disk, nor what killed savings left.
    fold.previous_state.unlink(missing_ok=True)
    clear_temporaries(fold.checkpoint)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"facts": json.dumps(facts), "version": str(VERSION), "sha256": tensors_hash(tensors)}
    with atomic_path(fold.state) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        if fold.state.exists():
            os.replace(fold.state, fold.previous_state)


def load_state(fold: Fold) -> State | None:
    """The newest whole state of a fold, or None; a damaged file is said aloud and the one before it taken.

    Raises OtherRunError when the state was written by another version of this project.
    """
    for path in (fold.state, fold.previous_state):
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = metadata["sha256"] == tensors_hash(tensors)
        except Exception:  # anything at all can be wrong with a damaged file
            whole = False
        if not whole:
            print(f"{path} is damaged; going on from the state before it, or from the start", flush=True)
            continue
        if metadata["version"] != str(VERSION):
            raise OtherRunError(f"{path} was written by another version of this project: end {fold.title} with that "
                                f"version, or remove {fold.checkpoint}, and it alone begins anew")  # fmt: skip
        return tensors, json.loads(metadata["facts"])
    return None


# The parts of a state ------------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's state as tensors and scalars by name: optimizer.<parameter>.<name>."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"optimizer.{i}.{name}"] = value
    return tensors, scalars


def restore_optimizer(optimizer: torch.optim.Optimizer, values: dict[str, Any], rates: list[float]) -> None:
    """Takes back what optimizer_tensors gave, with the learning rate of each group."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in values.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators, which dropout draws from: "cpu", and "cuda" where there is a GPU."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Sets what random_state returned."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def parts_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
