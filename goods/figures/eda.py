"""Figures of what goods.eda finds: near-duplicates, telling words, text lengths by class, the shift to the test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from goods.figures.style import (
    BLACK,
    BLUE,
    GREY,
    GREY_MODES,
    MAX_GRID_CLASSES,
    MAX_ROWS,
    VERMILION,
    class_bars,
    count,
    counts_of,
    digits,
    draw_bars,
    height_of,
    name_rows,
    names_of,
    new_figure,
    nothing,
    percent,
    photo_axes,
    photos_shown,
    short,
    span,
    styled,
    titled,
)


@styled
def class_balance(labels: Sequence[int], classes: list[str]) -> Figure:
    """Products per class, most frequent first.

    labels: (n,) class indices into `classes`. Of more than 40 classes the 20 most and the 20 least frequent.
    """
    counts = counts_of(labels, classes)
    if not counts.sum():
        return nothing("There are no products to count")
    names, order, empty = names_of(classes), np.argsort(-counts, kind="stable"), int((counts == 0).sum())
    most, top, low = names[order[0]], counts.max(), counts.min()
    if top == counts.sum():
        title = f"All products are {most} ({count(top, 'product')})"
    elif empty:
        title = f"{empty} of {len(classes)} classes without a product; {most} has the most ({top:,})"
    elif top <= 1.1 * low:
        title = f"The {len(classes)} classes are balanced: {span((low, top), '{:,}'.format)} products each"
    else:
        title = f"{most} is {top / low:.1f} times as frequent as {names[order[-1]]} ({top:,} vs {low:,} products)"
    ax, _ = class_bars(names, order, counts, "{:,}".format, "most", "least frequent")
    ax.set_xlabel("products")
    return titled(ax.figure, title)


@styled
def text_lengths(lengths: Sequence[int], limit: int, unit: str = "tokens") -> Figure:
    """Histogram of text lengths with the limit beyond which texts are cut.

    lengths: (n,) in `unit`, before cutting; a text longer than `limit` is cut. Far outliers are in the last bar.
    """
    lengths = np.asarray(lengths, dtype=int)
    if not lengths.size:
        return nothing("There are no texts to measure")
    longest, end = int(lengths.max()), max(limit * 1.25, float(np.quantile(lengths, 0.995)) + 1)
    step = max(1, round(end / 40))
    first = limit + 0.5 - step * np.ceil((limit + 0.5) / step)  # so that the limit falls between two bars
    edges = np.arange(first, end + step, step)
    heights, _ = np.histogram(np.minimum(lengths, edges[-1]), edges)
    ax = new_figure().subplots()
    colors = np.where(edges[:-1] > limit, VERMILION, BLUE)
    ax.bar(edges[:-1], heights, width=step, align="edge", color=colors, edgecolor="white", linewidth=0.4)
    ax.axvline(limit + 0.5, color=BLACK, linestyle="--", linewidth=1.2)
    ax.text(limit + 0.5, heights.max() * 1.09, f" limit {limit:,}", va="center")
    over = "" if longest <= edges[-1] else f"; last bar: {edges[-2] + 0.5:,.0f} and more"
    ax.set(xlabel=f"length in {unit}{over}", ylabel="texts", xlim=(0, edges[-1]), ylim=(0, heights.max() * 1.14))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    share = (lengths > limit).mean()
    who = f"{percent(share)} of texts are" if share else "No text is"
    return titled(ax.figure, f"{who} cut at {limit:,} {unit} (median {np.median(lengths):,.0f}, longest {longest:,})")


@styled
def photo_sizes(photos: pd.DataFrame) -> Figure:
    """Width against height of the photos, larger dots for more of them, and of several modes how many of each.

    photos: one row per product with width, height (pixels) and mode; rows without a size (no photo) are left out.
    """
    sized = photos[(photos["width"] > 0) & (photos["height"] > 0)]
    if sized.empty:
        return nothing("There are no photos to measure")
    total, modes = len(sized), sized["mode"].astype(str).value_counts()
    sizes = sized.groupby(["width", "height"]).size().sort_values(ascending=False)
    points = np.array(sizes.index.to_list(), dtype=float)  # (sizes, 2)
    (width, height), low, high = points[0], points.min(), points.max()
    common = f"{width:,.0f} x {height:,.0f} px"
    if len(sizes) == 1:
        title = f"All photos are {common} ({count(total, 'photo')})"
    elif sizes.iloc[0] >= 0.2 * total:
        title = f"{percent(sizes.iloc[0] / total)} of {total:,} photos are {common}"
    else:
        title = f"Sides of the {total:,} photos run from {low:,.0f} to {high:,.0f} px"
    grey = modes[modes.index.isin(GREY_MODES)].sum() / total
    colour = f"all {short(modes.index[0])}" if len(modes) == 1 else f"{percent(grey)} are greyscale"

    panels = 1 + (len(modes) > 1)  # of one mode the title says enough
    fig = new_figure(0.5 + 3.25 * panels, 3.3)
    left, *rest = fig.subplots(1, panels, squeeze=False)[0]
    left.axline((low, low), (2 * low, 2 * low), color=GREY, linewidth=0.8, linestyle=":")
    left.scatter(*points.T, s=14 + 160 * np.sqrt(sizes / total), color=BLUE, alpha=0.45, linewidth=0)
    left.set(xlabel="width (px; dotted: square)", ylabel="height (px)", box_aspect=1)
    if high > 12 * low:
        left.set(xscale="log", yscale="log", xlim=(low / 1.3, high * 1.3), ylim=(low / 1.3, high * 1.3))
    else:
        left.set(xlim=(0, high * 1.15), ylim=(0, high * 1.15))
        left.locator_params(nbins=5, integer=True)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_formatter(NullFormatter())
    shown = modes.head(8)
    for right in rest:
        draw_bars(right, shown.to_numpy(), [f"{count:,} ({percent(count / total)})" for count in shown])
        name_rows(right, [short(mode) for mode in shown.index], "Pillow mode")
        right.set(xlabel="photos", ylim=(max(len(shown), 6) - 0.4, -0.6))
    return titled(fig, f"{title}; {colour}")


@styled
def sample_grid(train: pd.DataFrame, classes: list[str], per_class: int = 3, seed: int = 0) -> Figure:
    """Photos and titles of a few random products per class.

    train: id, title, label (class index), image (path, or "" for none). Of more than 24 classes the most frequent 24.
    """
    counts = counts_of(train["label"], classes)
    if not counts.sum() or per_class < 1:
        return nothing("There are no products to look at")
    names, chosen, which = names_of(classes, 36), np.arange(len(classes)), count(len(classes), "class", "classes")
    if len(classes) > MAX_GRID_CLASSES:
        chosen = np.argsort(-counts, kind="stable")[:MAX_GRID_CLASSES]
        which = f"the {MAX_GRID_CLASSES} most frequent of {len(classes)} classes"
    side, gap, row = 0.92, 0.1, 1.64
    block = per_class * (side + gap) + gap  # one class: its photos in a row under its name
    across = min(max(1, int(10 // block)), -(-len(chosen) // 4))
    down = -(-len(chosen) // across)
    fig = new_figure(max(6.0, across * block + gap), 0.45 + down * row, layout=None)
    labels, missing, drawn = train["label"].to_numpy(), 0, 0
    for place, index in enumerate(chosen):
        left, top, axes = gap + place // down * block, 0.72 + place % down * row, []
        rows = np.random.default_rng([seed, int(index)]).permutation(np.flatnonzero(labels == index))[:per_class]
        for product in train.iloc[rows].itertuples():
            corner, caption = (left + len(axes) * (side + gap), top), short(product.title, 18, lines=3)
            axes.append(photo_axes(fig, corner, side, photos_shown(product), caption))
        missing, drawn = missing + sum(not ax.images for ax in axes), drawn + len(axes)
        first = axes[0] if axes else photo_axes(fig, (left, top), side, "", "", "no product")
        first.set_title(f"{names[index]} ({counts[index]:,})", loc="left", fontsize=8, weight="bold", pad=4)
    photos = f"{missing} without a photo" if missing else "all with a photo"
    return titled(fig, f"{count(drawn, 'product')} of {which}: {photos}")


@styled
def fold_balance(folds: Sequence[int], labels: Sequence[int], classes: list[str]) -> Figure:
    """How far the share of each class in a fold is from its share in all folds, in percentage points.

    folds, labels: (n,) fold number and class index per product. Of more than 40 classes the 40 furthest off.
    """
    counts = counts_of(labels, classes)
    if not counts.sum():
        return nothing("There are no products in the folds")
    names, folds, labels = names_of(classes), np.asarray(folds), np.asarray(labels)
    numbers = np.unique(folds)
    table = np.stack([counts_of(labels[folds == number], classes) for number in numbers], axis=1)  # (classes, folds)
    shares, overall = table / table.sum(axis=0), counts / counts.sum()
    points = 100 * (shares - overall[:, None])
    worst, fold = np.unravel_index(np.abs(points).argmax(), points.shape)
    title = f"Every class has the same share in {count(len(numbers), 'fold')}"
    if abs(points[worst, fold]) >= 0.05:
        title = (
            f"Class shares differ by at most {abs(points[worst, fold]):.1f} points: {names[worst]} is "
            f"{percent(shares[worst, fold])} of fold\xa0{numbers[fold]}, {percent(overall[worst])} of all"
        )
    absent = int(((table == 0).any(axis=1) & (counts > 0)).sum())
    title += f"; {count(absent, 'class', 'classes')} missing from a fold" if absent else ""
    shown = np.sort(np.argsort(-np.abs(points).max(axis=1), kind="stable")[:MAX_ROWS])
    fig = new_figure(max(6.0, 2.5 + 0.5 * len(numbers)), max(3.0, height_of(len(shown)) + 0.4))
    ax, limit = fig.subplots(), max(np.abs(points).max(), 0.5)
    picture = ax.imshow(points[shown], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(points[shown] if len(numbers) <= 12 else np.empty((0, 0))):
        color = "white" if abs(value) > 0.7 * limit else BLACK
        ax.text(j, i, f"{value:+.1f}" if abs(value) >= 0.05 else "0", ha="center", va="center", fontsize=7, color=color)
    what = "class" if len(shown) == len(classes) else f"{MAX_ROWS} of {len(classes)} classes, those furthest off"
    name_rows(ax, [names[index] for index in shown], what)
    ax.set_xticks(range(len(numbers)), [f"{n}\n({size:,})" for n, size in zip(numbers, table.sum(axis=0), strict=True)])
    ax.set(xlabel="fold (products)", ylim=(len(shown) - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    fig.colorbar(picture, ax=ax, label="share in fold minus overall (points)", pad=0.02)
    return titled(fig, title)


@styled
def duplicate_pairs(pairs: pd.DataFrame, classes: list[str], kind: str = "photo", top: int = 8) -> Figure:
    """Pairs of nearly the same products side by side, with their classes; those of two classes first, in orange.

    pairs: goods.trust.near_duplicates; its rows of that kind ("photo", "text") are drawn. Behind those of two classes
    come those across train and test.
    """
    found = pairs[pairs["kind"] == kind]
    what = {"photo": "photos", "text": "texts"}[kind]
    if found.empty:
        return nothing(f"No two {what} are nearly the same")
    shown = found.sort_values(["conflict", "across"], ascending=False, kind="stable").head(top)
    names, across, side, gap, row = names_of(classes, 22, lines=2), 2, 1.2, 0.16, 2.0
    pair = 2 * (side + 0.06) + 2 * gap
    fig = new_figure(max(6.0, min(across, len(shown)) * pair + 2 * gap), 0.3 + -(-len(shown) // across) * row,
                     layout=None)  # fmt: skip
    for place, each in enumerate(shown.to_dict("records")):
        left, top_edge = 2 * gap + place % across * pair, 0.72 + place // across * row
        for number, end in enumerate("ab"):
            label = each[f"label_{end}"]
            ax = photo_axes(fig, (left + number * (side + 0.06), top_edge), side, each[f"image_{end}"],
                            short(each[f"title_{end}"], 23, lines=3))  # fmt: skip
            colour = VERMILION if each["conflict"] else BLUE if label >= 0 else GREY
            ax.set_title(names[label] if label >= 0 else "test", fontsize=6.5, loc="left", pad=2, color=colour)
    title = f"{count(len(found), 'pair')} of {what} nearly the same, {found['across'].sum():,} across train and test"
    differ = int(found["conflict"].sum())
    return titled(fig, title + (f"; {differ:,} with two classes (orange)" if differ else ""))


@styled
def words_by_class(words: pd.DataFrame, per_class: int = 6) -> Figure:
    """The words that tell each class from all others, the strongest first and darkest.

    words: goods.eda.telling_words (class, word, z, share). Of more than 40 classes the 40 told best.
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
def shift_drivers(auc: float, drivers: pd.DataFrame, top: int = 12, other: str = "test") -> Figure:
    """What tells test products, or `other` ones, from training ones, and how well it does.

    auc: out of fold, .5 for not at all. drivers: name, weight (positive: not of train), strongest first.
    """
    if drivers.empty:
        return nothing(f"Too few products to compare train and {other}")
    shown = drivers.head(top)
    fig = new_figure(6.5, height_of(len(shown)))
    ax = fig.subplots()
    ax.barh(range(len(shown)), shown["weight"], height=0.72, color=np.where(shown["weight"] > 0, VERMILION, BLUE))
    names = [short(str(name).replace("_", " ")) for name in shown["name"]]
    name_rows(ax, names, "what tells them apart")
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_xlabel(f"weight (right: {other}, left: train)")
    strong = "can't be told apart" if auc < 0.55 else "differ a little" if auc < 0.65 else "differ"
    title = f"Train and {other} {strong}: AUC {digits(auc)} out of fold"
    return titled(
        fig, title + (f", most by {short(str(shown['name'].iloc[0]).replace('_', ' '))}" if auc >= 0.55 else "")
    )
