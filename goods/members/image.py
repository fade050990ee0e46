"""Kind image: an image encoder (ViT, ConvNeXt, DINOv2, DINOv3, SigLIP's image tower) under a head, frozen or tuned.

It goes the road of kind dual, with photos as the only side of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from goods.data.tables import Goods
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.members import KINDS, Predict, dual
from goods.members.dual import save
from goods.models.heads import GoodsClassifier
from goods.params import Params
from goods.run import Fold
from goods.training.fold import fit_fold
from goods.training.inputs import Inputs

__all__ = ["ensemble", "fit", "load", "occlusion", "predictor", "save"]

PHOTOS = ("image",)


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds, one after the other."""
    make_task = partial(dual.make_task, sides=PHOTOS)
    for number in numbers:
        fit_fold(p.model_copy(update={"fold": number}), goods, make_task, KINDS["image"].code())


def load(p: Params, fold: Fold) -> GoodsClassifier:
    """A trained fold's model, from photos to logits."""
    return dual.load(p, fold, PHOTOS)


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"image": (n, num_classes) logits}}, photos decoded once for all folds."""
    return dual.predictor(p, folds, inputs, PHOTOS)


def occlusion(p: Params, fold: Fold, texts: list[str], product: pd.Series, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """(1, num_classes) probabilities with the photo; and those of a white photo and of each patch hidden."""
    return dual.occlusion(p, fold, texts, product, grid, PHOTOS)
