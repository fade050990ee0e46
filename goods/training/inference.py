"""Predictions of a model: a dataset's, on all devices there are, each product counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from goods.data.datasets import PhotoDataset, TensorsDataset, collate
from goods.models.device import pick_precision
from goods.params import Params
from goods.progress import progress_bar

TEST_CHUNK_BYTES = 4 * 2**30  # decoded photos of the test set held in memory at once


def make_accelerator(p: Params) -> Accelerator:
    """Accelerate's view of the devices there are, in the precision that p asks for."""
    AcceleratorState._reset_state()  # else a kernel that has trained once can't train in another precision
    precision = pick_precision(p.mixed_precision).replace("fp32", "no")
    return Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())


def make_loader(dataset: Dataset, p: Params, **how: Any) -> DataLoader:
    """Batches of a dataset; photos are read by num_workers processes, tensors at once."""
    workers = p.num_workers if isinstance(dataset, PhotoDataset) else 0
    # A generator of its own, so that reading leaves the random numbers of dropout alone.
    return DataLoader(
        dataset, collate_fn=collate, num_workers=workers, generator=torch.Generator().manual_seed(p.seed),
        pin_memory=torch.cuda.is_available(), **how,
    )  # fmt: skip


@torch.no_grad()  # not inference_mode: DDP's next step can't use buffers that were moved inside it
def predict(model: nn.Module, dataset: Dataset, p: Params, accelerator: Accelerator) -> dict[str, np.ndarray]:
    """{"fused", "image", "text"}: (n, num_classes) fp32 logits in the dataset's order, each product counted once.

    Several processes take a share each. With p.test_time_flip the mean over the photo and its mirror image.
    """
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    rows = list(range(len(dataset)))
    if (lengths := getattr(dataset, "lengths", None)) is not None:
        rows = lengths.argsort(stable=True).tolist()
    rows = rows[accelerator.process_index :: accelerator.num_processes]
    batches = [rows[at : at + p.eval_batch_size] for at in range(0, len(rows), p.eval_batch_size)]
    parts = []
    for batch in make_loader(dataset, p, batch_sampler=batches):
        batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items() if k != "label"}
        with accelerator.autocast():
            logits = model(**batch)
            if p.test_time_flip and "pixels" in batch:
                mirrored = model(**batch | {"pixels": batch["pixels"].flip(-1)})
                logits = {name: (values + mirrored[name]) / 2 for name, values in logits.items()}
        parts.append({name: values.float().cpu().numpy() for name, values in logits.items()})
    shares = gather_object([(rows, parts)]) if accelerator.num_processes > 1 else [(rows, parts)]
    order = np.argsort(np.concatenate([rows for rows, _ in shares]))
    flat = [part for _, parts in shares for part in parts]
    return {name: np.concatenate([part[name] for part in flat])[order] for name in flat[0]}


def decoded_chunks(dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
    """The dataset in chunks whose decoded photos fit in TEST_CHUNK_BYTES: several folds predict what is read once."""
    rows = list(range(len(dataset)))
    most = max(1, TEST_CHUNK_BYTES // (3 * dataset.most * dataset.size**2))
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        batches = [part[at : at + p.eval_batch_size] for at in range(0, len(part), p.eval_batch_size)]
        loader = make_loader(dataset, p, batch_sampler=batches)
        yield TensorsDataset(**gathered(progress_bar(loader, desc="reading the test set", leave=False), len(part)))


def gathered(batches: Iterable[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """The columns of batches that have `count` rows in all, each as one tensor.

    Each batch is copied as it comes: as long as one is kept, so is the open file in which its worker handed it over.
    """
    whole: dict[str, Tensor] = {}
    start = 0
    for batch in batches:
        end = start + len(next(iter(batch.values())))
        for name, values in batch.items():
            whole.setdefault(name, values.new_empty((count, *values.shape[1:])))[start:end] = values
        start = end
    return whole
