"""What one fold trains: the products as its model takes them, the model before tuning, and the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from goods.data.datasets import PhotoDataset, TensorsDataset, TokensDataset
from goods.data.photos import Augment
from goods.data.tables import Goods, all_products
from goods.data.texts import titles_of
from goods.errors import GoodsError
from goods.models.backbone import DualEncoder, TextEncoder, load_backbone, load_processor
from goods.models.device import pick_precision
from goods.models.embeddings import embed_products, extra_embeddings
from goods.models.heads import GoodsClassifier, GoodsHeads, TextClassifier, make_heads
from goods.models.tuning import checkpoint_activations, halve_frozen, set_trainable
from goods.params import Params
from goods.progress import progress_bar
from goods.training.optim import class_weights, cosine_schedule, make_optimizer, output_losses
from goods.training.rows import training_rows

SCALE_ROWS = 1024  # training products whose frozen embeddings scale the heads' inputs where the backbone is tuned
WARM_START_BATCH = 256


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
    for _ in progress_bar(range(p.warm_start_epochs), desc="fitting the heads", leave=False):
        for rows in torch.randperm(len(labels), generator=generator).split(WARM_START_BATCH):
            logits = heads(**{name: values[rows] for name, values in embeddings.items()})
            sum(output_losses(logits, labels[rows], class_weight, p.label_smoothing, len(rows)).values()).backward()
            nn.utils.clip_grad_norm_(heads.parameters(), p.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
