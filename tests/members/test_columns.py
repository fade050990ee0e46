"""Further columns in the models: they tell classes apart, each fold learns its own, and new goods need them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import fit, put_together

from goods.classify import prepare_job
from goods.data.folds import read_folds
from goods.data.tables import read_goods
from goods.errors import GoodsError
from goods.explain import explain
from goods.models.columns import load_columns
from goods.predictions import frame_logits
from goods.predictor import load_predictor
from goods.run import Run
from goods_utils import fit_all

SMALL = {"n_folds": 3, "num_workers": 0, "image_size": 64, "hidden_dim": 32, "batch_size": 32, "eval_batch_size": 64,
         "num_epochs": 20, "head_learning_rate": 3e-3, "tune": "head", "folds": [0]}  # fmt: skip
COLUMNS = {"category_columns": "brand", "number_columns": "price"}


@pytest.fixture(scope="module")
def shop(sample, tmp_path_factory):
    """The sample's tables with a brand and a price that all but name the class; the test set's are drawn."""
    folder = tmp_path_factory.mktemp("shop")
    for part in ("train", "test"):
        table = pd.read_csv(sample.data / f"{part}.csv", dtype=str, keep_default_na=False)
        k = table["categories"].astype(int) if part == "train" else pd.Series(range(len(table))) % 21
        table["brand"] = [f"Brand {label // 4}" for label in k]
        table["price"] = [f"{3 * (label % 4)},{label:02} €" for label in k]
        table.to_csv(folder / f"{part}.csv", index=False)
    return {f"{part}_csv": str(folder / f"{part}.csv") for part in ("train", "test")}


def accuracy(p) -> float:
    found = pd.concat([pd.read_parquet(fold.oof) for fold in Run.of(p).folds()])
    return float((frame_logits(found).argmax(1) == found["label"]).mean())


@pytest.mark.parametrize("given", [{"kind": "linear"}, {"tune": "head"}], ids=["linear", "head"])
def test_they_join_the_words_and_the_heads(make, shop, given, tmp_path):
    plain, p = make(run="plain", **given, **shop), make(run="further", **given, **shop, **COLUMNS)
    goods = read_goods(p)
    for each in (plain, p):
        fit_all(each, goods)
    assert accuracy(p) > accuracy(plain) + 0.1
    put_together(p, goods)
    predictor, expected = load_predictor(p.run_dir), np.exp(frame_logits(pd.read_parquet(Run.of(p).test)))
    table = pd.read_csv(shop["test_csv"], dtype=str).assign(image=goods.test["image"])
    np.testing.assert_allclose(predictor.predict(table), expected, rtol=0, atol=1e-5)
    other = predictor.predict(table.assign(brand="Brand 4", price="0,16"))
    assert np.abs(other - expected).max() > 0.01  # they count
    with pytest.raises(GoodsError, match="the products lack price, which run 'further' was trained on"):
        predictor.predict(table.drop(columns="price"))
    table.drop(columns=["brand", "image"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(GoodsError, match=r"new\.csv lacks brand, which the run reads"):
        prepare_job(predictor, tmp_path / "new.csv", tmp_path / "out.parquet", "none")


def test_each_fold_learns_from_its_own_part(make, shop):
    p = make(kind="linear", **shop, **COLUMNS | {"folds": [1]})
    goods = read_goods(p)
    folds = read_folds(goods, p)
    goods.train.loc[folds["fold"] == 1, ["brand", "price"]] = ["Held back", "1000000"]
    fit_all(p, goods)
    category, number = load_columns(Run.of(p).fold(1).details, p).parts
    assert "held back" not in (*category.own, *category.rare) and set(category.own) == {f"brand {k}" for k in range(6)}
    assert number.decimal == "," and 0 < number.median < 10


@pytest.mark.slow
def test_a_tuned_backbone_gets_them_too(make, shop):
    p = make(tune="last", **shop, **COLUMNS, num_epochs=1, max_text_length=32)
    goods = read_goods(p)
    fit(p)
    put_together(p, goods)
    expected = np.exp(frame_logits(pd.read_parquet(Run.of(p).test)))
    found = load_predictor(p.run_dir).predict(goods.test)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    product = goods.test["id"][0]
    why = explain(p, goods, product, grid=2)
    raw = pd.read_parquet(Run.of(p).fold(0).test)
    logits = frame_logits(raw)[0]
    assert why.probabilities["all"] == pytest.approx(np.exp(logits - np.logaddexp.reduce(logits)).max(), abs=1e-4)
