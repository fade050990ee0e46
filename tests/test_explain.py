"""Why a product is predicted as it is: occlusion of its photo and words, by the fold that hasn't seen it."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Trained
from scipy.special import softmax

from goods.data.folds import read_folds
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.explain import explain
from goods.figures.errors import occlusion
from goods.members.dual import hidden_patches
from goods.predictions import frame_logits


def test_the_probability_is_that_of_the_fold_that_held_the_product_back(trained: Trained):
    oof = pd.read_parquet(trained.p.run_dir / "fold2" / "oof.parquet")
    row = 5
    why = explain(trained.p, trained.goods, oof["id"][row], grid=4)
    expected = softmax(frame_logits(oof)[row])
    assert why.predicted == expected.argmax() and why.product["id"] == oof["id"][row]
    assert why.probabilities["all"] == pytest.approx(expected.max(), abs=1e-4)
    assert set(why.probabilities) == {"all", "without text", "without image"}
    assert why.patches.shape == (4, 4) and np.abs(why.patches).max() > 0
    assert (
        why.words["word"].tolist() == why.product["text"].split()[: len(why.words)]
        and why.words["lost"].abs().max() > 0
    )


def test_a_hidden_patch_hides_that_patch_alone():
    photo = torch.randint(256, (3, 10, 10), dtype=torch.uint8)
    hidden = hidden_patches(photo, 3)  # 10 is no multiple of 3
    assert hidden.shape == (11, 3, 10, 10) and torch.equal(hidden[0], photo) and (hidden[1] == 255).all()
    changed = torch.stack([(part != photo).any(0) for part in hidden[2:]])
    assert (changed.sum(0) <= 1).all() and changed.sum(0).float().mean() > 0.9  # each pixel by one patch


def test_a_product_without_photo_or_text(trained: Trained):
    goods, test = trained.goods, trained.goods.test.copy()
    test.loc[0, ["image", "sha"]] = ""
    test.loc[1, "text"] = ""
    bare = Goods(goods.train, test, goods.labels, goods.classes, goods.photos)
    blind = explain(trained.p, bare, test["id"][0])
    assert blind.patches is None and blind.probabilities["all"] == pytest.approx(blind.probabilities["without image"])
    mute = explain(trained.p, bare, test["id"][1])
    assert mute.words.empty and mute.probabilities["all"] == pytest.approx(mute.probabilities["without text"])
    for why in (blind, mute):
        figure = occlusion(why.product["image"], why.patches, why.words, why.probabilities, "Cups & mugs")
        assert figure.get_suptitle().startswith("Cups & mugs with probability .")


def test_what_can_not_be_explained(trained: Trained, tmp_path):
    with pytest.raises(GoodsError, match="there is no product 'nobody'"):
        explain(trained.p, trained.goods, "nobody")
    with pytest.raises(GoodsError, match="kind blend can't say why; explain a run of another kind"):
        explain(trained.p.model_copy(update={"kind": "blend"}), trained.goods, "nobody")
    shutil.copytree(trained.p.run_dir, tmp_path / "mini")
    shutil.rmtree(tmp_path / "mini" / "fold2")
    p = trained.p.model_copy(update={"outputs_dir": str(tmp_path)})
    folds = read_folds(trained.goods, p)
    with pytest.raises(GoodsError, match=r"fold 2 of run 'mini' is not trained.* choose a product of fold 0, 1"):
        explain(p, trained.goods, folds.loc[folds["fold"] == 2, "id"].iloc[0])
