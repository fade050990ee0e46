"""Words as features, and a linear machine on them: the model of kind linear, and the judge of doubtful labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from goods.data.texts import titles_of
from goods.metrics import fit_temperature, macro_f1
from goods.params import Params

COSTS = (0.3, 1.0, 3.0)  # of the support vector machine, chosen inside each training part
INNER_FOLDS = 3


def tfidf_columns(table: pd.DataFrame) -> pd.DataFrame:
    """What the features are made of: the whole text, and the title once more."""
    return pd.DataFrame({"text": table["text"].tolist(), "title": titles_of(table)})


def make_vectorizer(texts: pd.DataFrame) -> ColumnTransformer:
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


def make_svm(cost: float, p: Params) -> LinearSVC:
    """A linear support vector machine, one against the rest."""
    return LinearSVC(C=cost, class_weight="balanced" if p.use_class_weight else None, random_state=p.seed)


def svm_logits(machine: LinearSVC, x: csr_matrix, num_classes: int) -> np.ndarray:
    """(n, num_classes) margins; a class that the machine never saw is below all others."""
    values = machine.decision_function(x)
    if values.ndim == 1:  # of two classes
        values = np.stack([-values, values], axis=1)
    full = np.repeat(values.min(1, keepdims=True) - 1, num_classes, axis=1)
    full[:, machine.classes_] = values
    return full


def choose_cost(x: csr_matrix, labels: np.ndarray, inner: np.ndarray, p: Params) -> tuple[float, float]:
    """The cost of the best macro-F1, and the temperature of the least log-loss, both on inner held-out folds."""
    found = []
    for cost in COSTS:
        held_out = np.zeros((len(labels), p.num_classes))
        for k in range(INNER_FOLDS):
            machine = make_svm(cost, p).fit(x[inner != k], labels[inner != k])
            held_out[inner == k] = svm_logits(machine, x[inner == k], p.num_classes)
        found.append((macro_f1(labels, held_out.argmax(1)), cost, held_out))
    _, cost, held_out = max(found, key=lambda item: item[0])
    return cost, fit_temperature(held_out, labels)


WORDS_KEPT = 20  # a class, in words.parquet


def word_weights(machine: LinearSVC, features: ColumnTransformer) -> pd.DataFrame:
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


def heaviest_words(p: Params, classes: list[str], top: int = 8) -> pd.DataFrame:
    """The words that speak most for each class, by their mean weight over the folds: a table to look at.

    Empty for a run whose folds have kept no weights of words.
    """
    tables = [pd.read_parquet(path) for path in sorted(p.run_dir.glob("fold*/words.parquet"))]
    if not tables:
        return pd.DataFrame(columns=["words"])
    weights = (pd.concat(tables).groupby(["label", "word"])["weight"].sum() / len(tables)).reset_index()
    best = weights.sort_values(["label", "weight", "word"], ascending=[True, False, True]).groupby("label").head(top)
    words = best.groupby("label")["word"].agg(", ".join)
    return pd.DataFrame({"words": words.to_numpy()}, index=[classes[label] for label in words.index])
