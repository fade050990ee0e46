"""Folds that leak nothing: stratified, and copies of a product stay on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from goods.advice import other_name
from goods.data.photos import photos_in
from goods.data.tables import Goods
from goods.data.texts import canonical, clean_text, join_texts
from goods.errors import GoodsError, OtherRunError, ParameterError
from goods.files import read_frame, write_frame
from goods.params import Params
from goods.run import Run

MAX_SHARED = 50  # a photo or text shared by more products than this is a placeholder, not a duplicate


def duplicate_groups(*keys: Sequence[str | tuple[str, ...]], whole: Sequence[str] = ()) -> np.ndarray:
    """(n,) group number of each product; products that share any key (a text, a photo's hash, ...) share one.

    A key may be a tuple of several, such as a product's photos. Empty keys and what more than MAX_SHARED products share
    (placeholders) tie nothing together; `whole`, such as the seller of each product, ties however many share it.
    """
    n, rows, columns, most = len((*keys, whole)[0]), [], [], [*[MAX_SHARED] * len(keys), np.inf]
    for place, (key, limit) in enumerate(zip((*keys, whole), most, strict=True), 1):
        values = pd.Series(list(key), dtype=object).explode().fillna("")
        each = values if values.index.is_unique else values.reset_index().drop_duplicates()[0]
        count = values.map(each.value_counts())
        ties = values[(values != "") & (count > 1) & (count <= limit)]
        rows.append(ties.index.to_numpy(dtype=np.int64))
        columns.append(place * n + pd.factorize(ties)[0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    size = (len(keys) + 2) * n
    graph = coo_array((np.ones(len(row)), (row, column)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:n]


def product_groups(table: pd.DataFrame, p: Params) -> np.ndarray:
    """(n,) group number of each product: what p.group_by calls a copy, and p.group_column where there is one.

    "text" is what the default text columns say, since other text_columns must not move a product's fold. Texts that
    are the same but for case and punctuation, which SigLIP doesn't read, are the same.
    """
    columns = list(Params.model_fields["text_columns"].default)
    keys = {"photo": photos_in(table, "sha")}
    if "text" in p.group_by:
        own = all(name in table for name in columns)
        keys["text"] = [canonical(text) for text in (join_texts(table[columns]) if own else table["text"])]
    for name in set(p.group_by) - {"photo", "text"}:
        keys[name] = [canonical(clean_text(text)) for text in table[name].fillna("")]
    whole = table[p.group_column].fillna("").tolist() if p.group_column and p.group_column in table else ()
    return duplicate_groups(*(keys[name] for name in p.group_by), whole=whole)


def given_folds(train: pd.DataFrame, p: Params) -> np.ndarray:
    """(n,) fold of each product as p.fold_column says: its values in their order, numbers as numbers.

    Raises ParameterError where they are not n_folds different ones.
    """
    values = train[p.fold_column].str.strip()
    numbers = {name for name in values if name.isdecimal() and len(name) < 19}
    names = sorted(set(values), key=lambda name: (0, int(name), "") if name in numbers else (1, 0, name))
    if "" in names or len(names) != p.n_folds:
        raise ParameterError(f"fold_column {p.fold_column} has {len(names)} different values ({', '.join(names[:8])}), "
                             f"and n_folds is {p.n_folds}; set n_folds to as many, none of them empty")  # fmt: skip
    return values.map({name: k for k, name in enumerate(names)}).to_numpy(dtype=np.int64)


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
        if p.fold_column:
            folds = given_folds(train, p)
        else:
            folds = make_folds(train["id"], train["label"], product_groups(train, p), p.n_folds, p.seed)
        write_frame(run.folds_table, train[["id", "label"]].assign(fold=folds))
    again = "remove it, and the folds are drawn anew, the same for the same tables and seed"
    folds = read_frame(run.folds_table, ["id", "label", "fold"], again)
    if run.taken:  # new folds would be none of those that were trained
        again = f"give back the tables and n_folds that its folds were trained with, or {other_name(run.folder)}"
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
