"""The state of an unfinished training: one safetensors file, the one before it, and nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from goods.errors import GoodsError
from goods.files import atomic_path, resolve
from goods.params import RUNTIME_FIELDS, Params
from goods.run import load_recorded

VERSION = 1  # of what a state holds; raised when an older one can't be gone on from
CURRENT, PREVIOUS = "checkpoint/state.safetensors", "checkpoint/previous.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes tensors and JSON-able facts to the fold's checkpoint/; the state before this one is kept beside it.

    At every moment one of the two files is whole. Raises GoodsError when the disk is full, the earlier state intact.
    """
    current, previous = folder / CURRENT, folder / PREVIOUS
    # Three copies of a large state would not fit on Kaggle's disk, nor what killed savings left.
    for stale in (previous, *current.parent.glob(".*.tmp")):
        stale.unlink(missing_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"facts": json.dumps(facts), "version": str(VERSION), "sha256": _digest(tensors)}
    try:
        with atomic_path(current) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            if current.exists():
                os.replace(current, previous)
    except Exception as error:  # safetensors wraps the system's error
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error) or "No space" in str(error):
            raise GoodsError(f"the disk is full: the state of {folder} can't be saved; the one before it is intact. "
                             "Make room and give the same command again") from None  # fmt: skip
        raise


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole state of a fold, or None; a damaged file is said aloud and the one before it taken.

    Raises GoodsError when the state was written by another version of this project.
    """
    for path in (folder / CURRENT, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            whole = metadata["sha256"] == _digest(tensors)
        except Exception:  # anything at all can be wrong with a damaged file
            whole = False
        if not whole:
            print(f"{path} is damaged; going on from the state before it, or from the start", flush=True)
            continue
        if metadata["version"] != str(VERSION):
            raise GoodsError(f"{path} was written by another version of this project; delete {folder} to start it anew")
        return tensors, json.loads(metadata["facts"])
    return None


def remove_state(folder: Path) -> None:
    """Removes the checkpoint of a fold that is finished."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        if tensors[name].numel():
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adopt_fold(p: Params) -> None:
    """Copies what p.resume_from, another run's folder, has of fold p.fold to this run, unless this run has its own.

    The other run is only read. Raises GoodsError when it isn't a run or was made with other parameters.
    """
    own, other = p.run_dir, resolve(p.resume_from) if p.resume_from else None
    if other is None or not (other / "params.yaml").is_file():
        if other:
            raise GoodsError(f"resume_from {other} is not the folder of a run: it has no params.yaml")
        return
    before = Params().model_dump(mode="json") | load_recorded(other / "params.yaml")
    now = p.model_dump(mode="json")
    names = [n for n in Params.model_fields if n not in RUNTIME_FIELDS | {"run"} and before[n] != now[n]]
    if names:
        raise GoodsError(f"resume_from {other} was made with other parameters: {', '.join(names)}")
    folder, source = own / f"fold{p.fold}", other / f"fold{p.fold}"
    if folder.exists() or not source.is_dir():
        return
    if not pd.read_parquet(own / "folds.parquet").equals(pd.read_parquet(other / "folds.parquet")):
        raise GoodsError(f"resume_from {other} has other folds than {own}: the training tables differ")
    copy = own / f".fold{p.fold}.adopted"
    shutil.rmtree(copy, ignore_errors=True)  # of a call that was killed
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*"))
    os.replace(copy, folder)


def random_state() -> dict[str, Tensor]:
    """The states of torch's generators, which dropout draws from: "cpu", and "cuda" where there is a GPU."""
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Sets what random_state returned."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
