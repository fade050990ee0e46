"""Kind dual: image and text encoder under fused heads, frozen or tuned: a dual encoder, or two of two makers.

What looks at photos alone, kind image, goes the same road: `sides` says at which sides of a product a model looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from goods.data.datasets import PhotoDataset, TensorsDataset
from goods.data.photos import Augment, load_photo, photos_in
from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.members import KINDS, Predict
from goods.members.base import Part, part_of
from goods.members.frozen import check_dims, columns_of, frozen_task, with_columns
from goods.models.columns import Columns, load_columns
from goods.models.device import pick_device, pick_precision
from goods.models.embeddings import embed_products, extra_embeddings
from goods.models.encoders import SIDES, Encoder, load_encoder
from goods.models.heads import GoodsClassifier, GoodsHeads, heads_like, heads_of, make_heads
from goods.models.tuning import (
    checkpoint_activations,
    drop_towers,
    fixed_sides,
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
from goods.training.inputs import Inputs, Sides
from goods.training.task import Task, as_tensors, fit_heads

__all__ = ["ensemble", "fit", "load", "occlusion", "predictor", "save"]

SCALE_ROWS = 1024  # training products whose frozen embeddings scale the heads' inputs where the backbone is tuned


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds, one after the other."""
    for number in numbers:
        fit_fold(p.model_copy(update={"fold": number}), goods, make_task, KINDS["dual"].code())


def save(model: GoodsClassifier | GoodsHeads, fold: Fold) -> None:
    """A fold's trained tensors; its training has saved them."""
    save_trained(model, fold.weights)


def load(p: Params, fold: Fold, sides: Sides = SIDES) -> GoodsClassifier:
    """A trained fold's model, from photos and texts to logits."""
    heads, encoder = heads_like(fold.weights, p), load_encoder(p, sides)
    set_as_saved(encoder.backbone, p, fold.weights)
    model = GoodsClassifier(encoder, heads)
    halve_frozen(model, pick_precision(p.mixed_precision))
    load_trained(model.heads if p.tune == "head" else model, fold.weights)
    return model


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs, sides: Sides = SIDES) -> Predict:
    """Of a table, {fold number: {"fused", "image", "text": (n, num_classes) logits}}.

    The photos are decoded and the texts tokenised once for all folds (with tune: head, embedded once).
    """
    model, chunks = (_frozen if p.tune == "head" else _tuned)(p, folds[0], inputs, sides)
    states = {fold: read_trained(fold.weights) for fold in folds}
    columns = {fold: load_columns(fold.details, p) for fold in folds}
    heads = model if p.tune == "head" else model.heads

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        accelerator = make_accelerator(p)
        parts: dict[int, list[dict[str, np.ndarray]]] = {fold.number: [] for fold in folds}
        start = 0
        for chunk in chunks(products):
            rows = products.iloc[start : start + len(chunk)]
            start += len(chunk)
            if "extra" in chunk.columns:
                check_dims(p, folds[0].run, {"extra": chunk.columns["extra"]}, {"extra": heads.dims.get("extra", 0)})
            for fold, state in states.items():
                set_trained(model, state, fold.weights)
                own = with_columns(chunk, rows, columns[fold])
                parts[fold.number].append(predict_dataset(model, own, p, accelerator))
        return {k: {name: np.concatenate([part[name] for part in of]) for name in of[0]} for k, of in parts.items()}

    return predict


Chunks = Callable[[pd.DataFrame], Iterator[TensorsDataset]]  # of a table, as the model takes it


def _frozen(p: Params, fold: Fold, inputs: Inputs, sides: Sides) -> tuple[nn.Module, Chunks]:
    inputs.will_embed(p, sides)
    return heads_like(fold.weights, p), lambda products: iter([TensorsDataset(**inputs.embeddings(p, products, sides))])


def _tuned(p: Params, fold: Fold, inputs: Inputs, sides: Sides) -> tuple[nn.Module, Chunks]:
    model = load(p, fold, sides)
    fixed = fixed_sides(model.encoder.backbone, p, sides)
    drop_towers(model.encoder.backbone, fixed)  # `inputs` has what embeds them
    inputs.will_embed(p, sides, fixed)
    if "image" not in fixed:
        inputs.will_decode(model.encoder.image_size)

    def chunks(products: pd.DataFrame) -> Iterator[TensorsDataset]:
        dataset = dataset_of(p, model.encoder, products, sides, inputs)
        return inputs.chunks(dataset, p) if isinstance(dataset, PhotoDataset) else iter([dataset])

    return model, chunks


# What a fold trains --------------------------------------------------------------------------------------------------


def make_task(p: Params, goods: Goods, folds: pd.DataFrame, saved: dict[str, Tensor], sides: Sides = SIDES) -> Task:
    """Model and datasets of fold p.fold: heads on cached embeddings (tune: head), or the whole classifier.

    `saved`: the tensors of a training that goes on, which hold the heads' scale: nothing is embedded again for it.
    """
    if p.tune == "head":
        return frozen_task(p, goods, sides)
    part = part_of(p, goods, p.fold)
    labels = part.targets
    targets = as_tensors(labels)
    columns = part.learn_columns(p)
    heads = heads_of(saved, p) if saved else first_heads(p, part, targets["train"], sides, columns)
    model, inputs = make_classifier(p, heads, sides), Inputs()
    of_train, of_valid = (
        dataset_of(p, model.encoder, rows, sides, inputs, targets[of], of == "train", columns) if len(rows) else None
        for rows, of in ((part.learned, "train"), (part.held_back, "valid"))
    )
    return Task(model, of_train, of_valid, part.learned["id"].to_numpy(), labels, sides, columns)


def first_heads(p: Params, part: Part, labels: Tensor, sides: Sides, columns: Columns | None = None) -> GoodsHeads:
    """Heads before tuning: scaled to, or with p.warm_start_epochs fitted on, frozen embeddings of the training part."""
    some = part.learned
    if not p.warm_start_epochs:
        some = some.iloc[np.random.default_rng(p.seed).permutation(len(some))[:SCALE_ROWS]]
    embeddings = embed_products(p, some, sides) | columns_of(some, columns)
    heads = make_heads(embeddings, p)
    if p.warm_start_epochs:
        fit_heads(heads, embeddings, labels, p)
    return heads


def make_classifier(p: Params, heads: GoodsHeads, sides: Sides = SIDES) -> GoodsClassifier:
    """The classifier before tuning: pretrained encoder under these heads."""
    encoder = load_encoder(p, sides)
    torch.manual_seed(p.seed + p.seed_offset)  # of the adapters
    set_trainable(encoder.backbone, p)
    if p.gradient_checkpointing:
        checkpoint_activations(encoder.backbone)
    classifier = GoodsClassifier(encoder, heads)
    halve_frozen(classifier, pick_precision(p.mixed_precision))
    return classifier


def dataset_of(
    p: Params,
    encoder: Encoder,
    table: pd.DataFrame,
    sides: Sides,
    inputs: Inputs,
    labels: Tensor | None = None,
    train: bool = False,
    further: Columns | None = None,
) -> PhotoDataset | TensorsDataset:
    """Photos and token windows of a table's products as the classifier takes them, to train on changed at random.

    Of a product's several photos one is drawn in training, else all are embedded, and the mean counts. What a training
    leaves as it is comes as embeddings, which are made once.
    """
    fixed = fixed_sides(encoder.backbone, p, sides)
    columns = columns_of(table, further) | inputs.embeddings(p, table, sides, fixed)
    if "text" in sides and "text" not in fixed:
        columns["input_ids"] = encoder.tokenize(table["text"].tolist(), table["title"].tolist(), p.text_windows)
    if labels is not None:
        columns["label"] = labels
    if "image" in fixed:
        return TensorsDataset(**columns)
    augment = Augment(p.augment_crop, p.augment_flip, p.augment_colour, p.augment_blur, p.augment_jpeg)
    changes = augment if train and any(augment) else None
    return PhotoDataset(photos_in(table), encoder.image_size, changes, p.seed + p.seed_offset, draw=train, **columns)


def occlusion(
    p: Params, fold: Fold, texts: list[str], product: pd.Series, grid: int, sides: Sides = SIDES
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of each text with the photo; and with the text, of a white photo and of each patch hidden.

    Where no texts are read, of the photo alone.
    """
    model, device = load(p, fold, sides).to(pick_device()).eval(), pick_device()
    encoder = model.encoder
    photos = hidden_patches(load_photo(product["image"], encoder.image_size), grid)
    image = torch.cat([encoder.embed_images(part.to(device)) for part in photos.split(p.eval_batch_size)])
    if "text" not in sides:
        found = probabilities_of(model.heads(image))
        return found[:1], found[1:]
    ids = encoder.tokenize(texts, [product["title"]] * len(texts), p.text_windows)
    text = torch.cat([encoder.embed_texts(part.to(device)) for part in ids.split(p.eval_batch_size)])
    extra = extra_embeddings(p, pd.DataFrame({"id": product["id"], "text": texts})).get("extra")
    extra = None if extra is None else extra.to(device)

    own = columns_of(pd.DataFrame([product]), load_columns(fold.details, p))

    def of(image: Tensor, text: Tensor, extra: Tensor | None) -> np.ndarray:
        n = max(len(image), len(text))
        more = {} if extra is None else {"extra": extra.expand(n, -1)}
        more |= {name: values.to(device).expand(n, -1) for name, values in own.items()}
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
