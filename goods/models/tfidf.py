"""A linear classifier on TF-IDF features: the model of kind linear, and the judge of doubtful labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from goods.errors import DamagedFileError
from goods.files import atomic_path, read_frame, read_json, write_json
from goods.metrics import METRICS, fit_temperature
from goods.models.columns import Columns, as_json, of_json
from goods.models.token_counts import COLUMNS, vectorizer_of, weigh_tokens
from goods.params import Params

COSTS = (0.3, 1.0, 3.0)  # of the support vector machine, chosen inside each training part
INNER_FOLDS = 3
HELD_OUT = 10_000  # rows of inner folds on which a choice is sure enough: the inner folds beyond them are left out
TOLERANCE = 0.1  # liblinear's own; a thousandth of it, scikit-learn's, takes twice as long to the same scores
WORDS_KEPT = 20  # per class, in words.parquet


def make_svm(cost: float, p: Params) -> LinearSVC:
    """A linear support vector machine, one against the rest."""
    weight = "balanced" if p.use_class_weight else None
    return LinearSVC(C=cost, class_weight=weight, tol=TOLERANCE, random_state=p.seed)


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


def choose_cost(
    features: Callable[[np.ndarray], csr_matrix], labels: np.ndarray, inner: np.ndarray, p: Params
) -> tuple[float, float]:
    """The cost of the best p.metric, and the temperature of the least log-loss, both on inner held-out folds.

    features: those of some of the n rows, so that no more of them are held than are learned from. inner: (n,) numbers
    of the INNER_FOLDS; of many rows the first of them are enough.
    """
    sizes = np.cumsum(np.bincount(inner, minlength=INNER_FOLDS))
    used = range(1 + int(np.searchsorted(sizes, min(HELD_OUT, len(labels)))))
    held_out = np.zeros((len(COSTS), len(labels), p.num_classes))
    for k in used:
        learned, x = labels[inner != k], features(np.flatnonzero(inner != k))
        svms = [make_svm(cost, p).fit(x, learned) for cost in COSTS]
        x = features(np.flatnonzero(inner == k))
        held_out[:, inner == k] = [svm_logits(svm, x, p.num_classes) for svm in svms]
    rows = np.isin(inner, used)
    best = int(np.argmax([METRICS[p.metric].worth_calibrated(labels[rows], logits[rows]) for logits in held_out]))
    return COSTS[best], fit_temperature(held_out[best, rows], labels[rows])


def word_weights(svm: LinearSVC, words: Sequence[str]) -> pd.DataFrame:
    """label (class index), word, weight: the words that speak most for each class, heaviest first.

    `words` are the classifier's first features.
    """
    coefficients = np.atleast_2d(svm.coef_)[:, : len(words)]
    if len(coefficients) == 1:  # of two classes
        coefficients = np.concatenate([-coefficients, coefficients])
    best = np.argsort(-coefficients, axis=1, kind="stable")[:, :WORDS_KEPT]
    return pd.DataFrame({
        "label": np.repeat(svm.classes_, best.shape[1]),
        "word": np.asarray(words, dtype=object)[best].ravel(),
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
    """What a fold of kind linear has learned: vectorizers by the name of their part, and a linear classifier.

    coefficients (classes seen, features), intercepts (classes seen,) and the classes seen; margins are divided by the
    temperature. columns: the further features, the last ones, where there are any.
    """

    vectorizers: dict[str, TfidfVectorizer]
    coefficients: np.ndarray
    intercepts: np.ndarray
    classes: np.ndarray
    temperature: float
    num_classes: int
    columns: Columns | None = None

    def logits(self, texts: pd.DataFrame) -> np.ndarray:
        """(n, num_classes) calibrated margins of tfidf_columns' table."""
        parts = [part.transform(texts[COLUMNS[name]]) for name, part in self.vectorizers.items()]
        x = hstack([*parts, *([self.columns.features(texts)] if self.columns else [])]).tocsr()
        return (
            full_margins(x @ self.coefficients.T + self.intercepts, self.classes, self.num_classes) / self.temperature
        )


class LinearFolds:
    """The models of several folds over one count of each text's tokens, which takes most of the time.

    Of each part: places of the tokens that any fold knows, and for these, fold after fold, the inverse document
    frequencies (tokens, folds) and what a token at length 1 adds to each margin (tokens, folds, classes seen).
    """

    def __init__(self, models: Sequence[LinearModel]) -> None:
        self.models = models
        self._places: dict[str, dict[str, int]] = {}
        self._idf: dict[str, np.ndarray] = {}
        self._weights: dict[str, list[np.ndarray]] = {}
        for name in {name: None for model in models for name in model.vectorizers}:
            known = [model.vectorizers[name].vocabulary_ if name in model.vectorizers else {} for model in models]
            places = {token: place for place, token in enumerate(dict.fromkeys(t for of in known for t in of))}
            self._places[name], self._idf[name] = places, np.zeros((len(places), len(models)))
            self._weights[name] = []
            for number, (model, vocabulary) in enumerate(zip(models, known, strict=True)):
                weights = np.zeros((len(places), len(model.coefficients)))
                if vocabulary:
                    rows = [places[token] for token in vocabulary]
                    columns = _columns_of(model, name)[list(vocabulary.values())]
                    idf = model.vectorizers[name].idf_[list(vocabulary.values())]
                    self._idf[name][rows, number] = idf
                    weights[rows] = model.coefficients[:, columns].T * idf[:, None]
                self._weights[name].append(weights)

    def logits(self, texts: pd.DataFrame) -> list[np.ndarray]:
        """Each model's (n, num_classes) logits of tfidf_columns' table, as its own `logits` has them."""
        margins = [np.tile(model.intercepts, (len(texts), 1)) for model in self.models]
        for name, places in self._places.items():
            counts = weigh_tokens(name, texts[COLUMNS[name]], places)  # (n, tokens)
            lengths = np.sqrt(counts.power(2) @ np.square(self._idf[name]))  # (n, folds)
            for number, weights in enumerate(self._weights[name]):
                margins[number] += (counts @ weights) / np.where(lengths[:, number] > 0, lengths[:, number], 1)[:, None]
        for number, model in enumerate(self.models):
            if model.columns:
                margins[number] += model.columns.features(texts) @ model.coefficients[:, -model.columns.width :].T
        return [full_margins(values, model.classes, model.num_classes) / model.temperature
                for values, model in zip(margins, self.models, strict=True)]  # fmt: skip


def _columns_of(model: LinearModel, part: str) -> np.ndarray:
    """Where a part's features stand among the model's."""
    start = 0
    for name, vectorizer in model.vectorizers.items():
        if name == part:
            return np.arange(start, start + len(vectorizer.vocabulary_))
        start += len(vectorizer.vocabulary_)
    raise KeyError(part)


def save_linear(model: LinearModel, weights: Path, details: Path) -> None:
    """Writes coefficients and document frequencies as safetensors (fp32), vocabularies and the rest as JSON."""
    tensors = {"coefficients": model.coefficients.astype(np.float32), "intercepts": model.intercepts.astype(np.float32),
               "classes": model.classes.astype(np.int64)}  # fmt: skip
    tensors |= {f"idf.{name}": part.idf_ for name, part in model.vectorizers.items()}
    parts = {
        name: {"column": COLUMNS[name], "words": part.get_feature_names_out().tolist()}
        for name, part in model.vectorizers.items()
    }
    facts = {"temperature": model.temperature, "num_classes": model.num_classes, "parts": parts}
    write_json(details, facts | as_json(model.columns))
    with atomic_path(weights) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, temporary)


def load_linear(weights: Path, details: Path) -> LinearModel:
    """Reads what save_linear wrote; raises DamagedFileError when it isn't whole."""
    again = "train the fold again: retrain=true"
    facts = read_json(details, again)
    try:
        tensors, vectorizers = load_file(weights), {}
        for name, part in facts["parts"].items():
            vectorizers[name] = vectorizer_of(name, part["words"], tensors[f"idf.{name}"])
        # In 64 bits, as scikit-learn's own: sums in 32 would differ from those of the training.
        found = (tensors["coefficients"].astype(float), tensors["intercepts"].astype(float), tensors["classes"])
        last = (float(facts["temperature"]), int(facts["num_classes"]), of_json(facts))
        return LinearModel(vectorizers, *found, *last)
    except Exception as error:  # anything at all can be wrong with a damaged file
        raise DamagedFileError(f"{weights} or {details.name} beside it is missing or damaged; {again}") from error
