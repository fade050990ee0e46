"""Figures of what goods_eda finds: near-duplicates, telling words, text lengths by class, the shift to the test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from goods_drawing import (
    BLACK,
    BLUE,
    GREY,
    MAX_ROWS,
    VERMILION,
    count,
    counts_of,
    digits,
    height_of,
    name_rows,
    names_of,
    new_figure,
    nothing,
    percent,
    photo_axes,
    short,
    styled,
    titled,
)


@styled
def duplicate_pairs(pairs: pd.DataFrame, classes: list[str], top: int = 8) -> Figure:
    """The nearest pairs of photos side by side, with titles, tables, and classes where the two have different ones.

    pairs: goods_eda.near_duplicates; its rows of kind "photo" are drawn, those across train and test first.
    """
    photos = pairs[pairs["kind"] == "photo"]
    if photos.empty:
        return nothing("No two photos are nearly the same")
    both_train = (photos["label_a"] >= 0) & (photos["label_b"] >= 0)
    differ = int((both_train & (photos["label_a"] != photos["label_b"])).sum())
    shown = photos.sort_values("across", ascending=False, kind="stable").head(top)
    names, across, side, gap, row = names_of(classes, 16), 4, 0.95, 0.12, 1.95
    pair = 2 * (side + 0.04) + 2 * gap
    width = max(6.0, min(across, len(shown)) * pair + 2 * gap)
    fig = new_figure(width, 0.4 + -(-len(shown) // across) * row, layout=None)
    for place, found in enumerate(shown.to_dict("records")):
        left, top_edge = 2 * gap + place % across * pair, 0.8 + place // across * row
        for number, end in enumerate("ab"):
            label = found[f"label_{end}"]
            ax = photo_axes(fig, (left + number * (side + 0.04), top_edge), side, found[f"image_{end}"],
                             short(found[f"title_{end}"], 17, lines=2))  # fmt: skip
            where = names[label] if label >= 0 else "test"
            ax.set_title(where, fontsize=6.5, loc="left", pad=2, color=BLUE if label >= 0 else VERMILION)
    title = f"{count(len(photos), 'pair')} of photos nearly the same, {photos['across'].sum():,} across train and test"
    return titled(fig, title + (f"; {differ} with different classes" if differ else ""))


@styled
def telling_words(words: pd.DataFrame, per_class: int = 6) -> Figure:
    """The words that tell a class from all others, the strongest first and darkest.

    words: goods_eda.telling_words (class, word, z, share). Of more than 40 classes the 40 told best.
    """
    if words.empty:
        return nothing("The texts have no words to tell classes by")
    strength = words.groupby("class", sort=False)["z"].max().sort_values(ascending=False)
    shown = strength.index[:MAX_ROWS]
    fig = new_figure(8.5, height_of(len(shown)) + 0.1)
    ax = fig.subplots()
    for row, name in enumerate(shown):
        for place, word in enumerate(words[words["class"] == name].head(per_class).itertuples()):
            deep = 0.45 + 0.55 * word.z / strength.iloc[0]
            text = f"{short(word.word, 14)} {100 * word.share:.0f}"
            ax.text(place, row, text, va="center", fontsize=7.5, color=BLUE, alpha=min(1.0, deep))
    which = "class" if len(shown) == len(strength) else f"{MAX_ROWS} of {len(strength)} classes, those told best"
    name_rows(ax, [short(name) for name in shown], which)
    ax.set(xlim=(-0.1, per_class), xticks=[], xlabel="words, with the % of the class's texts that have them")
    ax.spines[:].set_visible(False)
    best, first = words.loc[words["z"].idxmax()], short(strength.index[0])
    return titled(fig, f"The most telling word is “{short(best['word'])}”: in {percent(best['share'])} of {first}")


@styled
def lengths_by_class(lengths: Sequence[int], labels: Sequence[int], classes: list[str], limit: int) -> Figure:
    """Text lengths by class in tokens: median, the middle half, the middle nine tenths, and the share that is cut.

    lengths, labels: (n,) tokens before cutting at `limit`, class index. Of more than 40 classes the 40 cut most.
    """
    counts, lengths, labels = counts_of(labels, classes), np.asarray(lengths), np.asarray(labels)
    present = np.flatnonzero(counts)
    if not len(present):
        return nothing("There are no texts to measure")
    cut = np.array([(lengths[labels == k] > limit).mean() for k in present])
    order = np.argsort(-cut, kind="stable")[:MAX_ROWS]
    names = names_of(classes)
    fig = new_figure(6.5, height_of(len(order)))
    ax = fig.subplots()
    spans = np.array([np.quantile(lengths[labels == present[k]], (0.05, 0.25, 0.5, 0.75, 0.95)) for k in order])
    rows = np.arange(len(order))
    ax.hlines(rows, spans[:, 0], spans[:, 4], color=GREY, linewidth=1)
    ax.hlines(rows, spans[:, 1], spans[:, 3], color=BLUE, linewidth=5)
    ax.plot(spans[:, 2], rows, "|", color="white", markersize=6)
    ax.axvline(limit, color=BLACK, linestyle="--", linewidth=1)
    end = max(float(spans[:, 4].max()), limit) * 1.18
    for row, k in enumerate(order):
        ax.text(end, row, percent(cut[k]), ha="right", va="center", fontsize=7.5, color=GREY)
    which = "class" if len(order) == len(present) else f"{MAX_ROWS} of {len(present)} classes, those cut most"
    name_rows(ax, [names[present[k]] for k in order], which)
    ax.set(xlim=(0, end * 1.01), xlabel=f"tokens (dashed: limit {limit}); at the right the share that is cut")
    most, least = order[0], np.argsort(cut, kind="stable")[0]
    title = f"{names[present[most]]} is cut most: {percent(cut[most])} of its texts"
    if cut[most] == 0:
        title = "No class has a text that is cut"
    elif len(present) > 1:
        title += f"; {names[present[least]]} least: {percent(cut[least])}"
    return titled(fig, title)


@styled
def shift_drivers(auc: float, drivers: pd.DataFrame, top: int = 12) -> Figure:
    """What tells test products from training ones, and how well it does.

    auc: out of fold, .5 for not at all. drivers: name, weight (positive: of the test set), strongest first.
    """
    if drivers.empty:
        return nothing("Too few products to compare train and test")
    shown = drivers.head(top)
    fig = new_figure(6.5, height_of(len(shown)))
    ax = fig.subplots()
    ax.barh(range(len(shown)), shown["weight"], height=0.72, color=np.where(shown["weight"] > 0, VERMILION, BLUE))
    names = [short(str(name).replace("_", " ")) for name in shown["name"]]
    name_rows(ax, names, "what tells them apart")
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_xlabel("weight (right: test, left: train)")
    strong = "can't be told apart" if auc < 0.55 else "differ a little" if auc < 0.65 else "differ"
    title = f"Train and test {strong}: AUC {digits(auc)} out of fold"
    return titled(
        fig, title + (f", most by {short(str(shown['name'].iloc[0]).replace('_', ' '))}" if auc >= 0.55 else "")
    )
