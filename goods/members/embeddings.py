"""Kind embeddings: heads on vectors that were made elsewhere, such as those of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from goods.data.datasets import TensorsDataset
from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.members import KINDS, Predict
from goods.members.frozen import check_dims, frozen_task, with_columns
from goods.models.columns import load_columns
from goods.models.heads import GoodsHeads, heads_like
from goods.models.tuning import load_trained, read_trained, save_trained, set_trained
from goods.params import Params
from goods.run import Fold
from goods.training.fold import fit_fold
from goods.training.inference import make_accelerator
from goods.training.inference import predict as predict_dataset
from goods.training.inputs import Inputs
from goods.training.task import Task

__all__ = ["ensemble", "fit", "load", "predictor", "save"]


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds, one after the other, as kind dual does with tune head."""
    for number in numbers:
        fit_fold(p.model_copy(update={"fold": number}), goods, make_task, KINDS["embeddings"].code())


def save(model: GoodsHeads, fold: Fold) -> None:
    """A fold's trained tensors; its training has saved them."""
    save_trained(model, fold.weights)


def load(p: Params, fold: Fold) -> GoodsHeads:
    """A trained fold's model, from vectors to logits."""
    heads = heads_like(fold.weights, p)
    load_trained(heads, fold.weights)
    return heads


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"fused": (n, num_classes) logits}}, "image" and "text" where there are such vectors.

    Raises GoodsError where the vectors are of other dimensions than those that the folds learned from.
    """
    inputs.will_embed(p)
    model, states = heads_like(folds[0].weights, p), {fold: read_trained(fold.weights) for fold in folds}
    columns = {fold: load_columns(fold.details, p) for fold in folds}

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        embeddings = inputs.embeddings(p, products)
        check_dims(p, folds[0].run, embeddings, {name: dim for name, dim in model.dims.items() if name != "columns"})
        accelerator, dataset, found = make_accelerator(p), TensorsDataset(**embeddings), {}
        for fold, state in states.items():
            set_trained(model, state, fold.weights)
            own = with_columns(dataset, products, columns[fold])
            found[fold.number] = predict_dataset(model, own, p, accelerator)
        return found

    return predict


def make_task(p: Params, goods: Goods, folds: pd.DataFrame, saved: dict[str, Tensor]) -> Task:
    """Heads and vectors of fold p.fold."""
    return frozen_task(p, goods)
