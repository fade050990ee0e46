"""The recipe: optimizer, schedule, class weights, losses, and weights that are the mean of others."""

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
    """Weighted cross-entropy of each output, {name: ()} from {name: (batch, num_classes)}, or (batch, copies,
    num_classes): the mean over the copies of a head.

    Summed over the batch and divided by `count`, the products of the whole step: micro batches and processes add up to
    the same as one batch.
    """
    losses = {}
    for name, values in logits.items():
        copies = values.shape[1:-1].numel()  # 1 of an output that has none
        targets, flat = labels.repeat_interleave(copies), values.float().flatten(0, -2)
        each = F.cross_entropy(flat, targets, reduction="none", label_smoothing=label_smoothing)
        losses[name] = (each * class_weight[targets]).sum() / (count * copies)
    return losses


# Weights made of other weights ---------------------------------------------------------------------------------------


class Averages:
    """Copies of a training's weights, by name: their moving average, the soup that is kept, the start.

    `ema` (p.ema_decay) and `start` (p.wise_ft) are empty where they are not asked for, `soup` before the second half.
    """

    def __init__(self, model: nn.Module, p: Params) -> None:
        self.ema_decay, self.wants_soup = p.ema_decay, p.soup
        self.ema = copied(model) if p.ema_decay else {}
        self.start = {name: t.cpu() for name, t in copied(model).items()} if p.wise_ft else {}
        self.soup: dict[str, Tensor] = {}

    def update(self, model: nn.Module, steps: int) -> None:
        """Moves the average towards the weights after so many steps; early on, the start is forgotten sooner."""
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        for name, tensor in trainable_parameters(model).items() if self.ema else ():
            self.ema[name].lerp_(tensor.detach(), 1 - decay)

    def end_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Adds an epoch of the second half to the soup, their mean (arXiv 1803.05407); nothing is chosen."""
        place = epoch - epochs // 2  # 1 for the first of them
        if self.wants_soup and place > 0:
            own = self.ema or trainable_parameters(model)
            before = self.soup or own
            self.soup = {n: before[n].detach().to(t.device).lerp(t.detach(), 1 / place) for n, t in own.items()}

    def kept(self) -> dict[str, Tensor]:
        """The weights that count at an epoch's end where they aren't the model's own: the soup, or the average."""
        return self.soup or self.ema

    def interpolated(self, tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """WiSE-FT (arXiv 2109.01903): alpha times the tuned plus 1 - alpha times the start's weights."""
        return {name: self.start[name].to(t.device).lerp(t, alpha) for name, t in tuned.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All copies by name, for a saved state."""
        kinds = (("ema", self.ema), ("soup", self.soup), ("start", self.start))
        return {f"{kind}.{name}": t for kind, copies in kinds for name, t in copies.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what tensors() gave."""
        for kind, own in (("ema", self.ema), ("start", self.start)):
            for name, tensor in own.items():
                tensor.copy_(tensors[f"{kind}.{name}"])
        self.soup = {n.removeprefix("soup."): t for n, t in tensors.items() if n.startswith("soup.")}


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters as they are now, by name."""
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


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
