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
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from goods_data import Goods, make_folds, product_groups, read_folds, titles_of
from goods_metrics import fit_temperature, macro_f1, score, write_predictions
from goods_params import GoodsError, Params, atomic_path, write_json

COSTS = (0.3, 1.0, 3.0)  # of the support vector machine, chosen inside each training part
INNER_FOLDS = 3
WORDS_KEPT = 20  # a class, in words.parquet


def fit_linear(p: Params, goods: Goods) -> pd.DataFrame:
    """Trains, scores and predicts with all folds of p.folds that aren't finished; returns the folds' metrics.

    Writes oof.parquet, test.parquet, words.parquet and, last, metrics.json to each fold<k>; the one output is "text".
    Raises GoodsError where there are no words to learn from.
    """
    if p.kind != "linear":
        raise GoodsError(f"this config's kind is {p.kind}, which notebooks/train.ipynb trains; take params/linear.yaml")
    folds = read_folds(goods, p)
    groups = product_groups(goods.train)
    due = [k for k in p.folds if not _finished(p.run_dir / f"fold{k}")]
    jobs = max(1, min(len(due), os.cpu_count() or 1))
    Parallel(n_jobs=jobs)(delayed(_fit_fold)(p, k, goods, folds, groups) for k in due)
    metrics = [json.loads((p.run_dir / f"fold{k}" / "metrics.json").read_text(encoding="utf-8")) for k in p.folds]
    return pd.DataFrame([m["text"] | {name: m[name] for name in ("cost", "temperature")} for m in metrics],
                        index=pd.Index(p.folds, name="fold"))  # fmt: skip


def _finished(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("metrics.json", "oof.parquet", "test.parquet"))


def _fit_fold(p: Params, fold: int, goods: Goods, folds: pd.DataFrame, groups: np.ndarray) -> None:
    began, folder = time.perf_counter(), p.run_dir / f"fold{fold}"
    train, valid = np.flatnonzero(folds["fold"] != fold), np.flatnonzero(folds["fold"] == fold)
    labels, texts = folds["label"].to_numpy(), columns_of(goods.train)
    features = make_features(texts.iloc[train])
    try:
        x = csr_matrix(features.fit_transform(texts.iloc[train]))
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise GoodsError("no word occurs in two training texts; kind linear needs texts to learn from") from error
    inner = make_folds(folds["id"].to_numpy()[train], labels[train], groups[train], INNER_FOLDS, p.seed)
    cost, temperature = tune(x, labels[train], inner, p)
    machine = make_machine(cost, p).fit(x, labels[train])
    logits = {
        name: decisions(machine, csr_matrix(features.transform(table)), p.num_classes) / temperature
        for name, table in (("oof", texts.iloc[valid]), ("test", columns_of(goods.test)))
    }
    write_predictions(folder / "oof.parquet", folds.iloc[valid], {"text": logits["oof"]})
    write_predictions(folder / "test.parquet", goods.test[["id"]].assign(fold=fold), {"text": logits["test"]})
    with atomic_path(folder / "words.parquet") as temporary:
        words_of(machine, features).to_parquet(temporary, index=False)
    metrics: dict[str, Any] = {"text": score(labels[valid], logits["oof"]), "fold": fold, "rows": len(train)}
    metrics |= {"cost": cost, "temperature": round(temperature, 4)}
    write_json(folder / "metrics.json", metrics | {"resources": {"seconds": round(time.perf_counter() - began, 1)}})


def columns_of(table: pd.DataFrame) -> pd.DataFrame:
    """What the features are made of: the whole text, and the title once more."""
    return pd.DataFrame({"text": table["text"].tolist(), "title": titles_of(table)})


def make_features(texts: pd.DataFrame) -> ColumnTransformer:
    """TF-IDF of the text's words and word pairs and of its characters, and of the title's words.

    The title has features of its own: what a thing is called weighs more than a word somewhere in its description.
    """
    words = {"ngram_range": (1, 2), "min_df": 2, "sublinear_tf": True, "dtype": np.float32}
    parts = [
        ("words", TfidfVectorizer(**words), "text"),
        ("characters", TfidfVectorizer(**words | {"ngram_range": (3, 5), "analyzer": "char_wb"}), "text"),
    ]
    if texts["title"].str.contains(r"\w\w").any():
        parts.append(("title", TfidfVectorizer(**words | {"min_df": 1}), "title"))
    return ColumnTransformer(parts)


def make_machine(cost: float, p: Params) -> LinearSVC:
    """A linear support vector machine, one against the rest."""
    return LinearSVC(C=cost, class_weight="balanced" if p.use_class_weight else None, random_state=p.seed)


def decisions(machine: LinearSVC, x: csr_matrix, num_classes: int) -> np.ndarray:
    """(n, num_classes) margins; a class that the machine never saw is below all others."""
    values = machine.decision_function(x)
    if values.ndim == 1:  # of two classes
        values = np.stack([-values, values], axis=1)
    full = np.repeat(values.min(1, keepdims=True) - 1, num_classes, axis=1)
    full[:, machine.classes_] = values
    return full


def tune(x: csr_matrix, labels: np.ndarray, inner: np.ndarray, p: Params) -> tuple[float, float]:
    """The cost of the best macro-F1, and the temperature of the least log-loss, both on inner held-out folds."""
    found = []
    for cost in COSTS:
        held_out = np.zeros((len(labels), p.num_classes))
        for k in range(INNER_FOLDS):
            machine = make_machine(cost, p).fit(x[inner != k], labels[inner != k])
            held_out[inner == k] = decisions(machine, x[inner == k], p.num_classes)
        found.append((macro_f1(labels, held_out.argmax(1)), cost, held_out))
    _, cost, held_out = max(found, key=lambda item: item[0])
    return cost, fit_temperature(held_out, labels)


def words_of(machine: LinearSVC, features: ColumnTransformer) -> pd.DataFrame:
    """label (class index), word, weight: the words that speak most for each class, heaviest first."""
    words = features.named_transformers_["words"].get_feature_names_out()
    coefficients = np.atleast_2d(machine.coef_)[:, features.output_indices_["words"]]
    if len(coefficients) == 1:  # of two classes
        coefficients = np.concatenate([-coefficients, coefficients])
    best = np.argsort(-coefficients, axis=1, kind="stable")[:, :WORDS_KEPT]
    return pd.DataFrame({
        "label": np.repeat(machine.classes_, best.shape[1]),
        "word": words[best].ravel(),
        "weight": np.take_along_axis(coefficients, best, axis=1).ravel(),
    })  # fmt: skip


def telling_words(p: Params, classes: list[str], top: int = 8) -> pd.DataFrame:
    """The words that speak most for each class, by their mean weight over the folds: a table to look at."""
    tables = [pd.read_parquet(path) for path in sorted(p.run_dir.glob("fold*/words.parquet"))]
    weights = (pd.concat(tables).groupby(["label", "word"])["weight"].sum() / len(tables)).reset_index()
    best = weights.sort_values(["label", "weight", "word"], ascending=[True, False, True]).groupby("label").head(top)
    words = best.groupby("label")["word"].agg(", ".join)
    return pd.DataFrame({"words": words.to_numpy()}, index=[classes[label] for label in words.index])
