"""What the goods are, and whether they can be trusted, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from goods.data.tables import Goods
from goods.words import count, digits, joined, percent, span

ALIKE = 1.1  # classes are alike in size where the largest has at most so many times the products of the smallest

# What these goods are ------------------------------------------------------------------------------------------------


def tables(goods: Goods) -> str:
    """How many products there are, and what of them is missing or was mended."""
    of = {name: sum(goods.report[table].get(name, 0) for table in ("train", "test"))
          for name in ("empty_texts", "bad_images", "truncated_images")}  # fmt: skip
    lacks = [
        count(of["empty_texts"], "empty text"),
        count(of["bad_images"], "photo that can't be used", "photos that can't be used"),
        count(of["truncated_images"], "photo that ends too early", "photos that end too early"),
    ]
    lacks = [text for text in lacks if not text.startswith("0 ")]
    found = f"with {joined(lacks)}" if lacks else "each with a text and a photo that can be used"
    return f"{count(len(goods.train), 'product')} to learn from and {len(goods.test):,} to predict, {found}."


def empty(cells: pd.DataFrame, rows: int) -> str:
    """Which text column is empty most often; cells: goods.eda.empty_cells; rows: products of both tables."""
    if not cells["all"].sum():
        return "No text cell is empty."
    worst = cells["all"].idxmax()
    return f"{worst} is empty most often: in {percent(cells.loc[worst, 'all'] / max(1, rows))} of the products."


def ids(forms: pd.DataFrame) -> str:
    """Whether ids have one form; forms: goods.eda.odd_ids."""
    if len(forms) == 1:
        return f"All ids are alike: {forms.index[0]}."
    rare = forms.index[forms["rare"]].tolist()
    look = f"; worth a look, since rare: {joined(rare)}" if rare else ""
    return f"Ids have {len(forms)} forms, most of them {forms.index[0]}{look}."


def texts(products: pd.DataFrame, columns: Sequence[str]) -> str:
    """How much of a product's text is in which column, by characters."""
    lengths = {name: products[name].str.len().mean() for name in columns if name in products}
    said = [f"{length:,.0f} characters of {name}" for name, length in lengths.items()]
    return f"On average a product has {joined(said)}."


def balance(labels: Sequence[int], classes: Sequence[str]) -> str:
    """How unequal the classes are, and what that means for macro-F1."""
    counts = np.bincount(np.asarray(labels, dtype=int), minlength=len(classes))
    if counts.max() <= ALIKE * counts.min():
        return f"The {len(classes)} classes are alike in size: accuracy and macro-F1 will say nearly the same."
    half = int(np.searchsorted(np.cumsum(np.sort(counts)[::-1]), counts.sum() / 2) + 1)
    small = int((counts < 0.2 * counts.mean()).sum())
    few = f"; {count(small, 'class has', 'classes have')} fewer than a fifth of the average" if small else ""
    return f"{count(half, 'class holds', 'classes hold')} half of the products{few}."


def looks(goods: Goods) -> str:
    """How many products have no photo to look at."""
    if none := int((goods.train["image"] == "").sum()):
        return f"{none:,} of {len(goods.train):,} training products have no photo: there the words alone decide."
    return f"All {len(goods.train):,} training products have a photo."


def cut(tokens: Sequence[int], limit: int) -> str:
    """How much text is lost behind the limit, and the parameter that would lose less."""
    tokens = np.asarray(tokens)
    over = tokens > limit
    if not over.any():
        return f"max_text_length {limit} cuts nothing; the longest text has {tokens.max():,} tokens."
    lost, most = float((tokens[over] - limit).sum() / tokens.sum()), int(np.quantile(tokens, 0.95))
    windows = f"text_windows={-(-most // limit)} would read 95 % of the texts whole"
    windows = windows if most > limit else f"95 % of the texts have {most:,} tokens or fewer"
    return f"{percent(over.mean())} of the texts are cut, {percent(lost)} of all tokens are lost; {windows}."


def cut_by_class(tokens: Sequence[int], labels: Sequence[int], classes: Sequence[str], limit: int) -> str:
    """Which class loses most, and which least."""
    over = pd.Series(np.asarray(tokens) > limit).groupby(np.asarray(labels)).mean()
    worst, least = int(over.idxmax()), int(over.idxmin())
    if not over[worst]:
        return "No class loses anything."
    if over[worst] - over[least] < 0.05:
        return f"All classes lose about as much: from {percent(over[least])} to {percent(over[worst])} of their texts."
    most = f"{classes[worst]} loses most ({percent(over[worst])} of its texts)"
    return f"{most}, {classes[least]} least ({percent(over[least])})."


def photos(photos: pd.DataFrame, image_size: int | None) -> str:
    """What image_size means for photos of these sizes."""
    sized = photos[(photos["width"] > 0) & (photos["height"] > 0)]
    if sized.empty:
        return "There is no photo."
    longest, shortest = sized[["width", "height"]].max(axis=1), sized[["width", "height"]].min(axis=1)
    found = [f"half of the photos have {longest.median():,.0f} pixels or more at their longer side"]
    if image_size:
        found.append(f"{percent((longest < image_size).mean())} are smaller than image_size {image_size}")
    if (odd := float((longest > 1.5 * shortest).mean())) > 0:
        found.append(f"{percent(odd)} are far from square, and are squashed")
    return f"{joined(found)}.".capitalize()


def words(told: pd.DataFrame, classes: Sequence[str]) -> str:
    """How many classes have words of their own; told: goods.eda.telling_words."""
    if told.empty:
        return "No word tells a class from the others."
    strong = int((told.groupby("class")["share"].max() >= 0.5).sum())
    none = [name for name in classes if name not in set(told["class"])]
    lacking = f"; none at all: {joined(none[:3])}" if none else ""
    return f"{strong} of {len(classes)} classes have a word that half of their texts share{lacking}."


def titles(files: pd.DataFrame) -> str:
    """What was written for a look at the titles; files: goods.eda.split_by_class."""
    return f"{count(len(files), 'file')}, of {span(files['rows'].tolist(), '{:,}'.format)} titles each."


def what_they_are(goods: Goods, tokens: Sequence[int], limit: int) -> list[str]:
    """The answer of eda.ipynb."""
    counts = np.bincount(goods.train["label"], minlength=len(goods.classes))
    sizes = f"{span(counts.tolist(), '{:,}'.format)} products each"
    over, none = float((np.asarray(tokens) > limit).mean()), int((goods.train["image"] == "").sum())
    photos = f"{count(none, 'product has', 'products have')} no photo" if none else "every product has a photo"
    return [
        f"{len(goods.train):,} products in {len(goods.classes)} classes, {sizes}, and {len(goods.test):,} to predict.",
        f"{percent(over)} of the texts are cut at {limit} tokens, and {photos}.",
        "whether labels, photos and folds can be trusted, trust.ipynb says.",
    ]


# Whether they can be trusted -----------------------------------------------------------------------------------------


def bad_photos(photos: pd.DataFrame) -> str:
    """How many photos are not whole, and why most of them."""
    bad = photos[photos["status"] != "ok"]
    if bad.empty:
        return f"All {len(photos):,} photos can be read to their end."
    why = bad["status"].str.partition(":")[0].value_counts()
    return f"{len(bad):,} of {len(photos):,} photos are not whole, {why.iloc[0]:,} of them “{why.index[0]}”."


def duplicates(pairs: pd.DataFrame) -> str:
    """How many pairs there are of photos and of texts, and how many of them lie across train and test."""
    if pairs.empty:
        return "No two products are nearly the same."
    kinds = pairs["kind"].value_counts().items()
    found = joined([count(number, f"pair of {kind}s", f"pairs of {kind}s") for kind, number in kinds])
    across = int(pairs["across"].sum())
    tail = f"{across:,} across train and test, where a label may be known already" if across else "all within a table"
    return f"{found} are nearly the same, {tail}."


def conflicts(pairs: pd.DataFrame, classes: Sequence[str], kind: str) -> str:
    """How many of the pairs inside train have two classes, and which two most often."""
    own = pairs[(pairs["kind"] == kind) & (pairs["label_a"] >= 0) & (pairs["label_b"] >= 0)]
    differ = own[own["conflict"]]
    if own.empty:
        return f"No two training products have nearly the same {kind}."
    if differ.empty:
        return f"{count(len(own), 'pair lies', 'pairs lie')} inside train, each of one class."
    both = [" and ".join(sorted((classes[a], classes[b]))) for a, b in differ[["label_a", "label_b"]].to_numpy()]
    first = pd.Series(both).value_counts()
    often = f"most often {first.index[0]} ({first.iloc[0]:,})" if first.iloc[0] > 1 else f"such as {first.index[0]}"
    return (f"{len(differ):,} of {count(len(own), 'pair')} inside train have two classes, {often}: a wrong label, or a "
            f"{kind} that doesn't tell them apart.")  # fmt: skip


def doubts(issues: pd.DataFrame, rows: int) -> str:
    """How many labels the words contradict, and which way most often; issues: goods.trust.doubtful_labels."""
    if issues.empty:
        return f"The words contradict none of {rows:,} labels."
    return f"The words contradict {doubted_share(issues, rows)}. A trained run judges better, in ensemble.ipynb."


def doubted_share(issues: pd.DataFrame, rows: int) -> str:
    """How many of the labels are in doubt, and which way most often; issues: given, suggested, one at least."""
    ways = (issues["given"] + " → " + issues["suggested"]).value_counts()
    share = percent(len(issues) / rows)
    often = f"most often {ways.index[0]} ({ways.iloc[0]:,})" if ways.iloc[0] > 1 else f"such as {ways.index[0]}"
    return f"{len(issues):,} of {rows:,} labels ({share}), {often}"


def shift(auc: float, drivers: pd.DataFrame, other: str = "the test set") -> str:
    """What the AUC means; drivers: name, weight, the strongest first."""
    if auc < 0.55:
        return f"AUC {digits(auc)}: a classifier can't tell {other} from the training set, so scores should carry over."
    names = joined([str(name).replace("_", " ") for name in drivers["name"].head(3)])
    how = "a little" if auc < 0.65 else "clearly"
    return f"AUC {digits(auc)}: {other} differs {how}, by {names}. Where these matter, expect less than out of fold."


def folds(folds: pd.DataFrame, rare: Sequence[str]) -> str:
    """How large the folds are, and whether each class is in each; rare: goods.data.folds.rare_classes."""
    sizes = folds["fold"].value_counts()
    classes = f"{count(len(rare), 'class is', 'classes are')} not in each of them" if rare else "each has every class"
    return f"{len(sizes)} folds of {sizes.min():,} to {sizes.max():,} products; {classes}."


def shared(table: pd.DataFrame) -> str:
    """How much folds share, and what it is worth; table: goods.trust.shared_across_folds."""
    if not table["products"].sum():
        return "No product shares a photo or a text with one of another fold: nothing leaks."
    worst = table["products"].idxmax()
    row = table.loc[worst]
    found = f"{row['products']:,.0f} products ({percent(row['share'])}) share the {worst} with one of another fold"
    gain = row.get("accuracy", np.nan) - row.get("accuracy of others", np.nan)
    if np.isnan(gain):
        return f"{found}."
    how = f"{100 * abs(gain):.0f} points {'more' if gain > 0 else 'less'} often"
    return f"{found}; they are predicted right {how} than the others."


def trust(pairs: pd.DataFrame, noise: float, auc: float, shared: pd.DataFrame) -> list[str]:
    """The answer of trust.ipynb; noise: the share of the labels that words contradict."""
    differ, across, leak = int(pairs["conflict"].sum()), int(pairs["across"].sum()), int(shared["products"].max())
    labels = "which is little" if noise < 0.03 else "so look at them before tuning anything"
    if noise >= 0.1:
        labels = "so either many are wrong, or words tell these classes badly"
    like = "is like" if auc < 0.55 else "is a little unlike" if auc < 0.65 else "is unlike"
    together = "group_by or group_column would keep such products in one fold" if leak else "the folds leak nothing"
    return [
        f"words contradict {percent(noise)} of the labels, {labels}; {differ:,} pairs of near-copies have two classes.",
        f"the test set {like} the training set (AUC {digits(auc)}); {across:,} pairs of near-copies lie across both.",
        f"{count(leak, 'product shares', 'products share')} something with another fold: {together}.",
    ]
