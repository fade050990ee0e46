"""Kind text: a text encoder fine-tuned under a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from goods.data.datasets import TokensDataset, pad_tokens
from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.errors import ParameterError
from goods.members import KINDS, Predict
from goods.members.base import part_of
from goods.models.device import pick_device, pick_precision
from goods.models.heads import TextClassifier
from goods.models.text_encoder import TextEncoder, load_text_encoder
from goods.models.tuning import (
    checkpoint_activations,
    halve_frozen,
    load_trained,
    read_trained,
    save_trained,
    set_as_saved,
    set_trainable,
    set_trained,
)
from goods.params import Params
from goods.predictions import probabilities_of
from goods.run import Fold
from goods.training.fold import fit_fold
from goods.training.inference import make_accelerator
from goods.training.inference import predict as predict_dataset
from goods.training.inputs import Inputs
from goods.training.task import Task

__all__ = ["ensemble", "fit", "load", "occlusion", "predictor", "save"]


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds, one after the other."""
    for number in numbers:
        fit_fold(p.model_copy(update={"fold": number}), goods, make_task, KINDS["text"].code())


def save(model: TextClassifier, fold: Fold) -> None:
    """A fold's trained tensors; its training has saved them."""
    save_trained(model, fold.weights)


def load(p: Params, fold: Fold) -> TextClassifier:
    """A trained fold's model, from texts to logits."""
    model = make_classifier(p, fold.weights)
    load_trained(model, fold.weights)
    return model


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"text": (n, num_classes) logits}}, tokenised once."""
    model, states = load(p, folds[0]), {fold: read_trained(fold.weights) for fold in folds}

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        accelerator, dataset, found = make_accelerator(p), tokens_dataset(model.encoder, products), {}
        for fold, state in states.items():
            set_trained(model, state, fold.weights)
            found[fold.number] = predict_dataset(model, dataset, p, accelerator)
        return found

    return predict


def make_task(p: Params, goods: Goods, folds: pd.DataFrame, saved: dict[str, Tensor]) -> Task:
    """Model and datasets of fold p.fold."""
    part = part_of(p, goods, p.fold)
    labels = {"train": part.labels, "valid": folds["label"].to_numpy()[part.valid]}
    targets = {name: torch.tensor(values.astype(np.int64)) for name, values in labels.items()}
    model = make_classifier(p)
    return Task(
        model,
        tokens_dataset(model.encoder, part.learned, label=targets["train"]),
        tokens_dataset(model.encoder, part.held_back, label=targets["valid"]) if len(part.valid) else None,
        part.learned["id"].to_numpy(),
        labels,
    )


def make_classifier(p: Params, weights: Path | None = None) -> TextClassifier:
    """The classifier before tuning: pretrained encoder, fresh head; `weights`, where they are to be put into it."""
    if p.warm_start_epochs:
        raise ParameterError("warm_start_epochs is for kind dual; with kind text leave it 0")
    encoder = load_text_encoder(p.model_name, p.max_text_length, normalize=False)
    most = getattr(encoder.backbone.config, "max_position_embeddings", 0)
    if 0 < most < p.max_text_length:
        raise ParameterError(f"max_text_length {p.max_text_length} is more than the {most} tokens the encoder can read")
    torch.manual_seed(p.seed + p.seed_offset)  # of the head and the adapters
    if weights:
        set_as_saved(encoder.backbone, p, weights)
    else:
        set_trainable(encoder.backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    classifier = TextClassifier(encoder, p)
    halve_frozen(classifier, pick_precision(p.mixed_precision))
    return classifier


def tokens_dataset(encoder: TextEncoder, table: pd.DataFrame, **columns: Tensor) -> TokensDataset:
    """A table's texts as a text encoder takes them."""
    return TokensDataset(encoder.tokenize(table["text"]), **columns)


def occlusion(p: Params, fold: Fold, texts: list[str], product: pd.Series, grid: int) -> tuple[np.ndarray, None]:
    """(texts, num_classes) probabilities of each text; there is no photo to hide."""
    model: nn.Module = load(p, fold).to(pick_device()).eval()
    tokens, parts = model.encoder.tokenize(texts), []
    for start in range(0, len(tokens), p.eval_batch_size):
        ids = pad_tokens(tokens[start : start + p.eval_batch_size]).to(pick_device())
        parts.append(probabilities_of(model(input_ids=ids)))
    return np.concatenate(parts), None
