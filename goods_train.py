"""Scores, the training loop of one fold, and its predictions."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from goods_data import Goods, PhotoDataset, TensorsDataset, collate, read_folds
from goods_model import (
    OUTPUTS,
    DualEncoder,
    Embedder,
    GoodsClassifier,
    freeze,
    load_backbone,
    load_processor,
    load_trained,
    make_heads,
    pick_precision,
    save_trained,
)
from goods_params import GoodsError, Params, atomic_path, write_json

SCALE_ROWS = 1024  # training products whose frozen embeddings scale the heads' inputs where the backbone is tuned


# ---------------------------------------------------------------------------------------------------------------------
# 10 Metrics
# ---------------------------------------------------------------------------------------------------------------------


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """accuracy, macro_f1 (over the classes that occur) and log_loss of (n, num_classes) logits for (n,) labels."""
    labels, predictions = np.asarray(labels), logits.argmax(1)
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
        "log_loss": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
    }


def logits_frame(logits: dict[str, np.ndarray]) -> pd.DataFrame:
    """{"fused": (n, num_classes), ...} as columns fused_0 ... fused_{K-1}, image_0 ..."""
    columns = {f"{name}_{k}": values[:, k] for name, values in logits.items() for k in range(values.shape[1])}
    return pd.DataFrame(columns)


def frame_logits(frame: pd.DataFrame, output: str) -> np.ndarray:
    """(n, num_classes) logits of one output from a prediction table's columns."""
    return frame.filter(regex=rf"^{output}_\d+$").to_numpy(dtype=np.float64)


def prediction_table(frame: pd.DataFrame, goods: Goods, output: str = "fused") -> pd.DataFrame:
    """Out-of-fold rows with their product: id, title, text, image, label, prediction (class indices), probability."""
    logits = frame_logits(frame, output)
    table = frame[["id", "label"]].assign(
        prediction=logits.argmax(1), probability=np.exp(log_softmax(logits, axis=1)).max(1)
    )
    return table.merge(goods.train[["id", "title", "text", "image"]], on="id", validate="1:1")


# ---------------------------------------------------------------------------------------------------------------------
# 11 Training
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """What one fold trains: a model, and the products as that model takes them."""

    model: nn.Module
    train: Dataset  # items hold the model's inputs and "label"
    valid: Dataset
    test: Dataset
    labels: dict[str, np.ndarray]  # "train", "valid": (n,) class indices


def fit_fold(p: Params, goods: Goods) -> dict[str, Any]:
    """Trains fold p.fold and predicts its validation part and the test set; returns its metrics.

    Writes model.safetensors, log.jsonl, oof.parquet, test.parquet and, last, metrics.json to the run's fold<k>.
    A fold that has its metrics.json is finished: it is loaded, not trained again.
    """
    folder = p.run_dir / f"fold{p.fold}"
    if (folder / "metrics.json").is_file():
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    folds = read_folds(goods, p)
    AcceleratorState._reset_state()  # else a kernel that has trained once can't train in another precision
    accelerator = Accelerator(mixed_precision=pick_precision(p.mixed_precision).replace("fp32", "no"))
    task = make_task(p, goods, folds)
    set_seed(p.seed + p.fold)  # only now: whether embeddings came from the cache must not matter
    best = train(task, p, accelerator, folder)
    load_trained(task.model, folder / "model.safetensors")  # what is predicted with is what is kept
    valid = predict(task.model, task.valid, p, accelerator)
    test = predict(task.model, task.test, p, accelerator)

    in_fold = (folds["fold"] == p.fold).to_numpy()
    _write_predictions(folder / "oof.parquet", folds[in_fold], valid)
    _write_predictions(folder / "test.parquet", goods.test[["id"]].assign(fold=p.fold), test)
    metrics = {name: score(task.labels["valid"], logits) for name, logits in valid.items()}
    metrics |= {"fold": p.fold, "best_epoch": best, "rows": len(task.labels["train"])}
    metrics |= {"seconds": round(time.perf_counter() - started, 1)}
    write_json(folder / "metrics.json", metrics)
    return metrics


def make_task(p: Params, goods: Goods, folds: pd.DataFrame) -> Task:
    """Model and datasets of fold p.fold: heads on cached embeddings (tune: head), or the whole classifier."""
    valid = np.flatnonzero(folds["fold"] == p.fold)
    train = np.flatnonzero(folds["fold"] != p.fold)
    labels = folds["label"].to_numpy()
    parts = {"train": labels[train], "valid": labels[valid]}
    if p.tune == "head":
        model, of_train, of_test = _head_task(p, goods, train)
    else:
        model, of_train, of_test = _full_task(p, goods, train)
    return Task(model, Subset(of_train, train.tolist()), Subset(of_train, valid.tolist()), of_test, parts)


def _head_task(p: Params, goods: Goods, rows: np.ndarray) -> tuple[nn.Module, Dataset, Dataset]:
    embedder = Embedder(p)
    both = pd.concat([goods.train, goods.test], ignore_index=True)  # one pass over all products
    embeddings = {"image": embedder.photos(both["image"], both["sha"]), "text": embedder.texts(both["text"])}
    train, test = ({k: v.split([len(goods.train), len(goods.test)])[i] for k, v in embeddings.items()} for i in (0, 1))
    heads = make_heads(train["image"][rows], train["text"][rows], p)
    return heads, TensorsDataset(**train, label=_labels(goods)), TensorsDataset(**test)


def _full_task(p: Params, goods: Goods, rows: np.ndarray) -> tuple[nn.Module, Dataset, Dataset]:
    backbone, processor = load_backbone(p.model_name), load_processor(p.model_name)
    freeze(backbone)
    encoder = DualEncoder(backbone, processor, p)
    some = goods.train.iloc[np.random.default_rng(p.seed).permutation(rows)[:SCALE_ROWS]]
    embedder = Embedder(p)
    heads = make_heads(embedder.photos(some["image"], some["sha"]), embedder.texts(some["text"]), p)
    train, test = (
        PhotoDataset(part["image"], encoder.image_size, input_ids=processor.tokenize(part["text"], p.max_text_length))
        for part in (goods.train, goods.test)
    )
    train.columns["label"] = _labels(goods)
    return GoodsClassifier(encoder, heads), train, test


def _labels(goods: Goods) -> Tensor:
    return torch.tensor(goods.train["label"].to_numpy(dtype=np.int64))  # a copy: pandas 3's own can't be written to


def train(task: Task, p: Params, accelerator: Accelerator, folder: Path) -> int:
    """Trains task.model, keeping the weights of the epoch with the best fused macro-F1; returns that epoch, from 1."""
    loader = make_loader(task.train, p.batch_size, p, shuffle=True)
    epochs = 1 if p.debug else p.num_epochs
    optimizer = make_optimizer(task.model, p)
    steps = epochs * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(p.warmup_ratio * steps), steps)
    model, optimizer, loader = accelerator.prepare(task.model, optimizer, loader)
    class_weight = class_weights(task.labels["train"], p).to(accelerator.device)
    log, best_epoch, best_score = [], 0, -1.0
    with tqdm(total=steps, desc=f"fold {p.fold}", unit=" steps") as bar:
        for epoch in range(1, epochs + 1):
            started, losses = time.perf_counter(), []
            model.train()
            for batch in loader:
                labels = batch.pop("label")
                loss = output_losses(model(**batch), labels, class_weight, p.label_smoothing)
                accelerator.backward(sum(loss.values()))
                accelerator.clip_grad_norm_(model.parameters(), p.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss["fused"].detach())
                bar.update()
            loss = torch.stack(losses).mean().item()
            scores = score(task.labels["valid"], predict(model, task.valid, p, accelerator)["fused"])
            log.append({"epoch": epoch, "epochs": epochs, "train_loss": loss, "valid_loss": scores["log_loss"],
                        "macro_f1": scores["macro_f1"], "accuracy": scores["accuracy"],
                        "learning_rate": schedule.get_last_lr()[0],
                        "seconds": round(time.perf_counter() - started, 2)})  # fmt: skip
            _write_log(folder / "log.jsonl", log)
            bar.set_postfix(loss=f"{loss:.3f}", macro_f1=f"{scores['macro_f1']:.3f}")
            if not np.isfinite(loss):
                raise GoodsError(f"the loss of fold {p.fold} became {loss} in epoch {epoch}; lower the learning rates")
            if scores["macro_f1"] > best_score:
                best_epoch, best_score = epoch, scores["macro_f1"]
                save_trained(accelerator.unwrap_model(model), folder / "model.safetensors")
    return best_epoch


def make_loader(dataset: Dataset, batch_size: int, p: Params, shuffle: bool = False) -> DataLoader:
    """Batches of a dataset; photos are read by num_workers processes, tensors at once."""
    base = dataset.dataset if isinstance(dataset, Subset) else dataset
    workers = p.num_workers if isinstance(base, PhotoDataset) else 0
    generator = torch.Generator().manual_seed(p.seed + p.fold) if shuffle else None
    return DataLoader(
        dataset, batch_size, shuffle, collate_fn=collate, num_workers=workers, generator=generator,
        persistent_workers=workers > 0 and shuffle, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def make_optimizer(model: nn.Module, p: Params) -> torch.optim.Optimizer:
    """AdamW over what is trainable: its own rate for the heads, no decay on norms and biases."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = p.learning_rate if name.startswith("encoder.") else p.head_learning_rate
            decay = p.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW([{"params": g, "lr": rate, "weight_decay": decay} for (rate, decay), g in groups.items()])


def class_weights(labels: np.ndarray, p: Params) -> Tensor:
    """(num_classes,) weights, 1 / square root of the class's count, of mean 1 over the rows; 1 when not wanted."""
    counts = np.bincount(labels, minlength=p.num_classes).astype(np.float32)
    weights = 1 / np.sqrt(np.maximum(counts, 1)) if p.use_class_weight else np.ones_like(counts)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum())


def output_losses(
    logits: dict[str, Tensor], labels: Tensor, class_weight: Tensor, label_smoothing: float
) -> dict[str, Tensor]:
    """Weighted cross-entropy of each output, a mean over the batch: {name: ()} from {name: (batch, num_classes)}."""
    losses = {}
    for name, values in logits.items():
        each = F.cross_entropy(values.float(), labels, reduction="none", label_smoothing=label_smoothing)
        losses[name] = (each * class_weight[labels]).mean()  # a plain mean, so that processes can be averaged
    return losses


def _write_log(path: Path, log: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")


def read_logs(run_dir: Path) -> pd.DataFrame:
    """The training logs of a run's folds: fold, epoch, train_loss, valid_loss, macro_f1 ..."""
    files = sorted(run_dir.glob("fold*/log.jsonl"))
    logs = [pd.read_json(f, lines=True).assign(fold=int(f.parent.name.removeprefix("fold"))) for f in files]
    return pd.concat(logs, ignore_index=True) if logs else pd.DataFrame()


# ---------------------------------------------------------------------------------------------------------------------
# 12 Prediction
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, p: Params, accelerator: Accelerator) -> dict[str, np.ndarray]:
    """{"fused", "image", "text"}: (n, num_classes) fp32 logits in the dataset's order."""
    model = accelerator.unwrap_model(model).to(accelerator.device).eval()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in OUTPUTS}
    for batch in accelerator.prepare(make_loader(dataset, p.eval_batch_size, p)):
        batch.pop("label", None)
        with accelerator.autocast():
            logits = model(**batch)
        for name, values in accelerator.gather_for_metrics(logits).items():
            parts[name].append(values.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _write_predictions(path: Path, head: pd.DataFrame, logits: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary:
        pd.concat([head.reset_index(drop=True), logits_frame(logits)], axis=1).to_parquet(temporary, index=False)
