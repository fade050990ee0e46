"""What a fold learns from: its training labels as they were mended, less the doubtful ones, and test rows that another
run has labelled.

Nothing here sees the labels of the rows that the fold is scored on.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from scipy.special import softmax

from goods.data.folds import make_folds, product_groups
from goods.data.mended import DROPPED, learned_labels
from goods.data.tables import Goods
from goods.errors import GoodsError
from goods.files import read_frame
from goods.metrics import fit_temperature
from goods.models.tfidf import INNER_FOLDS, make_svm, svm_logits
from goods.models.token_counts import count_tokens, fit_tfidf, tfidf_columns
from goods.params import REFIT, Params
from goods.run import Run

KEPT_OF_CLASS = 0.5  # at least so much of a class stays, however doubtful its labels look


def training_rows(p: Params, goods: Goods, folds: pd.DataFrame, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a fold learns from, in all_products(goods), and their class indices."""
    learned = learned_labels(goods)
    rows = np.flatnonzero((folds["fold"] != fold) & (learned != DROPPED))
    labels = learned[rows]
    if p.drop_noisy:
        kept = ~doubtful_rows(goods.train.iloc[rows], labels, p)
        rows, labels = rows[kept], labels[kept]
    if p.pseudo_from:
        pseudo = read_pseudo_labels(p, goods, folds, fold)
        place = pd.Series(np.arange(len(goods.test)) + len(goods.train), index=goods.test["id"])
        rows = np.concatenate([rows, place[pseudo["id"]].to_numpy()])
        labels = np.concatenate([labels, pseudo["label"].to_numpy()])
    return rows, labels


def rows_hash(p: Params, goods: Goods, folds: pd.DataFrame, fold: int) -> str:
    """A hash of what training_rows is made from: ids and labels of the training part and of the pseudo-labels."""
    learned = folds.assign(label=learned_labels(goods))
    rows = learned[(learned["fold"] != fold) & (learned["label"] != DROPPED)][["id", "label"]]
    if p.pseudo_from:
        rows = pd.concat([rows, read_pseudo_labels(p, goods, folds, fold)])
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:16]


def find_label_issues(labels: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """Rows whose label the predictions contradict, worst first: row, suggested (class index), margin.

    Confident learning (Northcutt et al., arXiv 1911.00068): a class is possible where its probability is at least the
    mean that its own rows give it. A row is doubtful when the likeliest possible class isn't its label's; margin is the
    label's probability less that class's. logits: (n, num_classes), of models that did not see the row.
    """
    labels, probabilities = np.asarray(labels), softmax(logits, axis=1)
    own = np.full(probabilities.shape[1], np.inf)  # a class without rows is never suggested
    for k in np.unique(labels):
        own[k] = probabilities[labels == k, k].mean()
    possible = np.where(probabilities >= own, probabilities, -1.0)
    suggested = possible.argmax(1)
    doubtful = np.flatnonzero((possible.max(1) > 0) & (suggested != labels))
    margin = probabilities[doubtful, labels[doubtful]] - probabilities[doubtful, suggested[doubtful]]
    found = pd.DataFrame({"row": doubtful, "suggested": suggested[doubtful], "margin": margin})
    return found.sort_values("margin", kind="stable", ignore_index=True)


def doubtful_rows(table: pd.DataFrame, labels: np.ndarray, p: Params) -> np.ndarray:
    """(n,) bool: the share p.drop_noisy of a training part whose labels its words contradict most.

    Judged by linear classifiers on inner folds of the training part alone, so that no validation label takes part.
    """
    issues = find_label_issues(labels, logits_by_words(table, labels, p))
    dropped, left = np.zeros(len(labels), dtype=bool), np.bincount(labels, minlength=p.num_classes)
    fewest = KEPT_OF_CLASS * left
    for row in issues["row"]:
        if dropped.sum() >= int(p.drop_noisy * len(labels)):
            break
        if left[labels[row]] - 1 >= fewest[labels[row]]:
            dropped[row] = True
            left[labels[row]] -= 1
    return dropped


def logits_by_words(table: pd.DataFrame, labels: np.ndarray, p: Params) -> np.ndarray:
    """(n, num_classes) calibrated logits of a table's rows by linear classifiers of its words that haven't seen them.

    Reads seed, num_classes, and what product groups are made by.
    """
    counts = count_tokens(tfidf_columns(table))
    inner = make_folds(table["id"], labels, product_groups(table, p), INNER_FOLDS, p.seed)
    logits = np.zeros((len(labels), p.num_classes))
    for k in range(INNER_FOLDS):
        learned, judged = np.flatnonzero(inner != k), np.flatnonzero(inner == k)
        tfidf = fit_tfidf(counts, learned)
        svm = make_svm(1.0, p).fit(tfidf.features(counts, learned), labels[learned])
        logits[judged] = svm_logits(svm, tfidf.features(counts, judged), p.num_classes)
    return logits / fit_temperature(logits, labels)


def read_pseudo_labels(p: Params, goods: Goods, folds: pd.DataFrame, fold: int) -> pd.DataFrame:
    """id and label of the test rows that the run p.pseudo_from has labelled for a fold; for the refit, those that it
    has labelled alike for more than half of the folds.

    Raises GoodsError when there are none, or when that run's folds or tables are others: its model of this fold may
    then have seen the rows that this fold is scored on.
    """
    if fold == REFIT:
        each = pd.concat([read_pseudo_labels(p, goods, folds, k) for k in range(p.n_folds)])
        times = each.groupby(["id", "label"], sort=False).size()
        return times[times > p.n_folds / 2].reset_index()[["id", "label"]]
    teacher = Run.named(p, str(p.pseudo_from))
    path = teacher.pseudo(fold)
    if not path.is_file():
        raise GoodsError(f"there is no {path}; run notebooks/pseudo_label.ipynb with run={p.pseudo_from} first")
    again = "run notebooks/pseudo_label.ipynb again"
    pseudo, theirs = (
        read_frame(path, ["id", "label"], again)[["id", "label"]],
        read_frame(teacher.folds_table, (), again),
    )
    if not theirs.equals(folds):
        raise GoodsError(f"run '{p.pseudo_from}' has other folds or training rows; its labels would leak into this "
                         "run's validation parts. Take the same tables, seed and n_folds")  # fmt: skip
    if pseudo.empty:
        raise GoodsError(f"run '{p.pseudo_from}' was sure of no test product for fold {fold}; lower "
                         "pseudo_precision in notebooks/pseudo_label.ipynb, or leave out pseudo_from")  # fmt: skip
    if not pseudo["id"].isin(goods.test["id"]).all() or not pseudo["label"].between(0, p.num_classes - 1).all():
        raise GoodsError(f"{path} names products or classes that are not there; {again}")
    return pseudo
