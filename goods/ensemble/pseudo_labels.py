"""Pseudo-labels: test products of which a run is sure enough to be learned from by the next one, without leaking."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import softmax

from goods.data.folds import product_groups, read_folds
from goods.data.tables import Goods, all_products
from goods.ensemble.choices import read_oofs, read_tests
from goods.errors import GoodsError, ParameterError
from goods.files import write_frame
from goods.params import Params
from goods.predictions import frame_logits
from goods.run import Run

FEWEST = 5  # out-of-fold rows that a threshold must rest on


def make_pseudo_labels(p: Params, goods: Goods) -> pd.DataFrame:
    """Labels test products for each fold of the finished run p.run: pseudo/fold<k>.parquet, id, label, probability.

    For fold k only the model that never saw fold k's rows labels, thresholds come from the other folds' out-of-fold
    rows, and products that share a text or photo with a row of fold k are left out. Returns the mean over the folds, by
    class: threshold, precision (out of fold, above it), kept, capped.

    Raises ParameterError for a run without folds of its own (a blend), GoodsError for one with untrained folds.
    """
    run, folds = Run.of(p), read_folds(goods, p)
    trained = run.trained()
    if not trained and run.metrics.is_file():
        raise ParameterError(f"run '{p.run}' has no folds of its own; make pseudo-labels by one of its runs: "
                             f"{', '.join(p.runs)}")  # fmt: skip
    if missing := [k for k in range(p.n_folds) if k not in trained]:
        raise GoodsError(f"run '{p.run}' has no trained fold {missing[0]} yet; train all folds, then label")
    oofs, tests = read_oofs(run, folds, p.metric), read_tests([run.fold(k) for k in trained], goods)
    groups = product_groups(all_products(goods), p)
    own, others = groups[: len(goods.train)], groups[len(goods.train) :]
    tables = []
    for k, test in tests.items():
        seen = pd.concat([oof for j, oof in oofs.items() if j != k])
        thresholds = class_thresholds(seen["label"].to_numpy(), softmax(frame_logits(seen), axis=1), p.pseudo_precision)
        counts = np.bincount(seen["label"], minlength=p.num_classes)
        free = ~np.isin(others, own[(folds["fold"] == k).to_numpy()])
        labels = pick(softmax(frame_logits(test), axis=1), free, thresholds["threshold"].to_numpy(),
                      (p.pseudo_cap * counts).astype(int))  # fmt: skip
        write_frame(run.pseudo(k), goods.test[["id"]].join(labels, how="inner"))
        kept = np.bincount(labels["label"], minlength=p.num_classes)
        tables.append(thresholds.assign(kept=kept, capped=kept == (p.pseudo_cap * counts).astype(int)))
    mean = sum(tables) / len(tables)
    return mean.set_axis(pd.Index(goods.classes, name="class"))


def class_thresholds(labels: np.ndarray, probabilities: np.ndarray, precision: float) -> pd.DataFrame:
    """threshold, precision of each class: the least probability from which on predictions of it are right often enough.

    A class for which no threshold does, or rests on fewer than FEWEST rows, has 2: nothing is that sure.
    probabilities: (n, num_classes), out of fold.
    """
    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    rows = []
    for k in range(probabilities.shape[1]):
        own = np.flatnonzero(predicted == k)
        own = own[np.argsort(-sure[own], kind="stable")]
        right = np.cumsum(labels[own] == k) / np.arange(1, len(own) + 1)
        enough = np.flatnonzero(right[FEWEST - 1 :] >= precision) + FEWEST - 1
        last = enough[-1] if len(enough) else None
        rows.append((2.0, np.nan) if last is None else (sure[own[last]], right[last]))
    return pd.DataFrame(rows, columns=["threshold", "precision"])


def pick(probabilities: np.ndarray, free: np.ndarray, thresholds: np.ndarray, caps: np.ndarray) -> pd.DataFrame:
    """Rows (the index), label and probability of those that may be taken, the surest `caps` of each class."""
    found = pd.DataFrame({"label": probabilities.argmax(1), "probability": probabilities.max(1)})
    found = found[free & (found["probability"] >= thresholds[found["label"]])]
    rank = found.groupby("label")["probability"].rank(ascending=False, method="first")
    return found[rank <= caps[found["label"]]]
