"""TF-IDF features and a linear classifier on them: the model of kind linear, and the judge of doubtful labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from goods.errors import DamagedFileError
from goods.files import atomic_path, read_frame, read_json, write_json
from goods.metrics import fit_temperature, macro_f1
from goods.params import Params

COSTS = (0.3, 1.0, 3.0)  # of the support vector machine, chosen inside each training part
INNER_FOLDS = 3
WORDS_KEPT = 20  # per class, in words.parquet
_WORDS = {"ngram_range": (1, 2), "sublinear_tf": True, "dtype": np.float32}
PARTS = {"words": _WORDS, "characters": _WORDS | {"ngram_range": (3, 5), "analyzer": "char_wb"}, "title": _WORDS}


def tfidf_columns(table: pd.DataFrame) -> pd.DataFrame:
    """What the features are made of: the whole text, and the title once more."""
    return pd.DataFrame({"text": table["text"].tolist(), "title": table["title"].tolist()})


def make_vectorizer(texts: pd.DataFrame) -> ColumnTransformer:
    """TF-IDF of the text's words and word pairs and of its characters, and of the title's words.

    The title has features of its own: what a thing is called weighs more than a word somewhere in its description.
    """
    parts = [(name, TfidfVectorizer(**PARTS[name], min_df=2), "text") for name in ("words", "characters")]
    if texts["title"].str.contains(r"\w\w").any():
        parts.append(("title", TfidfVectorizer(**PARTS["title"], min_df=1), "title"))
    return ColumnTransformer(parts)


def make_svm(cost: float, p: Params) -> LinearSVC:
    """A linear support vector machine, one against the rest."""
    return LinearSVC(C=cost, class_weight="balanced" if p.use_class_weight else None, random_state=p.seed)


def svm_logits(svm: LinearSVC, x: csr_matrix, num_classes: int) -> np.ndarray:
    """(n, num_classes) margins; a class that the classifier never saw is below all others."""
    return full_margins(svm.decision_function(x), svm.classes_, num_classes)


def full_margins(values: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, num_classes) from the margins of the classes seen; of two classes there is but one margin."""
    if values.ndim == 1 or values.shape[1] == 1:
        values = values.reshape(-1)
        values = np.stack([-values, values], axis=1)
    full = np.repeat(values.min(1, keepdims=True) - 1, num_classes, axis=1)
    full[:, classes] = values
    return full


def choose_cost(x: csr_matrix, labels: np.ndarray, inner: np.ndarray, p: Params) -> tuple[float, float]:
    """The cost of the best macro-F1, and the temperature of the least log-loss, both on inner held-out folds."""
    found = []
    for cost in COSTS:
        held_out = np.zeros((len(labels), p.num_classes))
        for k in range(INNER_FOLDS):
            svm = make_svm(cost, p).fit(x[inner != k], labels[inner != k])
            held_out[inner == k] = svm_logits(svm, x[inner == k], p.num_classes)
        found.append((macro_f1(labels, held_out.argmax(1)), cost, held_out))
    _, cost, held_out = max(found, key=lambda item: item[0])
    return cost, fit_temperature(held_out, labels)


def word_weights(svm: LinearSVC, features: ColumnTransformer) -> pd.DataFrame:
    """label (class index), word, weight: the words that speak most for each class, heaviest first."""
    words = features.named_transformers_["words"].get_feature_names_out()
    coefficients = np.atleast_2d(svm.coef_)[:, features.output_indices_["words"]]
    if len(coefficients) == 1:  # of two classes
        coefficients = np.concatenate([-coefficients, coefficients])
    best = np.argsort(-coefficients, axis=1, kind="stable")[:, :WORDS_KEPT]
    return pd.DataFrame({
        "label": np.repeat(svm.classes_, best.shape[1]),
        "word": words[best].ravel(),
        "weight": np.take_along_axis(coefficients, best, axis=1).ravel(),
    })  # fmt: skip


def heaviest_words(files: Sequence[Path], classes: Sequence[str], top: int = 8) -> pd.DataFrame:
    """The words that speak most for each class, by their mean weight over the folds' words.parquet."""
    again = "train the fold again: retrain=true"
    tables = [read_frame(path, ["label", "word", "weight"], again) for path in files]
    if not tables:
        return pd.DataFrame(columns=["words"])
    weights = (pd.concat(tables).groupby(["label", "word"])["weight"].sum() / len(tables)).reset_index()
    best = weights.sort_values(["label", "weight", "word"], ascending=[True, False, True]).groupby("label").head(top)
    words = best.groupby("label")["word"].agg(", ".join)
    return pd.DataFrame({"words": words.to_numpy()}, index=[classes[label] for label in words.index])


# A trained classifier as files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearModel:
    """What a fold of kind linear has learned: vectorizers by name (each with its column), and a linear classifier.

    coefficients (classes seen, features), intercepts (classes seen,) and the classes seen; margins are divided by the
    temperature.
    """

    vectorizers: dict[str, tuple[str, TfidfVectorizer]]
    coefficients: np.ndarray
    intercepts: np.ndarray
    classes: np.ndarray
    temperature: float
    num_classes: int

    @classmethod
    def of(cls, svm: LinearSVC, features: ColumnTransformer, temperature: float, num_classes: int) -> LinearModel:
        """The model in fitted scikit-learn objects."""
        vectorizers = {name: (column, part) for name, part, column in features.transformers_ if name in PARTS}
        return cls(vectorizers, svm.coef_, svm.intercept_, svm.classes_, temperature, num_classes)

    def logits(self, texts: pd.DataFrame) -> np.ndarray:
        """(n, num_classes) calibrated margins of tfidf_columns' table."""
        x = hstack([part.transform(texts[column]) for column, part in self.vectorizers.values()]).tocsr()
        return (
            full_margins(x @ self.coefficients.T + self.intercepts, self.classes, self.num_classes) / self.temperature
        )


def save_linear(model: LinearModel, weights: Path, details: Path) -> None:
    """Writes coefficients and document frequencies as safetensors (fp32), vocabularies and the rest as JSON."""
    tensors = {"coefficients": model.coefficients.astype(np.float32), "intercepts": model.intercepts.astype(np.float32),
               "classes": model.classes.astype(np.int64)}  # fmt: skip
    tensors |= {f"idf.{name}": part.idf_ for name, (_, part) in model.vectorizers.items()}
    parts = {
        name: {"column": column, "words": part.get_feature_names_out().tolist()}
        for name, (column, part) in model.vectorizers.items()
    }
    write_json(details, {"temperature": model.temperature, "num_classes": model.num_classes, "parts": parts})
    with atomic_path(weights) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, temporary)


def load_linear(weights: Path, details: Path) -> LinearModel:
    """Reads what save_linear wrote; raises DamagedFileError when it isn't whole."""
    again = "train the fold again: retrain=true"
    facts = read_json(details, again)
    try:
        tensors, vectorizers = load_file(weights), {}
        for name, part in facts["parts"].items():
            vectorizers[name] = (part["column"], TfidfVectorizer(**PARTS[name], vocabulary=part["words"]))
            vectorizers[name][1].idf_ = tensors[f"idf.{name}"]
        # In 64 bits, as scikit-learn's own: sums in 32 would differ from those of the training.
        found = (tensors["coefficients"].astype(float), tensors["intercepts"].astype(float), tensors["classes"])
        return LinearModel(vectorizers, *found, float(facts["temperature"]), int(facts["num_classes"]))
    except Exception as error:  # anything at all can be wrong with a damaged file
        raise DamagedFileError(f"{weights} or {details.name} beside it is missing or damaged; {again}") from error
