"""Whether the goods can be trusted: near-copies, those with two classes, labels in doubt, what folds share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from goods.data.photos import open_upright, photos_in
from goods.data.tables import Goods
from goods.data.texts import canonical, clean_text
from goods.params import Params
from goods.predictions import frame_logits
from goods.sheets import write_sheet
from goods.training.rows import find_label_issues, logits_by_words

HASH_SIDE = 16  # a hash is so many cosine coefficients per side: 256 bits
NEAR_BITS = 34  # of 256; changed copies differ in fewer, and strangers of one kind on white hardly in so few
HASH_CHUNK = 2048  # rows of the table of distances held in memory at once
MAX_PAIRS = 5000
JUDGED_ROWS = 20_000  # training products of which words judge the labels; more take minutes


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

    Columns: kind ("photo", "text"), bits (that differ of 256; 0 for texts), across (train and test), conflict (both in
    train, of two classes), and for a and b table, id, title, image, label (class index, -1 in test). At most 5,000
    pairs of each kind.
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
    conflict = ~across & (pairs["table_a"] == "train") & (pairs["label_a"] != pairs["label_b"])
    head = {"kind": kind, "bits": bits, "across": across, "conflict": conflict}
    return pd.concat([pd.DataFrame(head), pairs], axis=1)


def write_pairs(pairs: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.DataFrame:
    """Writes near_duplicates as a CSV to work through, pairs of two classes first, with the classes' names."""
    named = {f"class_{end}": [classes[k] if k >= 0 else "" for k in pairs[f"label_{end}"]] for end in "ab"}
    sides = [f"{column}_{end}" for end in "ab" for column in ("table", "id", "class", "title", "image")]
    table = pairs.assign(**named).sort_values(["conflict", "across"], ascending=False, kind="stable")
    table = table[["kind", "conflict", "across", "bits", *sides]]
    write_sheet(path, table)
    return table


def doubtful_labels(goods: Goods, p: Params) -> tuple[pd.DataFrame, int]:
    """Training products whose label words alone contradict, worst first, before anything is trained; and how many were
    judged.

    As goods.figures.errors.worst_errors takes them: id, title, text, image, label, prediction (class indices), given,
    suggested (names), probability (of the suggestion). Reads seed, num_classes and what linear classifiers of words
    read. Confident learning by linear classifiers on inner folds, of at most JUDGED_ROWS products.
    """
    rows = np.sort(np.random.default_rng(p.seed).permutation(len(goods.train))[:JUDGED_ROWS])
    table = goods.train.iloc[rows].reset_index(drop=True)
    labels = table["label"].to_numpy()
    logits = logits_by_words(table, labels, p)
    issues = find_label_issues(labels, logits)
    likely = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    found = table.iloc[issues["row"]].reset_index(drop=True)
    names = {"given": found["label"], "suggested": issues["suggested"]}
    named = {name: [goods.classes[k] for k in of] for name, of in names.items()}
    sure = likely[issues["row"], issues["suggested"]]
    return found.assign(prediction=issues["suggested"], probability=sure, **named), len(table)


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
