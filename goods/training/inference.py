"""Predictions of trained models: a dataset's, on all devices there are, and the test set's by every fold at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset

from goods.data.datasets import PhotoDataset, TensorsDataset, TokensDataset, collate
from goods.data.tables import Goods
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.device import pick_precision
from goods.models.embeddings import embed_products
from goods.models.heads import GoodsClassifier, heads_like
from goods.models.tuning import halve_frozen, load_trained, set_trainable
from goods.params import Params
from goods.predictions import write_predictions
from goods.progress import progress_bar
from goods.training.task import make_text_classifier, photo_dataset, tokens_dataset

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
    if isinstance(dataset, TokensDataset):
        rows = dataset.lengths.argsort(stable=True).tolist()
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


def predict_test(p: Params, goods: Goods, folds: Sequence[int] | None = None) -> list[int]:
    """Writes test.parquet of every trained fold (of `folds`) that lacks one; returns those folds.

    The photos are decoded and the texts tokenised once for all of them (with tune: head, embedded once).
    """
    folders = {k: p.run_dir / f"fold{k}" for k in folds or range(p.n_folds)}
    due = [k for k, f in folders.items() if (f / "metrics.json").is_file() and not (f / "test.parquet").is_file()]
    if not due:
        return []
    accelerator = make_accelerator(p)
    model, chunks = _test_model(p, goods, folders[due[0]] / "model.safetensors")
    parts: dict[int, list[dict[str, np.ndarray]]] = {k: [] for k in due}
    for chunk in chunks:
        for k in due:
            load_trained(model, folders[k] / "model.safetensors")
            parts[k].append(predict(model, chunk, p, accelerator))
    for k in due:
        logits = {name: np.concatenate([part[name] for part in parts[k]]) for name in parts[k][0]}
        write_predictions(folders[k] / "test.parquet", goods.test[["id"]].assign(fold=k), logits)
    return due


def load_model(p: Params, weights: Path) -> nn.Module:
    """A trained fold's model, from products to logits: GoodsClassifier or TextClassifier."""
    if p.kind == "text":
        model = make_text_classifier(p)
    else:
        heads, backbone = heads_like(weights, p), load_backbone(p.model_name)
        set_trainable(backbone, p)
        model = GoodsClassifier(DualEncoder(backbone, load_processor(p.model_name), p), heads)
        halve_frozen(model, pick_precision(p.mixed_precision))
    load_trained(model.heads if p.kind == "dual" and p.tune == "head" else model, weights)
    return model


def _test_model(p: Params, goods: Goods, weights: Path) -> tuple[nn.Module, Iterator[Dataset]]:
    """The model of a run's folds, and the test products in chunks whose decoded photos fit in memory."""
    if p.kind == "dual" and p.tune == "head":  # the backbone is needed only for embeddings that aren't cached yet
        return heads_like(weights, p), iter([TensorsDataset(**embed_products(p, goods.test))])
    model = load_model(p, weights)
    if p.kind == "text":
        return model, iter([tokens_dataset(model.encoder, goods.test)])
    return model, _decoded(photo_dataset(p, model.encoder, goods.test), p)


def _decoded(dataset: PhotoDataset, p: Params) -> Iterator[TensorsDataset]:
    rows = list(range(len(dataset)))
    most = max(1, TEST_CHUNK_BYTES // (3 * dataset.size**2))
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        batches = [part[at : at + p.eval_batch_size] for at in range(0, len(part), p.eval_batch_size)]
        read = list(
            progress_bar(make_loader(dataset, p, batch_sampler=batches), desc="reading the test set", leave=False)
        )
        yield TensorsDataset(**{name: torch.cat([batch[name] for batch in read]) for name in read[0]})
