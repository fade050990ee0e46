"""Kind linear: a linear classifier on TF-IDF features, the baseline that pictures and transformers have to beat."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

from goods.data.folds import make_folds, product_groups
from goods.data.further import further_columns
from goods.data.tables import Goods, all_products
from goods.ensemble.folds import ensemble_folds as ensemble
from goods.files import write_frame
from goods.machine import give_back, used
from goods.members import KINDS, Predict
from goods.members.base import due_folds, finish, fit_in_parallel, part_of
from goods.models.tfidf import (
    INNER_FOLDS,
    LinearFolds,
    LinearModel,
    choose_cost,
    load_linear,
    make_svm,
    save_linear,
    svm_logits,
    word_weights,
)
from goods.models.token_counts import TokenCounts, count_tokens, fit_tfidf, tfidf_columns
from goods.params import Params
from goods.predictions import write_predictions
from goods.run import Fold, Run
from goods.training.due import to_train, what_makes

if TYPE_CHECKING:  # a fold's process takes half the memory without torch
    from goods.training.inputs import Inputs

__all__ = ["ensemble", "fit", "load", "predictor", "save"]


def fit(p: Params, goods: Goods, numbers: Sequence[int]) -> None:
    """Trains these folds side by side, and predicts the test set with each; the one output is "text".

    Raises GoodsError where there are no words to learn from.
    """
    code = KINDS["linear"].code()
    if due := due_folds(p, goods, list(numbers), code):
        products = all_products(goods)
        groups = product_groups(products, p)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            counts = count_tokens(tfidf_columns(products)).filed(Path(folder))
            del products
            give_back()
            fit_in_parallel(_fit_fold, due, p, goods, counts, groups, code)


def save(model: LinearModel, fold: Fold) -> None:
    """The fold's coefficients as weights.safetensors; vocabulary, temperature and classes as model.json."""
    save_linear(model, fold.weights, fold.details)


def load(p: Params, fold: Fold) -> LinearModel:
    """A trained fold's model, from texts to logits."""
    return load_linear(fold.weights, fold.details)


def predictor(p: Params, folds: Sequence[Fold], inputs: Inputs) -> Predict:
    """Of a table, {fold number: {"text": (n, num_classes) logits}}."""
    models = LinearFolds([load(p, fold) for fold in folds])

    def predict(products: pd.DataFrame) -> dict[int, dict[str, np.ndarray]]:
        made = models.logits(tfidf_columns(products, further_columns(p)))
        return {fold.number: {"text": logits} for fold, logits in zip(folds, made, strict=True)}

    return predict


def _fit_fold(number: int, p: Params, goods: Goods, counts: TokenCounts, groups: np.ndarray, code: str) -> None:
    fold = Run.of(p).fold(number)
    with fold.held():
        if not to_train(fold, p, what_makes(fold, p, goods, code), say=False):
            return  # whoever held it has trained it meanwhile
        began, part = time.perf_counter(), part_of(p, goods, number)
        tfidf, columns = fit_tfidf(counts, part.rows), part.learn_columns(p)
        further = csr_matrix(columns.features(part.products)) if columns else None

        def features(rows: np.ndarray) -> csr_matrix:
            words = tfidf.features(counts, rows)
            return words if further is None else csr_matrix(hstack([words, further[rows]]))

        inner = make_folds(part.learned["id"].to_numpy(), part.labels, groups[part.rows], INNER_FOLDS, p.seed)
        cost, temperature = choose_cost(lambda rows: features(part.rows[rows]), part.labels, inner, p)
        svm = make_svm(cost, p).fit(features(part.rows), part.labels)
        held_back, test = (
            {"text": svm_logits(svm, features(rows), p.num_classes) / temperature} if len(rows) else {}
            for rows in (part.valid, np.arange(len(goods.train), len(part.products)))
        )
        fold.begin_writing()
        vectorizers = tfidf.vectorizers(counts)
        learned = (vectorizers, svm.coef_, svm.intercept_, svm.classes_, temperature, p.num_classes, columns)
        save(LinearModel(*learned), fold)
        write_frame(fold.words, word_weights(svm, vectorizers["words"].get_feature_names_out()))
        facts = {"rows": len(part.rows), "cost": cost, "temperature": round(temperature, 4)}
        facts |= {"resources": used(time.perf_counter() - began)}
        finish(p, goods, fold, code, held_back, **facts)
        write_predictions(fold.test, goods.test[["id"]].assign(fold=number), test)
