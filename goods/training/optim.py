"""The recipe of a step: optimizer, schedule, class weights, losses, and averages of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goods.models.tuning import block_rates
from goods.params import Params


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: nn.Module, p: Params) -> torch.optim.Optimizer:
    """AdamW or Adafactor over what is trained: layer-wise rates, the heads' own, no decay on norms and biases."""
    rates = block_rates(model.encoder.backbone, p) if hasattr(model, "encoder") else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model).items():
        rate = rates.get(name.removeprefix("encoder.backbone."), p.head_learning_rate)
        decay = p.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    if p.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(listed, scale_parameter=False, relative_step=False, warmup_init=False)
    return torch.optim.AdamW(listed)


def cosine_schedule(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Up to the peak rate in `warmup` steps, then down along a cosine to nothing."""
    from transformers.optimization import get_cosine_schedule_with_warmup  # 1.5 s that only training pays

    return get_cosine_schedule_with_warmup(optimizer, warmup, steps)


def class_weights(labels: np.ndarray, p: Params) -> Tensor:
    """(num_classes,) weights, 1 / square root of the class's count, of mean 1 over the rows; 1 when not wanted."""
    counts = np.bincount(labels, minlength=p.num_classes).astype(np.float32)
    weights = 1 / np.sqrt(np.maximum(counts, 1)) if p.use_class_weight else np.ones_like(counts)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum())


def output_losses(
    logits: dict[str, Tensor], labels: Tensor, class_weight: Tensor, label_smoothing: float, count: int
) -> dict[str, Tensor]:
    """Weighted cross-entropy of each output, {name: ()} from {name: (batch, num_classes)}.

    Summed over the batch and divided by `count`, the products of the whole step: micro batches and processes add up to
    the same as one batch.
    """
    losses = {}
    for name, values in logits.items():
        each = F.cross_entropy(values.float(), labels, reduction="none", label_smoothing=label_smoothing)
        losses[name] = (each * class_weight[labels]).sum() / count
    return losses


@contextmanager
def swapped(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Inside, the model has these weights in place of its own."""
    own = {
        name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items() if name in weights
    }
    set_weights(model, weights)
    try:
        yield
    finally:
        set_weights(model, own)


@torch.no_grad()
def set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copies weights, by name, into the trained parameters."""
    for name, parameter in trainable_parameters(model).items():
        if name in weights:
            parameter.copy_(weights[name])
