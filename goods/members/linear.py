"""A linear classifier on TF-IDF features: the baseline that pictures and transformers have to beat."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.sparse import csr_matrix

from goods.data.folds import make_folds, product_groups, read_folds
from goods.data.tables import Goods, all_products
from goods.errors import GoodsError
from goods.files import atomic_path, write_json
from goods.metrics import score
from goods.models.tfidf import (
    INNER_FOLDS,
    choose_cost,
    make_svm,
    make_vectorizer,
    svm_logits,
    tfidf_columns,
    word_weights,
)
from goods.params import Params
from goods.predictions import write_predictions
from goods.training.rows import training_rows


def fit_linear(p: Params, goods: Goods) -> pd.DataFrame:
    """Trains, scores and predicts with all folds of p.folds that aren't finished; returns the folds' metrics.

    Writes oof.parquet, test.parquet, words.parquet and, last, metrics.json to each fold<k>; the one output is "text".
    Raises GoodsError where there are no words to learn from.
    """
    if p.kind != "linear":
        raise GoodsError(f"this config's kind is {p.kind}, which notebooks/train.ipynb trains; take params/linear.yaml")
    folds = read_folds(goods, p)
    due = [k for k in p.folds if not _finished(p.run_dir / f"fold{k}")]
    jobs = max(1, min(len(due), os.cpu_count() or 1))
    Parallel(n_jobs=jobs)(delayed(_fit_fold)(p, k, goods, folds) for k in due)
    metrics = [json.loads((p.run_dir / f"fold{k}" / "metrics.json").read_text(encoding="utf-8")) for k in p.folds]
    return pd.DataFrame([m["text"] | {name: m[name] for name in ("cost", "temperature")} for m in metrics],
                        index=pd.Index(p.folds, name="fold"))  # fmt: skip


def _finished(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("metrics.json", "oof.parquet", "test.parquet"))


def _fit_fold(p: Params, fold: int, goods: Goods, folds: pd.DataFrame) -> None:
    began, folder = time.perf_counter(), p.run_dir / f"fold{fold}"
    train, labels = training_rows(p, goods, folds, fold)
    valid, products = np.flatnonzero(folds["fold"] == fold), all_products(goods)
    texts = tfidf_columns(products)
    features = make_vectorizer(texts.iloc[train])
    try:
        x = csr_matrix(features.fit_transform(texts.iloc[train]))
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise GoodsError("no word occurs in two training texts; kind linear needs texts to learn from") from error
    groups = product_groups(products)[train]
    inner = make_folds(products["id"].to_numpy()[train], labels, groups, INNER_FOLDS, p.seed)
    cost, temperature = choose_cost(x, labels, inner, p)
    machine = make_svm(cost, p).fit(x, labels)
    logits = {
        name: svm_logits(machine, csr_matrix(features.transform(table)), p.num_classes) / temperature
        for name, table in (("oof", texts.iloc[valid]), ("test", texts.iloc[len(goods.train) :]))
    }
    write_predictions(folder / "oof.parquet", folds.iloc[valid], {"text": logits["oof"]})
    write_predictions(folder / "test.parquet", goods.test[["id"]].assign(fold=fold), {"text": logits["test"]})
    with atomic_path(folder / "words.parquet") as temporary:
        word_weights(machine, features).to_parquet(temporary, index=False)
    metrics: dict[str, Any] = {
        "text": score(folds["label"].to_numpy()[valid], logits["oof"]),
        "fold": fold,
        "rows": len(train),
    }
    metrics |= {"cost": cost, "temperature": round(temperature, 4)}
    write_json(folder / "metrics.json", metrics | {"resources": {"seconds": round(time.perf_counter() - began, 1)}})
