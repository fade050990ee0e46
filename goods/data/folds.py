"""Folds that leak nothing: stratified, and copies of a product stay on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from goods.data.tables import Goods
from goods.data.texts import join_texts
from goods.errors import GoodsError, OtherRunError
from goods.files import read_frame, write_frame
from goods.params import Params
from goods.run import Run

MAX_SHARED = 50  # a photo or text shared by more products than this is a placeholder, not a duplicate


def duplicate_groups(texts: Sequence[str], shas: Sequence[str]) -> np.ndarray:
    """(n,) group number of each product; products with the same text or the same photo share one.

    Empty texts, missing photos and what more than MAX_SHARED products share (placeholders) tie nothing together.
    """
    n = len(texts)
    rows, columns = [], []
    for offset, keys in ((0, pd.Series(list(texts))), (n, pd.Series(list(shas)))):
        count = keys.map(keys.value_counts())
        ties = keys[(keys != "") & (count > 1) & (count <= MAX_SHARED)]
        rows.append(ties.index.to_numpy())
        columns.append(n + offset + pd.factorize(ties)[0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_array((np.ones(len(row)), (row, column)), shape=(3 * n, 3 * n))
    return connected_components(graph, directed=False)[1][:n]


def product_groups(train: pd.DataFrame) -> np.ndarray:
    """duplicate_groups of a table by the texts it came with: other text_columns must not move a product's fold."""
    columns = list(Params.model_fields["text_columns"].default)
    own = all(name in train for name in columns)
    return duplicate_groups(join_texts(train[columns]) if own else train["text"], train["sha"])


def make_folds(ids: Sequence[str], labels: Sequence[int], groups: Sequence[int], n_folds: int, seed: int) -> np.ndarray:
    """(n,) validation fold of each product: stratified by label, groups whole, the same for any order of the rows.

    A class with fewer rows than folds is spread as far as it goes.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    if len(np.unique(groups)) < n_folds:
        raise GoodsError(f"{len(np.unique(groups))} different products can't fill {n_folds} folds; lower n_folds")
    order = np.argsort(np.asarray(ids, dtype=str), kind="stable")
    order = order[np.random.RandomState(seed).permutation(len(order))]  # RandomState: the same in every numpy
    group = pd.factorize(groups[order])[0]  # numbered anew, by what comes first in this order
    counts = np.zeros((group.max() + 1, labels.max() + 1), dtype=np.int64)  # (groups, classes)
    np.add.at(counts, (group, labels[order]), 1)
    in_fold = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)  # (folds, classes)
    fold_of = np.zeros(len(counts), dtype=np.int64)
    # Whole numbers only, and not scikit-learn's StratifiedGroupKFold, whose folds differ between versions.
    for g in np.argsort(-counts.sum(1), kind="stable"):  # the largest groups first
        fold_of[g] = np.lexsort((in_fold.sum(1), in_fold @ counts[g]))[0]  # fewest of its classes; then the smallest
        in_fold[fold_of[g]] += counts[g]
    folds = np.zeros(len(order), dtype=np.int64)
    folds[order] = fold_of[group]
    return folds


def read_folds(goods: Goods, p: Params) -> pd.DataFrame:
    """The run's folds, id, label, fold in train.csv's order; made once and saved in folds.parquet.

    Raises DamagedFileError when the file is damaged, OtherRunError when it is of other products or labels.
    """
    run, train = Run.of(p), goods.train
    if not run.folds_table.is_file():
        folds = make_folds(train["id"], train["label"], product_groups(train), p.n_folds, p.seed)
        write_frame(run.folds_table, train[["id", "label"]].assign(fold=folds))
    again = "remove it, and the folds are drawn anew, the same for the same tables and seed"
    folds = read_frame(run.folds_table, ["id", "label", "fold"], again)
    if folds["id"].tolist() != train["id"].tolist() or folds["label"].tolist() != train["label"].tolist():
        raise OtherRunError(
            f"{run.folds_table} is of other products, labels or another order than {p.train_csv}; {again}"
        )
    if set(folds["fold"]) != set(range(p.n_folds)):
        raise OtherRunError(f"the folds in {run.folds_table} are not 0 to {p.n_folds - 1}, as n_folds says; {again}")
    return folds


def rare_classes(goods: Goods, n_folds: int) -> list[str]:
    """A sentence for each class with fewer rows than folds."""
    counts = goods.report["class_counts"].items()
    return [f"{name} has {n} rows for {n_folds} folds: some folds have none of it" for name, n in counts if n < n_folds]
