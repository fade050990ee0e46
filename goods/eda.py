"""What to look for in the goods before a model: empty cells, odd ids, telling words, a shift from train to test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from goods.data.tables import Goods
from goods.sheets import write_sheet


def empty_cells(goods: Goods, columns: Sequence[str]) -> pd.DataFrame:
    """Empty cells of each text column (rows), by table and in all."""
    tables = {"train": goods.train, "test": goods.test}
    counts = {name: [(table[c].str.strip() == "").sum() for c in columns] for name, table in tables.items()}
    return pd.DataFrame(counts, index=list(columns)).assign(all=lambda frame: frame.sum(axis=1))


def telling_words(
    texts: Sequence[str], labels: Sequence[int], classes: Sequence[str], top: int = 8, rows: int = 50_000
) -> pd.DataFrame:
    """The words that tell each class from all others: class, word, z, share (of the class's texts that have it).

    z is the log odds of the word in the class's texts against the rest, with an informative Dirichlet prior, in
    standard deviations (Monroe, Colaresi and Quinn 2008, "Fightin' Words"): rare words can't lead by chance.
    """
    chosen = np.random.default_rng(0).permutation(len(texts))[:rows]
    texts, labels = np.asarray(list(texts), dtype=object)[chosen], np.asarray(labels)[chosen]
    empty = pd.DataFrame(columns=["class", "word", "z", "share"])
    try:
        vectorizer = CountVectorizer(binary=True, min_df=min(3, max(1, len(texts) // 10)), token_pattern=r"(?u)\b\w+\b")
        has = vectorizer.fit_transform(texts)  # (texts, words)
    except ValueError:  # not a single word
        return empty
    words, total = vectorizer.get_feature_names_out(), np.asarray(has.sum(axis=0)).ravel()
    parts = [empty]
    for index, name in enumerate(classes):
        of = np.asarray(has[np.flatnonzero(labels == index)].sum(axis=0)).ravel()  # (words,)
        if not of.sum() or of.sum() == total.sum():
            continue
        prior = total / total.sum() * 500
        here, rest = of + prior, total - of + prior
        odds = np.log(here / (here.sum() - here)) - np.log(rest / (rest.sum() - rest))
        z = odds / np.sqrt(1 / here + 1 / rest)
        best = [word for word in np.argsort(-z, kind="stable")[:top] if z[word] > 1]
        share = of[best] / (labels == index).sum()
        parts.append(pd.DataFrame({"class": name, "word": words[best], "z": z[best], "share": share}))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


class Shift(NamedTuple):
    """How well train and test are told apart (AUC, .5: not at all), and what by (name, weight; positive: test)."""

    auc: float
    drivers: pd.DataFrame


def product_facts(goods: Goods, table: str) -> pd.DataFrame:
    """What can be said of a table's products without their meaning: lengths, photo sizes, missing parts."""
    products, photos = getattr(goods, table), goods.photos[goods.photos["table"] == table]
    photos = photos.drop_duplicates("id").reset_index(drop=True)  # the first of several
    return pd.DataFrame({
        "title_characters": products["title"].str.len(), "text_characters": products["text"].str.len(),
        "photo_width": photos["width"], "photo_height": photos["height"],
        "no_photo": (products["image"] == "").astype(int),
        "grey_photo": photos["mode"].isin(["1", "L", "LA", "I", "I;16", "F"]).astype(int),
    })  # fmt: skip


def train_test_shift(goods: Goods, rows: int = 10_000, seed: int = 0) -> Shift:
    """Adversarial validation: can a linear classifier tell test products from training ones by words and facts?

    The AUC is out of fold, so .5 means that they look alike. Of larger tables `rows` products are drawn.
    """
    facts = pd.concat([product_facts(goods, "train"), product_facts(goods, "test")], ignore_index=True)
    texts = pd.concat([goods.train["text"], goods.test["text"]], ignore_index=True)
    is_test = np.repeat([0, 1], [len(goods.train), len(goods.test)])
    chosen = np.random.default_rng(seed).permutation(len(texts))[:rows]
    facts, texts, is_test = facts.iloc[chosen], texts.iloc[chosen], is_test[chosen]
    folds = min(3, int(np.bincount(is_test, minlength=2).min()))
    if folds < 2:
        return Shift(0.5, pd.DataFrame(columns=["name", "weight"]))
    scaled = StandardScaler().fit_transform(np.log1p(facts))
    names, parts = list(facts.columns), [csr_array(scaled)]
    try:
        vectorizer = TfidfVectorizer(min_df=max(2, len(texts) // 1000), sublinear_tf=True)
        parts.append(csr_array(vectorizer.fit_transform(texts)))
        names += [f"word: {word}" for word in vectorizer.get_feature_names_out()]
    except ValueError:  # not a single word that two texts share
        pass
    features = hstack(parts, format="csr")  # (rows, facts + words)
    model = LogisticRegression(max_iter=200, class_weight="balanced")
    cv = StratifiedKFold(folds, shuffle=True, random_state=seed)
    odds = cross_val_predict(model, features, is_test, cv=cv, method="decision_function")
    weight = model.fit(features, is_test).coef_[0] * np.sqrt(features.power(2).mean(axis=0))
    order = np.argsort(-np.abs(weight), kind="stable")
    drivers = pd.DataFrame({"name": np.array(names)[order], "weight": weight[order]})
    return Shift(float(roc_auc_score(is_test, odds)), drivers)


def odd_ids(goods: Goods, rare: float = 0.02) -> pd.DataFrame:
    """The forms of ids (what of, how long), one per row: an example, how many in train and in test, and whether rare.

    A form that fewer than `rare` of all ids have is worth a look: another source, or a damaged table.
    """
    ids = pd.concat([goods.train["id"], goods.test["id"]], ignore_index=True)
    kinds = {"digits": r"\d+", "letters": r"[^\W\d_]+", "letters and digits": r"[^\W_]+"}
    form = pd.Series("other signs", index=ids.index)
    for name, pattern in reversed(kinds.items()):
        form[ids.str.fullmatch(pattern)] = name
    form += ids.str.len().map(", {} long".format)
    table = pd.DataFrame({"form": form, "id": ids, "train": ids.index < len(goods.train)})
    found = table.groupby("form").agg(example=("id", "first"), train=("train", "sum"), size=("id", "size"))
    found.insert(2, "test", found["size"] - found["train"])
    found["rare"] = found["size"] < rare * len(ids)
    return found.drop(columns="size").sort_values("train", ascending=False, kind="stable").head(10)


def split_by_class(goods: Goods, folder: Path) -> pd.DataFrame:
    """Writes <class index>-<class>.csv for each class, id and title, for a quick look; returns class, rows, file."""
    rows = []
    for k, name in enumerate(goods.classes):
        table = goods.train.loc[goods.train["label"] == k, ["id", "title"]]
        short = re.sub(r"[^\w-]+", "-", name)[:60].strip("-")  # a class may be called anything, a file may not
        file = f"{k:03}-{short}.csv"
        write_sheet(folder / file, table)
        rows.append((name, len(table), file))
    return pd.DataFrame(rows, columns=["class", "rows", "file"])
