"""What one fold trains: a model, and the products as that model takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from goods.models.columns import Columns
from goods.models.heads import GoodsHeads
from goods.params import Params
from goods.progress import progress_bar
from goods.training.optim import class_weights, cosine_schedule, make_optimizer, output_losses

WARM_START_BATCH = 256


@dataclass
class Task:
    """What one fold trains."""

    model: nn.Module
    train: Dataset  # items hold the model's inputs and "label"
    valid: Dataset | None  # the refit has none
    ids: np.ndarray  # (n,) of the training products
    labels: dict[str, np.ndarray]  # "train", "valid": (n,) class indices
    sides: tuple[str, ...] = ()  # of a product that it looks at, where goods.cost can tell beforehand what it takes
    columns: Columns | None = None  # what the fold has learned of further columns
    rows: str = field(default="", init=False)  # hash of what is learned from


def as_tensors(labels: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The class indices of each part as a loss takes them."""
    return {name: torch.tensor(values.astype(np.int64)) for name, values in labels.items()}


def fit_heads(heads: GoodsHeads, embeddings: dict[str, Tensor], labels: Tensor, p: Params) -> None:
    """Fits the heads on frozen embeddings, so that tuning starts from there (LP-FT, arXiv 2202.10054)."""
    generator = torch.Generator().manual_seed(p.seed + p.seed_offset)
    steps = p.warm_start_epochs * math.ceil(len(labels) / WARM_START_BATCH)
    # Not at head_learning_rate: what moves fitted heads gently is far too slow to fit them.
    optimizer = make_optimizer(heads, p.model_copy(update={"head_learning_rate": p.warm_start_learning_rate}))
    schedule = cosine_schedule(optimizer, steps // 10, steps)
    class_weight = class_weights(labels.numpy(), p)
    heads.train()
    for _ in progress_bar(range(p.warm_start_epochs), desc="fitting the heads", leave=False):
        for rows in torch.randperm(len(labels), generator=generator).split(WARM_START_BATCH):
            logits = heads(**{name: values[rows] for name, values in embeddings.items()})
            sum(output_losses(logits, labels[rows], class_weight, p.label_smoothing, len(rows)).values()).backward()
            nn.utils.clip_grad_norm_(heads.parameters(), p.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
