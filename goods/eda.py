"""What to look for in the goods before a model: near-duplicate photos, telling words, a shift from train to test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import csr_array, hstack
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from goods.data.datasets import photos_in
from goods.data.photos import open_upright
from goods.data.tables import Goods
from goods.data.texts import canonical, clean_text
from goods.predictions import frame_logits
from goods.sheets import write_sheet

HASH_SIDE = 16  # a hash is so many cosine coefficients per side: 256 bits
NEAR_BITS = 34  # of 256; changed copies differ in fewer, and strangers of one kind on white hardly in so few
HASH_CHUNK = 2048  # rows of the table of distances held in memory at once
MAX_PAIRS = 5000


def photo_hashes(images: Sequence[str]) -> np.ndarray:
    """(n, 256) bool: the perceptual hash of each photo; a row of False where there is none or it can't be read.

    The 16 x 16 lowest frequencies of the photo squashed to 64 x 64 and made grey, without those that vary in one
    direction only, each above or below their median: what scaling, compressing and slight retouching leave alone
    (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").
    """
    with ThreadPoolExecutor() as pool:  # Pillow lets go of the GIL while it decodes
        small = np.stack([*pool.map(_grey, images)] or [np.zeros((4 * HASH_SIDE,) * 2, np.float32)])
    low = dctn(small, axes=(1, 2))[:, 1 : HASH_SIDE + 1, 1 : HASH_SIDE + 1].reshape(len(small), -1)
    return (low > np.median(low, axis=1, keepdims=True))[: len(images)]


def _grey(path: str) -> np.ndarray:
    side = 4 * HASH_SIDE
    try:
        small = open_upright(path, 2 * side).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small.convert("L"), dtype=np.float32)
    except Exception:  # Pillow raises anything on broken files; a blank photo is like no other
        return np.zeros((side, side), np.float32)


def near_duplicates(goods: Goods, most_bits: int = NEAR_BITS) -> pd.DataFrame:
    """Pairs of products with almost the same photo or the same text, nearest first.

    Columns: kind ("photo", "text"), bits (that differ of 256; 0 for texts), across (train and test), and for a and b
    table, id, title, image, label (class index, -1 in test). At most 5,000 pairs of each kind.
    """
    columns = ["id", "title", "text", "image", "label"]
    both = pd.concat([goods.train.assign(table="train"), goods.test.assign(table="test", label=-1)], ignore_index=True)
    each = both[["table", *columns]].assign(image=photos_in(both)).explode("image")  # a row per photo
    each["image"] = each["image"].fillna("")
    both, product, each = both[["table", *columns]], each.index.to_numpy(), each.reset_index(drop=True)
    hashes = photo_hashes(each["image"])
    usable = np.flatnonzero(hashes.any(axis=1))
    first, second, bits = _near(hashes[usable], most_bits)
    a, b = usable[first], usable[second]
    pairs = pd.DataFrame({"a": product[a], "b": product[b]})
    others = ((pairs["a"] != pairs["b"]) & ~pairs.duplicated()).to_numpy()  # not the photos of one product
    parts = [_pairs(each, a[others], b[others], bits[others], "photo")]
    groups = both.index.to_series().groupby(both["text"].str.lower().where(both["text"] != "")).agg(list)
    twins = [(group[0], other) for group in groups if len(group) > 1 for other in group[1:]][:MAX_PAIRS]
    a, b = np.array(twins, dtype=int).reshape(-1, 2).T
    return pd.concat([*parts, _pairs(both, a, b, np.zeros(len(a), int), "text")], ignore_index=True)


def _near(hashes: np.ndarray, most_bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pairs,) rows a < b of hashes that differ in at most so many bits, and in how many, nearest first."""
    signs = np.where(hashes, 1, -1).astype(np.float32)  # (n, 256)
    found = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))]
    for start in range(0, len(signs), HASH_CHUNK):
        apart = (signs.shape[1] - signs[start : start + HASH_CHUNK] @ signs[start:].T) / 2  # (chunk, n - start)
        a, b = np.nonzero(np.triu(apart <= most_bits, 1))
        found.append((a + start, b + start, apart[a, b].astype(int)))
    a, b, bits = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(bits, kind="stable")[:MAX_PAIRS]
    return a[order], b[order], bits[order]


def _pairs(both: pd.DataFrame, a: np.ndarray, b: np.ndarray, bits: np.ndarray, kind: str) -> pd.DataFrame:
    sides = [
        both.iloc[rows].drop(columns="text").add_suffix(f"_{name}").reset_index(drop=True)
        for name, rows in (("a", a), ("b", b))
    ]
    pairs = pd.concat(sides, axis=1)
    across = pairs["table_a"] != pairs["table_b"]
    return pd.concat([pd.DataFrame({"kind": kind, "bits": bits, "across": across}), pairs], axis=1)


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


def shared_across_folds(goods: Goods, folds: pd.DataFrame, oof: pd.DataFrame | None = None) -> pd.DataFrame:
    """Products that share a photo or a text with a product of another fold, one row per key: products, share.

    Whether that is a leak, or what the test set is like too, is the user's to judge (group_by). With the out-of-fold
    predictions of a trained run also how often they, and all others, are predicted right: accuracy, accuracy of others.
    """
    train = goods.train
    keys = {"photo": pd.Series(photos_in(train, "sha")).explode().fillna(""), "text": train["text"].map(canonical)}
    keys |= {name: train[name].map(clean_text).map(canonical) for name in ("title", "description") if name in train}
    right = None
    if oof is not None:
        hits = pd.Series(frame_logits(oof).argmax(1) == oof["label"].to_numpy(), index=oof["id"])
        right = hits.reindex(train["id"]).to_numpy(dtype=float)  # nan where a fold is not trained
    rows = {}
    for name, values in keys.items():
        table = pd.DataFrame({"key": values, "fold": folds["fold"].to_numpy()[values.index]})
        found = (table.groupby("key")["fold"].transform("nunique") > 1) & (table["key"] != "")
        shared = found.groupby(level=0).any().to_numpy()
        rows[name] = {"products": int(shared.sum()), "share": shared.mean()}
        if right is not None:
            parts = {"accuracy": shared, "accuracy of others": ~shared}
            rows[name] |= {label: pd.Series(right[part]).mean() for label, part in parts.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("shared with another fold")
