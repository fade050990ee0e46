"""What one fold trains: the products as its model takes them, the model before tuning, and the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from goods_data import Augment, Goods, PhotoDataset, TensorsDataset, TokensDataset, all_products, titles_of
from goods_labels import training_rows
from goods_model import (
    DualEncoder,
    Embedder,
    GoodsClassifier,
    GoodsHeads,
    TextClassifier,
    TextEmbedder,
    TextEncoder,
    block_rates,
    checkpoint_activations,
    halve_frozen,
    load_backbone,
    load_processor,
    make_heads,
    pick_precision,
    set_trainable,
)
from goods_params import GoodsError, Params, progress

SCALE_ROWS = 1024  # training products whose frozen embeddings scale the heads' inputs where the backbone is tuned
WARM_START_BATCH = 256


# ---------------------------------------------------------------------------------------------------------------------
# 11 A fold's task
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """What one fold trains: a model, and the products as that model takes them."""

    model: nn.Module
    train: Dataset  # items hold the model's inputs and "label"
    valid: Dataset
    ids: np.ndarray  # (n,) of the training products
    labels: dict[str, np.ndarray]  # "train", "valid": (n,) class indices


def make_task(p: Params, goods: Goods, folds: pd.DataFrame) -> Task:
    """Model and datasets of fold p.fold: heads on cached embeddings (tune: head), or the whole classifier."""
    train, labels = training_rows(p, goods, folds, p.fold)
    valid = np.flatnonzero(folds["fold"] == p.fold)
    parts = {"train": labels, "valid": folds["label"].to_numpy()[valid]}
    products = all_products(goods)
    learned, scored = products.iloc[train], products.iloc[valid]
    targets = {part: torch.tensor(values.astype(np.int64)) for part, values in parts.items()}
    if p.kind == "text":
        model = make_text_classifier(p)
        of_train, of_valid = (tokens_dataset(model.encoder, table, label=targets[part])
                              for table, part in ((learned, "train"), (scored, "valid")))  # fmt: skip
    elif p.tune == "head":
        embeddings = embed_products(p, products if p.pseudo_from else goods.train)
        model = make_heads({name: values[train] for name, values in embeddings.items()}, p)
        of_train, of_valid = (
            TensorsDataset(**{name: values[rows] for name, values in embeddings.items()}, label=targets[part])
            for rows, part in ((train, "train"), (valid, "valid"))
        )
    else:
        model = make_classifier(p, learned, targets["train"])
        of_train = photo_dataset(p, model.encoder, learned, targets["train"], train=True)
        of_valid = photo_dataset(p, model.encoder, scored, targets["valid"])
    return Task(model, of_train, of_valid, learned["id"].to_numpy(), parts)


def embed_products(p: Params, table: pd.DataFrame) -> dict[str, Tensor]:
    """{"image": (n, image_dim), "text": (n, text_dim)} of a table's products, from the frozen backbone."""
    embedder = Embedder(p)
    embeddings = {
        "image": embedder.photos(table["image"], table["sha"]),
        "text": embedder.texts(table["text"], titles_of(table)),
    }
    return embeddings | extra_embeddings(p, table)


def extra_embeddings(p: Params, table: pd.DataFrame) -> dict[str, Tensor]:
    """{"extra": (n, extra_dim)} of a table's texts from the encoder in p.extra_embeddings; {} where there is none."""
    return {"extra": TextEmbedder(p).texts(table["text"])} if p.extra_embeddings else {}


def make_text_classifier(p: Params) -> TextClassifier:
    """The classifier of kind text before tuning: pretrained encoder, fresh head."""
    if p.warm_start_epochs:
        raise GoodsError("warm_start_epochs is for kind dual; with kind text leave it 0")
    encoder = TextEncoder(p.model_name, p.max_text_length)
    most = getattr(encoder.backbone.config, "max_position_embeddings", 0)
    if 0 < most < p.max_text_length:
        raise GoodsError(f"max_text_length {p.max_text_length} is more than the {most} tokens the encoder can read")
    torch.manual_seed(p.seed + p.fold)  # of the head and the adapters
    set_trainable(encoder.backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    classifier = TextClassifier(encoder, p)
    halve_frozen(classifier, pick_precision(p.mixed_precision))
    return classifier


def tokens_dataset(encoder: TextEncoder, table: pd.DataFrame, **columns: Tensor) -> TokensDataset:
    """A table's texts as a text encoder takes them."""
    return TokensDataset(encoder.tokenize(table["text"]), encoder.tokenizer.pad_token_id, **columns)


def make_classifier(p: Params, train: pd.DataFrame, labels: Tensor) -> GoodsClassifier:
    """The classifier before tuning: pretrained backbone, and heads scaled to, or fitted on, its frozen embeddings."""
    some = train
    if not p.warm_start_epochs:
        some = train.iloc[np.random.default_rng(p.seed).permutation(len(train))[:SCALE_ROWS]]
    embeddings = embed_products(p, some)
    heads = make_heads(embeddings, p)
    if p.warm_start_epochs:
        fit_heads(heads, embeddings, labels, p)
    backbone = load_backbone(p.model_name)
    torch.manual_seed(p.seed + p.fold)  # of the adapters
    set_trainable(backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(backbone)
    classifier = GoodsClassifier(DualEncoder(backbone, load_processor(p.model_name), p), heads)
    halve_frozen(classifier, pick_precision(p.mixed_precision))
    return classifier


def photo_dataset(
    p: Params, encoder: DualEncoder, table: pd.DataFrame, labels: Tensor | None = None, train: bool = False
) -> PhotoDataset:
    """Photos and token windows of a table's products as the classifier takes them, changed at random to train on."""
    columns = {
        "input_ids": encoder.processor.tokenize(table["text"], titles_of(table), p.max_text_length, p.text_windows)
    }
    columns |= extra_embeddings(p, table)
    if labels is not None:
        columns["label"] = labels
    augment = Augment(p.augment_crop, p.augment_flip, p.augment_colour, p.augment_blur, p.augment_jpeg)
    changes = augment if train and any(augment) else None
    return PhotoDataset(table["image"], encoder.image_size, changes, p.seed + p.fold, **columns)


def fit_heads(heads: GoodsHeads, embeddings: dict[str, Tensor], labels: Tensor, p: Params) -> None:
    """Fits the heads on frozen embeddings, so that tuning starts from there (LP-FT, arXiv 2202.10054)."""
    generator = torch.Generator().manual_seed(p.seed + p.fold)
    steps = p.warm_start_epochs * math.ceil(len(labels) / WARM_START_BATCH)
    # Not at head_learning_rate: what moves fitted heads gently is far too slow to fit them.
    optimizer = make_optimizer(heads, p.model_copy(update={"head_learning_rate": p.warm_start_learning_rate}))
    schedule = cosine_schedule(optimizer, steps // 10, steps)
    class_weight = class_weights(labels.numpy(), p)
    heads.train()
    for _ in progress(range(p.warm_start_epochs), desc="fitting the heads", leave=False):
        for rows in torch.randperm(len(labels), generator=generator).split(WARM_START_BATCH):
            logits = heads(**{name: values[rows] for name, values in embeddings.items()})
            sum(output_losses(logits, labels[rows], class_weight, p.label_smoothing, len(rows)).values()).backward()
            nn.utils.clip_grad_norm_(heads.parameters(), p.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


# ---------------------------------------------------------------------------------------------------------------------
# 12 The recipe
# ---------------------------------------------------------------------------------------------------------------------


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_optimizer(model: nn.Module, p: Params) -> torch.optim.Optimizer:
    """AdamW or Adafactor over what is trained: layer-wise rates, the heads' own, no decay on norms and biases."""
    rates = block_rates(model.encoder.backbone, p) if hasattr(model, "encoder") else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained(model).items():
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
