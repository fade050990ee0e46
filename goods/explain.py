"""Why a product is predicted as it is: what the probability loses without its image, its text, a patch or a word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from goods.data.folds import read_folds
from goods.data.tables import Goods, all_products
from goods.errors import GoodsError
from goods.members import kind_of
from goods.models.device import autocast
from goods.params import Params
from goods.run import Fold, Run

MAX_WORDS = 64  # of a text, from its beginning; a text tower reads hardly more


@dataclass(frozen=True)
class Explanation:
    """The probability of the predicted class, and what is left of it.

    product: id, title, text, image. probabilities: "all", "without image", "without text" (those that there are).
    patches: (grid, grid), lost when a patch of the photo is hidden, None without a photo. words: word, lost.
    """

    product: pd.Series
    predicted: int
    probabilities: dict[str, float]
    patches: np.ndarray | None
    words: pd.DataFrame


@torch.no_grad()
def explain(p: Params, goods: Goods, product_id: str, grid: int = 7) -> Explanation:
    """Occlusion (Zeiler and Fergus, arXiv 1311.2901) of one product, by the fold that didn't learn from it.

    Hidden patches get the photo's mean colour; a hidden word is left out. Raises GoodsError for an unknown id, for an
    untrained fold, and for kinds without a model of their own.
    """
    kind = kind_of(p)
    occlusion = getattr(kind.load(), "occlusion", None)
    if occlusion is None:
        raise GoodsError(f"kind {kind.name} can't say why; explain a run of another kind, such as dual or text")
    table = all_products(goods)
    rows = np.flatnonzero(table["id"] == product_id)
    if not len(rows):
        raise GoodsError(f"there is no product '{product_id}' in train or test")
    product, fold = table.iloc[rows[0]], _fold_of(p, goods, product_id)
    words = product["text"].split()
    texts = [product["text"], "", *(" ".join(words[:i] + words[i + 1 :]) for i in range(min(len(words), MAX_WORDS)))]
    with autocast(p.mixed_precision):
        by_text, by_patch = occlusion(p, fold, texts, product, grid)
    predicted = int(by_text[0].argmax())
    lost = by_text[0, predicted] - by_text[2:, predicted]  # of a kind that reads no texts of none
    probabilities = {"all": float(by_text[0, predicted])}
    if len(by_text) > 1:
        probabilities["without text"] = float(by_text[1, predicted])
    patches = None
    if by_patch is not None:
        probabilities["without image"] = float(by_patch[0, predicted])
        if product["image"]:
            patches = (by_text[0, predicted] - by_patch[1:, predicted]).reshape(grid, grid)
    shown = pd.DataFrame({"word": words[: len(lost)], "lost": lost})
    return Explanation(product, predicted, probabilities, patches, shown)


def _fold_of(p: Params, goods: Goods, product_id: str) -> Fold:
    """The fold whose model hasn't seen the product: that which held it back; for the test set the first trained one."""
    run, folds = Run.of(p), read_folds(goods, p)
    trained, own = run.trained(), folds.loc[folds["id"] == product_id, "fold"]
    wanted = int(own.iloc[0]) if len(own) else next(iter(trained), 0)
    if wanted not in trained:
        raise GoodsError(f"fold {wanted} of run '{p.run}' is not trained, and only its model hasn't seen the product; "
                         f"train it, or choose a product of fold {', '.join(map(str, trained)) or '...'}")  # fmt: skip
    return run.fold(wanted)
