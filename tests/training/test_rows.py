"""Which rows a fold learns from: doubtful ones are left out without a look at the scored ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
from conftest import Trained

from goods.data.folds import read_folds
from goods.params import Params
from goods.training.rows import doubtful_rows, find_label_issues, training_rows


def test_flipped_labels_are_found():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=1000)
    logits = 3 * np.eye(5)[truth] + rng.normal(size=(1000, 5))
    flipped = rng.permutation(1000)[:40]
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + 1) % 5
    issues = find_label_issues(labels, logits)
    worst = issues.head(30)
    assert worst["row"].isin(flipped).mean() > 0.9 and issues["margin"].is_monotonic_increasing
    right = worst[worst["row"].isin(flipped)]
    assert (right["suggested"] == truth[right["row"]]).mean() > 0.9


def test_a_class_without_rows_is_never_suggested():
    logits = np.tile([0.0, 1.0, 5.0], (6, 1))
    assert not (find_label_issues(np.array([0, 0, 0, 1, 1, 1]), logits)["suggested"] == 2).any()


def words_table(count: int = 240, classes: int = 4) -> tuple[pd.DataFrame, np.ndarray]:
    """Products whose text says their class, all of them different."""
    labels = np.arange(count) % classes
    texts = [
        f"a fine {'cup lamp chair shoe'.split()[k]} of kind {i % 17} in colour {i % 5}" for i, k in enumerate(labels)
    ]
    table = pd.DataFrame({"id": [str(i) for i in range(count)], "title": texts, "text": texts, "image": "", "sha": ""})
    return table.assign(description=[f"number {i}" for i in range(count)]), labels


def test_doubtful_rows_are_those_whose_words_say_otherwise():
    table, labels = words_table()
    wrong = np.array([3, 50, 101, 160, 222])
    labels[wrong] = (labels[wrong] + 1) % 4
    p = Params(num_classes=4, drop_noisy=0.025)
    dropped = np.flatnonzero(doubtful_rows(table, labels, p))
    assert set(dropped) == set(wrong) and len(wrong) <= 0.025 * len(labels)


def test_of_a_small_class_half_stays():
    table, labels = words_table()
    table, labels = table.iloc[:210], labels[:210].copy()
    rare = np.flatnonzero(labels == 3)[:6]
    labels[:] = np.where(labels == 3, 2, labels)
    labels[rare] = 3
    table = table.assign(text=[f"a fine chair {i}" if labels[i] == 3 else t for i, t in enumerate(table["text"])])
    dropped = doubtful_rows(table, labels, Params(num_classes=4, drop_noisy=0.2))
    assert dropped[rare].sum() <= 3


def test_what_is_left_out_does_not_depend_on_the_rows_that_are_scored(trained: Trained):
    p = trained.p.model_copy(update={"drop_noisy": 0.1})
    folds = read_folds(trained.goods, p)
    rows, labels = training_rows(p, trained.goods, folds, 1)
    lies = folds.assign(label=folds["label"].where(folds["fold"] != 1, 0))
    again, _ = training_rows(p, trained.goods, lies, 1)
    assert rows.tolist() == again.tolist() and (folds["fold"][rows] != 1).all()
    assert len(rows) < (folds["fold"] != 1).sum() and labels.tolist() == folds["label"][rows].tolist()
