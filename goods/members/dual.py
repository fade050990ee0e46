"""Kind dual: image and text encoder (SigLIP, SigLIP 2 FixRes, CLIP) under fused heads, frozen or tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from goods.data.datasets import PhotoDataset, TensorsDataset, photos_in
from goods.data.photos import Augment, load_photo
from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.members import KINDS, Predict
from goods.members.base import Part, part_of
from goods.models.backbone import DualEncoder, load_backbone, load_processor
from goods.models.device import pick_device, pick_precision
from goods.models.embeddings import embed_products, extra_embeddings
from goods.models.heads import GoodsClassifier, GoodsHeads, heads_like, heads_of, make_heads
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
from goods.training.task import Task, fit_heads

__all__ = ["ensemble", "fit", "load", "occlusion", "predictor", "save"]

SCALE_ROWS = 1024  # training products whose frozen embeddings scale the heads' inputs where the backbone is tuned


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds, one after the other."""
    for number in numbers:
        fit_fold(p.model_copy(update={"fold": number}), goods, make_task, KINDS["dual"].code())


def save(model: GoodsClassifier | GoodsHeads, fold: Fold) -> None:
    """A fold's trained tensors; its training has saved them."""
    save_trained(model, fold.weights)


def load(p: Params, fold: Fold) -> GoodsClassifier:
    """A trained fold's model, from photos and texts to logits."""
    heads, backbone = heads_like(fold.weights, p), load_backbone(p.model_name)
    set_as_saved(backbone, p, fold.weights)
    model = GoodsClassifier(DualEncoder(backbone, load_processor(p.model_name), p), heads)
    halve_frozen(model, pick_precision(p.mixed_precision))
    load_trained(model.heads if p.tune == "head" else model, fold.weights)
    return model


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"fused", "image", "text": (n, num_classes) logits}}.

    The photos are decoded and the texts tokenised once for all folds (with tune: head, embedded once).
    """
    model, chunks = (_frozen if p.tune == "head" else _tuned)(p, folds[0], inputs)
    states = {fold: read_trained(fold.weights) for fold in folds}

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        accelerator = make_accelerator(p)
        parts: dict[int, list[dict[str, np.ndarray]]] = {fold.number: [] for fold in folds}
        for chunk in chunks(products):
            for fold, state in states.items():
                set_trained(model, state, fold.weights)
                parts[fold.number].append(predict_dataset(model, chunk, p, accelerator))
        return {k: {name: np.concatenate([part[name] for part in of]) for name in of[0]} for k, of in parts.items()}

    return predict


Chunks = Callable[[pd.DataFrame], Iterator[Dataset]]  # of a table, as the model takes it


def _frozen(p: Params, fold: Fold, inputs: Inputs) -> tuple[nn.Module, Chunks]:
    inputs.will_embed(p)
    return heads_like(fold.weights, p), lambda products: iter([TensorsDataset(**inputs.embeddings(p, products))])


def _tuned(p: Params, fold: Fold, inputs: Inputs) -> tuple[nn.Module, Chunks]:
    model = load(p, fold)
    inputs.will_decode(model.encoder.image_size)

    def chunks(products: pd.DataFrame) -> Iterator[Dataset]:
        return inputs.chunks(photo_dataset(p, model.encoder, products, inputs=inputs), p)

    return model, chunks


# What a fold trains --------------------------------------------------------------------------------------------------


def make_task(p: Params, goods: Goods, folds: pd.DataFrame, saved: dict[str, Tensor]) -> Task:
    """Model and datasets of fold p.fold: heads on cached embeddings (tune: head), or the whole classifier.

    `saved`: the tensors of a training that goes on, which hold the heads' scale: nothing is embedded again for it.
    """
    part = part_of(p, goods, p.fold)
    labels = {"train": part.labels, "valid": folds["label"].to_numpy()[part.valid]}
    targets = {name: torch.tensor(values.astype(np.int64)) for name, values in labels.items()}
    if p.tune == "head":
        embeddings = embed_products(p, part.products if p.pseudo_from else goods.train)
        model: nn.Module = make_heads({name: values[part.rows] for name, values in embeddings.items()}, p)
        of_train, of_valid = (
            TensorsDataset(**{name: values[rows] for name, values in embeddings.items()}, label=targets[name_])
            for rows, name_ in ((part.rows, "train"), (part.valid, "valid"))
        )
    else:
        heads = heads_of(saved, p) if saved else first_heads(p, part, targets["train"])
        model = make_classifier(p, heads)
        of_train = photo_dataset(p, model.encoder, part.learned, targets["train"], train=True)
        of_valid = photo_dataset(p, model.encoder, part.held_back, targets["valid"]) if len(part.valid) else None
    return Task(model, of_train, of_valid, part.learned["id"].to_numpy(), labels, planned=True)


def first_heads(p: Params, part: Part, labels: Tensor) -> GoodsHeads:
    """Heads before tuning: scaled to, or with p.warm_start_epochs fitted on, frozen embeddings of the training part."""
    some = part.learned
    if not p.warm_start_epochs:
        some = some.iloc[np.random.default_rng(p.seed).permutation(len(some))[:SCALE_ROWS]]
    embeddings = embed_products(p, some)
    heads = make_heads(embeddings, p)
    if p.warm_start_epochs:
        fit_heads(heads, embeddings, labels, p)
    return heads


def make_classifier(p: Params, heads: GoodsHeads) -> GoodsClassifier:
    """The classifier before tuning: pretrained backbone under these heads."""
    backbone = load_backbone(p.model_name)
    torch.manual_seed(p.seed + p.seed_offset)  # of the adapters
    set_trainable(backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(backbone)
    classifier = GoodsClassifier(DualEncoder(backbone, load_processor(p.model_name), p), heads)
    halve_frozen(classifier, pick_precision(p.mixed_precision))
    return classifier


def photo_dataset(
    p: Params,
    encoder: DualEncoder,
    table: pd.DataFrame,
    labels: Tensor | None = None,
    train: bool = False,
    inputs: Inputs | None = None,
) -> PhotoDataset:
    """Photos and token windows of a table's products as the classifier takes them, to train on changed at random.

    Of a product's several photos one is drawn in training, else all are embedded, and the mean counts.
    """
    tokenize = encoder.processor.tokenize
    columns = {"input_ids": tokenize(table["text"], table["title"], p.max_text_length, p.text_windows)}
    columns |= (inputs or Inputs()).extra(p, table)
    if labels is not None:
        columns["label"] = labels
    augment = Augment(p.augment_crop, p.augment_flip, p.augment_colour, p.augment_blur, p.augment_jpeg)
    changes = augment if train and any(augment) else None
    return PhotoDataset(photos_in(table), encoder.image_size, changes, p.seed + p.seed_offset, draw=train, **columns)


def occlusion(p: Params, fold: Fold, texts: list[str], product: pd.Series, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of each text with the photo; and with the text, of a white photo and of each patch hidden."""
    model, device = load(p, fold).to(pick_device()).eval(), pick_device()
    encoder = model.encoder
    ids = encoder.processor.tokenize(texts, [product["title"]] * len(texts), p.max_text_length, p.text_windows)
    photos = hidden_patches(load_photo(product["image"], encoder.image_size), grid)
    image = torch.cat([encoder.embed_images(part.to(device)) for part in photos.split(p.eval_batch_size)])
    text = torch.cat([encoder.embed_texts(part.to(device)) for part in ids.split(p.eval_batch_size)])
    extra = extra_embeddings(p, pd.DataFrame({"id": product["id"], "text": texts})).get("extra")
    extra = None if extra is None else extra.to(device)

    def of(image: Tensor, text: Tensor, extra: Tensor | None) -> np.ndarray:
        n = max(len(image), len(text))
        more = {} if extra is None else {"extra": extra.expand(n, -1)}
        return probabilities_of(model.heads(image.expand(n, -1), text.expand(n, -1), **more))

    return of(image[:1], text, extra), of(image[1:], text[:1], None if extra is None else extra[:1])


def hidden_patches(photo: Tensor, grid: int) -> Tensor:
    """(2 + grid * grid, 3, size, size) from (3, size, size): the photo, white, then each patch in its mean colour."""
    size, mean = photo.shape[-1], photo.float().mean((1, 2)).round().to(torch.uint8)
    edges = [round(i * size / grid) for i in range(grid + 1)]
    found = photo.repeat(2 + grid * grid, 1, 1, 1)
    found[1] = 255
    for row in range(grid):
        for column in range(grid):
            patch = found[2 + row * grid + column, :, edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
            patch.copy_(mean[:, None, None].expand_as(patch))
    return found
