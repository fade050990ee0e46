"""Figures of the notebooks: data in (DataFrames, arrays, lists), a matplotlib Figure out; nothing else draws.

Every title states what the figure shows, computed from the data. A returned Figure is already closed for pyplot: a
notebook shows it once, as the last expression of a cell, and figures do not pile up; `fig.savefig(path)` keeps one.
Class and product names may hold anything: `$`, emoji, scripts the fonts lack. No figure warns about them.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullFormatter, PercentFormatter
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from goods_drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    GREY_MODES,
    LABEL_BOX,
    MAX_GRID_CLASSES,
    MAX_ROWS,
    MODALITIES,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    class_bars,
    confusion_of,
    count,
    counts_of,
    digits,
    draw_bars,
    height_of,
    mistaken,
    name_rows,
    names_of,
    new_figure,
    nothing,
    percent,
    photo_axes,
    short,
    span,
    styled,
    titled,
)

# ---------------------------------------------------------------------------------------------------------------------
# 1 The goods
# ---------------------------------------------------------------------------------------------------------------------


@styled
def class_balance(labels: Sequence[int], classes: list[str]) -> Figure:
    """Products a class, most frequent first.

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
    """Width against height of the photos, larger dots for more of them, and how many there are of each Pillow mode.

    photos: one row a product with width, height (pixels) and mode; rows without a size (no photo) are left out.
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

    fig = new_figure(7, 3.3)
    left, right = fig.subplots(1, 2)
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
    draw_bars(right, shown.to_numpy(), [f"{count:,} ({percent(count / total)})" for count in shown])
    name_rows(right, [short(mode) for mode in shown.index], "Pillow mode")
    right.set(xlabel="photos", ylim=(max(len(shown), 6) - 0.4, -0.6))
    return titled(fig, f"{title}; {colour}")


@styled
def sample_grid(train: pd.DataFrame, classes: list[str], per_class: int = 3, seed: int = 0) -> Figure:
    """Photos and titles of a few random products a class.

    train: id, title, label (class index), image (path, or "" for none). Of more than 24 classes the most frequent 24.
    """
    counts = counts_of(train["label"], classes)
    if not counts.sum() or per_class < 1:
        return nothing("There are no products to look at")
    names, chosen, which = names_of(classes, 36), np.arange(len(classes)), count(len(classes), "class", "classes")
    if len(classes) > MAX_GRID_CLASSES:
        chosen = np.argsort(-counts, kind="stable")[:MAX_GRID_CLASSES]
        which = f"the {MAX_GRID_CLASSES} most frequent of {len(classes)} classes"
    side, gap, row = 0.92, 0.1, 1.56
    block = per_class * (side + gap) + gap  # one class: its photos in a row under its name
    across = min(max(1, int(10 // block)), -(-len(chosen) // 4))
    down = -(-len(chosen) // across)
    fig = new_figure(max(6.0, across * block + gap), 0.45 + down * row, layout=None)
    labels, missing, drawn = train["label"].to_numpy(), 0, 0
    for place, index in enumerate(chosen):
        left, top, axes = gap + place // down * block, 0.72 + place % down * row, []
        rows = np.random.default_rng([seed, int(index)]).permutation(np.flatnonzero(labels == index))[:per_class]
        for product in train.iloc[rows].itertuples():
            corner, caption = (left + len(axes) * (side + gap), top), short(product.title, 17, lines=2)
            axes.append(photo_axes(fig, corner, side, product.image, caption))
        missing, drawn = missing + sum(not ax.images for ax in axes), drawn + len(axes)
        first = axes[0] if axes else photo_axes(fig, (left, top), side, "", "", "no product")
        first.set_title(f"{names[index]} ({counts[index]:,})", loc="left", fontsize=8, weight="bold", pad=4)
    photos = f"{missing} without a photo" if missing else "all with a photo"
    return titled(fig, f"{count(drawn, 'product')} of {which}: {photos}")


@styled
def fold_balance(folds: Sequence[int], labels: Sequence[int], classes: list[str]) -> Figure:
    """How far the share of each class in a fold is from its share in all folds, in percentage points.

    folds, labels: (n,) fold number and class index a product. Of more than 40 classes the 40 furthest off.
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
            f"{percent(shares[worst, fold])} of fold {numbers[fold]}, {percent(overall[worst])} of all"
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


# ---------------------------------------------------------------------------------------------------------------------
# 2 Training and errors
# ---------------------------------------------------------------------------------------------------------------------


@styled
def learning_curves(logs: pd.DataFrame) -> Figure:
    """Losses and macro-F1 by epoch, one colour a fold.

    logs: one row an epoch with fold, epoch (from 1), train_loss, valid_loss, macro_f1.
    """
    if logs.empty or logs["macro_f1"].isna().all():
        return nothing("No epoch has been logged")
    logs = logs.dropna(subset=["macro_f1"]).sort_values(["fold", "epoch"])
    best, last = logs.loc[logs.groupby("fold")["macro_f1"].idxmax()], int(logs["epoch"].max())
    many, epochs = len(best) > 1, span(best["epoch"].tolist(), "{:.0f}".format)
    fig = new_figure(7.5)
    left, right = fig.subplots(1, 2)
    for fold, log in logs.groupby("fold"):
        marker = "o" if len(log) <= 15 else ""
        (line,) = left.plot(log["epoch"], log["valid_loss"], marker=marker)
        color = line.get_color() if many else ORANGE
        (dashed,) = left.plot(log["epoch"], log["train_loss"], "--", marker=marker, markerfacecolor="w", color=color)
        line.set_label(f"fold {fold}" if many else "validation")
        dashed.set_label("" if many else "training")
        right.plot(log["epoch"], log["macro_f1"], marker=marker, color=line.get_color())
    right.scatter(best["epoch"], best["macro_f1"], s=70, facecolor="none", edgecolor=BLACK, zorder=3, label="best")
    left.set_ylabel("loss (solid: validation, dashed: training)" if many else "loss")
    right.set_ylabel("macro-F1 on validation")
    for ax in (left, right):
        ax.set(xlabel="epoch", xlim=(logs["epoch"].min() - 0.4, last + 0.4))
        ax.xaxis.set_major_locator(MultipleLocator(max(1, -(-last // 8))))
        ax.grid(True, axis="y")
        if ax is right or len(best) <= 10:
            ax.legend()
    reached = f"at epoch{'s' * (' ' in epochs)} {epochs} of {last}{f' ({len(best)} folds)' * many}"
    return titled(fig, f"Best macro-F1 {span(best['macro_f1'].tolist(), digits)} {reached}")


@styled
def rates_and_gradients(logs: pd.DataFrame) -> Figure:
    """Learning rate at the end of each epoch, and the mean norm of its gradients before they are clipped.

    logs: one row an epoch with fold, epoch (from 1), learning_rate, gradient_norm.
    """
    if logs.empty or "gradient_norm" not in logs or logs["gradient_norm"].isna().all():
        return nothing("No gradients have been logged")
    fig = new_figure(7.5, 3.0)
    left, right = fig.subplots(1, 2)
    for fold, log in logs.sort_values(["fold", "epoch"]).groupby("fold"):
        left.plot(log["epoch"], log["learning_rate"], marker="o", label=f"fold {fold}")
        right.plot(log["epoch"], log["gradient_norm"], marker="o")
    left.set(xlabel="epoch", ylabel="learning rate at its end")
    right.set(xlabel="epoch", ylabel="mean gradient norm")
    for ax in (left, right):
        ax.grid(True, axis="y")
    if logs["fold"].nunique() <= 10:
        left.legend()
    worst = logs.loc[logs["gradient_norm"].idxmax()]
    return titled(fig, f"Gradients are largest in epoch {worst['epoch']:.0f}: norm {worst['gradient_norm']:.2g}, "
                       f"at the end {logs.sort_values('epoch')['gradient_norm'].iloc[-1]:.2g}")  # fmt: skip


@styled
def confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int], classes: list[str], normalise: bool = True
) -> Figure:
    """Predicted class (columns) by given class (rows), darker where more products are.

    labels, predictions: (n,) class indices. With `normalise` a row is in per cent of its class, and a class without
    products is a grey row. Cells have numbers up to 25 classes, the axes every name up to 100.
    """
    confusion = confusion_of(labels, predictions, classes)
    if not confusion.sum():
        return nothing("There are no predictions to compare")
    names, size, support = names_of(classes, 22), len(classes), confusion.sum(axis=1, keepdims=True)
    title = f"No mistakes: {count(len(labels), 'prediction')}, all right"
    for given, taken in mistaken(confusion)[:1]:
        often = f"{confusion[given, taken]:,} of {support[given, 0]:,}"
        title = f"{names[given]} is most often taken for {names[taken]} ({often})"
    values = np.ma.array(confusion, dtype=float)
    if normalise:
        values = np.ma.array(100 * confusion / np.maximum(support, 1), mask=np.repeat(support == 0, size, axis=1))
    inches = min(max(0.27 * size, 2.2), 8.5)
    fig, font = new_figure(inches + 2.6, inches + 2.0), max(4.8, min(7.5, 0.8 * 72 * inches / size))
    ax = fig.subplots()
    # on a square root scale the few errors can be seen beside the many hits
    picture = ax.imshow(values, cmap=plt.get_cmap("Blues").with_extremes(bad=PALE), norm=PowerNorm(0.5, 0))
    for (i, j), value in np.ndenumerate(values.filled(0) if size <= 25 else np.empty((0, 0))):
        if value >= 0.5:
            color = "white" if picture.norm(value) > 0.6 else BLACK
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color, fontsize=6.5 if value < 1000 else 5)
    step = -(-size // 100)  # of more than 100 names only every step-th can be read
    ax.set_xticks(range(0, size, step), names[::step], rotation=90, fontsize=font)
    ax.set_yticks(range(0, size, step), names[::step], fontsize=font)
    ax.tick_params(length=0 if step == 1 else 3)
    ax.set(xlabel="predicted class", ylabel="given class")
    label = "% of the given class (root scale)" if normalise else "products (root scale)"
    fig.colorbar(picture, ax=ax, label=label, shrink=0.6, pad=0.02)
    return titled(fig, title)


@styled
def class_f1(labels: Sequence[int], predictions: Sequence[int], classes: list[str]) -> Figure:
    """F1 of every class, the hardest first, and the number of products it has.

    labels, predictions: (n,) class indices. Classes neither given nor predicted are left out, as in scikit-learn's
    macro average. Of more than 40 classes the 20 hardest and the 20 easiest.
    """
    confusion = confusion_of(labels, predictions, classes)
    if not confusion.sum():
        return nothing("There are no predictions to score")
    names, support, both = names_of(classes), confusion.sum(axis=1), confusion.sum(axis=1) + confusion.sum(axis=0)
    scores = 2 * np.diag(confusion) / np.maximum(both, 1)
    present = np.flatnonzero(both)
    order, macro = present[np.argsort(scores[present], kind="stable")], scores[present].mean()
    worst = next(index for index in order if support[index])
    title = f"Hardest is {names[worst]}: F1 {digits(scores[worst])} with {count(support[worst], 'product')}"
    title += f"; macro-F1 {digits(macro)}" if len(present) > 1 else ""
    if scores[worst] == 1:
        title = f"Every class has F1 1.000 ({count(len(labels), 'product')})"
    ax, shown = class_bars(names, order, scores, digits, "hardest", "easiest")
    for row, index in enumerate(shown):
        ax.text(1.25, row, f"{support[index]:,}", ha="right", va="center", fontsize=7.5, color=GREY)
    ax.set(xlim=(0, 1.25), xticks=np.arange(0, 1.1, 0.2))
    ax.axvline(macro, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
    ax.xaxis.set_major_formatter("{x:.1f}")
    left_out = len(classes) - len(present)
    without = f"\n{count(left_out, 'class', 'classes')} without products left out" if left_out else ""
    ax.set_xlabel(f"F1 (dashed: macro-F1), number of products at the right{without}")
    return titled(ax.figure, title)


@styled
def confused_pairs(labels: Sequence[int], predictions: Sequence[int], classes: list[str], top: int = 10) -> Figure:
    """The pairs of classes most often mistaken, given → predicted, by number of products.

    labels, predictions: (n,) class indices.
    """
    confusion = confusion_of(labels, predictions, classes)
    names, support, shown = names_of(classes, 24), confusion.sum(axis=1), mistaken(confusion)[:top]
    if not shown:
        return nothing("There are no mistakes" if confusion.sum() else "There are no predictions to compare")
    values, errors = np.array([confusion[pair] for pair in shown]), int(confusion.sum() - np.trace(confusion))
    texts = [f"{confusion[a, b]:,} of {support[a]:,} ({percent(confusion[a, b] / support[a])})" for a, b in shown]
    pairs = [f"{names[a]} → {names[b]}" for a, b in shown]
    ax = new_figure(7, height_of(len(shown))).subplots()
    draw_bars(ax, values, texts, VERMILION)
    name_rows(ax, pairs, "given → predicted")
    ax.set(xlabel="products mistaken", ylim=(max(len(shown), 3) - 0.4, -0.6))
    share = f"{count(len(shown), 'pair')} {'holds' if len(shown) == 1 else 'hold'} {percent(values.sum() / errors)}"
    leads = f"{pairs[0]} leads ({values[0]:,} of {support[shown[0][0]]:,})"
    return titled(ax.figure, f"{share} of {count(errors, 'error')}; {leads}")


@styled
def worst_errors(frame: pd.DataFrame, classes: list[str], top: int = 8) -> Figure:
    """Photos of the wrong predictions the model was surest of, with the given and the predicted class.

    frame: id, title, image (path or ""), label, prediction (class indices), probability (of the prediction, 0 to 1);
    right predictions are passed over.
    """
    errors = frame[frame["label"] != frame["prediction"]].sort_values("probability", ascending=False, kind="stable")
    if errors.empty or top < 1:
        return nothing("There are no mistakes" if len(frame) else "There are no predictions to compare")
    names, shown = names_of(classes, 21), errors.head(top)
    across, side, gap, row = 4, 1.75, 0.2, 2.6
    fig = new_figure(across * (side + gap) + gap, 0.45 + -(-len(shown) // across) * row, layout=None)
    for place, error in enumerate(shown.itertuples()):
        corner = (gap + place % across * (side + gap), 0.85 + place // across * row)
        ax = photo_axes(fig, corner, side, error.image, short(error.title, 36, lines=2) or short(error.id))
        given, taken, sure = names[error.label], names[error.prediction], percent(error.probability)
        ax.text(0, 1.12, f"given: {given}", color=BLUE, fontsize=7.5, transform=ax.transAxes)
        ax.text(0, 1.03, f"predicted: {taken}", color=VERMILION, fontsize=7.5, transform=ax.transAxes)
        ax.text(0.98, 0.03, sure, color=VERMILION, fontsize=7.5, ha="right", bbox=LABEL_BOX, transform=ax.transAxes)
        if place == 0:
            title = f"Surest of {count(len(errors), 'error')}: {given} taken for {taken} at {sure}"
    return titled(fig, title)


@styled
def occlusion(
    image: str, patches: np.ndarray | None, words: pd.DataFrame, probabilities: dict[str, float], name: str
) -> Figure:
    """What speaks for a prediction: the photo under a heat map, and the words, each by the probability lost without it.

    image: path or ""; patches: (grid, grid) or None; words: word, lost; probabilities: of the class `name` from "all",
    and "without image", "without text". Red speaks for the class, blue against it.
    """
    shade = plt.get_cmap("RdBu_r")
    fig = new_figure(8.0, 3.1, layout=None)
    ax = photo_axes(fig, (0.2, 0.5), 2.3, image, "")
    if patches is not None:
        limit, side = max(0.01, np.abs(patches).max()), ax.get_xlim()[1] + 0.5
        with Image.open(image) as photo:  # the model sees it squashed to a square, here it keeps its shape
            width, height = (side * length / max(photo.size) for length in photo.size)
        corners = ((side - width) / 2, (side + width) / 2, (side + height) / 2, (side - height) / 2)
        limits = ax.get_xlim(), ax.get_ylim()
        ax.imshow(patches, cmap=shade, vmin=-limit, vmax=limit, alpha=0.55, extent=[c - 0.5 for c in corners])
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_xlabel(f"darkest patch: {limit:.2f} of probability", fontsize=6.5, loc="left", color=GREY)
    room = fig.add_axes((2.8 / 8, 0.03, 5.1 / 8, 2.57 / 3.1), xlim=(0, 80), ylim=(11, -0.5))
    room.set_axis_off()
    limit, x, y = max(0.01, words["lost"].abs().max() if len(words) else 0), 0.0, 0.0
    for word, lost in words[["word", "lost"]].itertuples(index=False):
        shown = short(word, 30)
        if x + len(shown) > 79:
            x, y = 0.0, y + 1
        if y > 10:
            break
        box = {"facecolor": shade(0.5 + lost / limit / 2), "edgecolor": "none", "pad": 1.2, "alpha": 0.7}
        room.text(x, y, shown, fontsize=7.5, family="DejaVu Sans Mono", bbox=box, va="center")
        x += len(shown) + 1.2
    rest = [f"{digits(value)} {what}" for what, value in probabilities.items() if what != "all"]
    return titled(fig, f"{short(name)} with probability {digits(probabilities['all'])}: {' and '.join(rest)}")


@styled
def embedding_map(points: np.ndarray, labels: Sequence[int], classes: list[str], shown: int = 7) -> Figure:
    """Places (n, 2) of products on a map, the largest classes in colour; the title says how pure neighbourhoods are.

    labels: (n,) class indices.
    """
    labels, points = np.asarray(labels), np.asarray(points)
    if len(points) < 2:
        return nothing("There are too few products for a map")
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)  # (n, n)
    np.fill_diagonal(distance, np.inf)
    alike = float((labels[distance.argmin(1)] == labels).mean())
    fig = new_figure(6.0, 4.2)
    ax, names = fig.subplots(), names_of(classes)
    largest = np.argsort(-np.bincount(labels, minlength=len(classes)), kind="stable")[:shown]
    rest = ~np.isin(labels, largest)
    ax.scatter(*points[rest].T, s=5, color=PALE, label="other classes" if rest.any() else None)
    for k in largest:
        if (labels == k).any():
            ax.scatter(*points[labels == k].T, s=5, label=names[k])
    ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2.5)
    return titled(fig, f"{percent(alike)} of the products lie next to one of their own class")


# ---------------------------------------------------------------------------------------------------------------------
# 3 Ensemble and submission
# ---------------------------------------------------------------------------------------------------------------------


@styled
def modality_scores(scores: pd.DataFrame, metric: str = "macro-F1") -> Figure:
    """Score of the fused, the image and the text prediction, by fold.

    scores: one row a fold (index: its number, or "oof" for all folds together), columns fused, image, text (those the
    model has), higher is better; `metric` is its name. The title takes the row "oof", or else the mean of the folds.
    """
    scores = scores[[name for name in MODALITIES if name in scores]].astype(float).dropna(axis=1, how="all")
    if scores.empty:
        return nothing("There are no scores to compare")
    rows = [str(name) for name in scores.index]
    pooled = scores[[row == "oof" for row in rows]].dropna(axis=1)
    level = (scores if pooled.empty else pooled).mean().sort_values(ascending=False, kind="stable")
    folds = f"mean of {len(rows)} folds" if len(rows) > 1 else f"fold {rows[0]}"
    where = folds if pooled.empty else "out of fold"
    ahead = " and of ".join(f"{name} by {digits(level.iloc[0] - level[name])}" for name in level.index[1:])
    ax = new_figure(max(6.0, 1.6 + 0.75 * len(rows))).subplots()
    for number, name in enumerate(scores):
        color, marker = MODALITIES[name]
        places = np.arange(len(rows)) + 0.2 * (number - (scores.shape[1] - 1) / 2)
        label = f"{name} ({digits(level[name])})" if name in level else name
        ax.plot(places, scores[name], marker, color=color, markersize=7, label=label)
        for place, value in zip(places, scores[name], strict=True):
            if len(rows) <= 8 and np.isfinite(value):
                ax.annotate(digits(value), (place, value), (0, 6), textcoords="offset points", ha="center", fontsize=7)
    ax.set_xticks(range(len(rows)), [row if row == "oof" else f"fold {row}" for row in rows])
    ax.set(xlim=(-0.6, len(rows) - 0.4), ylabel=metric)
    ax.margins(y=0.15)
    ax.grid(True, axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=where)
    title = f"{level.index[0].capitalize()} leads with {metric} {digits(level.iloc[0])} ({where})"
    return titled(ax.figure, f"{title}, ahead of {ahead}" if ahead else title)


@styled
def curves(labels: Sequence[int], logits: np.ndarray, classes: list[str], shown: int = 3) -> Figure:
    """ROC and precision-recall curves, each class against the rest: micro, macro, and the best and worst classes.

    labels: (n,) class indices, logits: (n, num_classes).
    """
    labels, probabilities = np.asarray(labels), softmax(logits, axis=1)
    present = [k for k in np.unique(labels) if (labels != k).any()]
    if not present:
        return nothing("There are fewer than two classes to tell apart")
    names = names_of(classes)
    hits = {k: labels == k for k in present}
    area = {k: average_precision_score(hits[k], probabilities[:, k]) for k in present}
    ranked = sorted(present, key=lambda k: -area[k])
    best, worst = ranked[:shown], [k for k in ranked[-shown:] if k not in ranked[:shown]]
    fig = new_figure(8.0, 3.9)
    left, right = fig.subplots(1, 2)
    drawn = [("micro", np.stack([hits[k] for k in present], 1).ravel(), probabilities[:, present].ravel(), BLACK, "-")]
    for kinds, colors, line in ((best, (BLUE, GREEN, SKY), "-"), (worst, (VERMILION, ORANGE, PURPLE), "--")):
        drawn += [
            (names[k], hits[k], probabilities[:, k], color, line) for k, color in zip(kinds, colors, strict=False)
        ]
    for name, hit, sure, color, line in drawn:
        false, true, _ = roc_curve(hit, sure)
        precision, recall, _ = precision_recall_curve(hit, sure)
        left.plot(false, true, line, color=color)
        right.plot(recall, precision, line, color=color, label=f"{name} ({digits(average_precision_score(hit, sure))})")
    at = np.linspace(0, 1, 200)
    roc = [roc_curve(hits[k], probabilities[:, k])[:2] for k in present]
    left.plot(at, np.mean([np.interp(at, false, true) for false, true in roc], axis=0), ":", color=BLACK)
    pr = [precision_recall_curve(hits[k], probabilities[:, k])[:2] for k in present]
    mean = np.mean([np.interp(at, recall[::-1], precision[::-1]) for precision, recall in pr], axis=0)
    macro = float(np.mean(list(area.values())))
    right.plot(at, mean, ":", color=BLACK, label=f"macro ({digits(macro)})")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision-recall", ylim=(0, 1.02))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="average precision")
    return titled(fig, f"Average precision {digits(macro)} over the classes; "
                       f"{names[ranked[-1]]} is found worst ({digits(area[ranked[-1]])})")  # fmt: skip


@styled
def reliability(labels: Sequence[int], outputs: dict[str, np.ndarray], bins: int = 15) -> Figure:
    """How often a prediction is right against how sure it was; on the diagonal the probabilities can be believed.

    labels: (n,); outputs: (n, num_classes) logits by name, the one that counts last.
    """
    labels = np.asarray(labels)
    if not len(labels) or not outputs:
        return nothing("There are no predictions to judge")
    fig = new_figure(6.0, 4.0)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], ":", color=GREY)
    errors = {}
    for (name, logits), color in zip(outputs.items(), (ORANGE, BLUE, GREEN, PURPLE), strict=False):
        probabilities = softmax(logits, axis=1)
        sure, right = probabilities.max(1), probabilities.argmax(1) == labels
        where = np.minimum((sure * bins).astype(int), bins - 1)
        counts = np.bincount(where, minlength=bins)
        rate, mean = (
            np.bincount(where, weights=values, minlength=bins) / np.maximum(counts, 1) for values in (right, sure)
        )
        errors[name] = float(np.sum(counts * np.abs(rate - mean)) / len(labels))
        used = counts > 0
        top.plot(mean[used], rate[used], "o-", color=color, label=f"{name} ({digits(errors[name])})")
        bottom.step(np.linspace(0, 1, bins + 1), [*counts / len(labels), 0], where="post", color=color)
    top.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.03))
    bottom.set(xlabel="probability of the predicted class", ylabel="share")
    top.legend(title="calibration error")
    first, last = next(iter(errors)), list(errors)[-1]
    finding = f"The probabilities are {digits(errors[last])} off on average"
    return titled(fig, finding if first == last else f"{finding}, those of {first} {digits(errors[first])}")


@styled
def method_gains(methods: pd.DataFrame) -> Figure:
    """Gain in macro-F1 of each way to combine members over the best one of them, with its 95 % interval.

    methods: one row a way, the one that was chosen last; gain, gain_low, gain_high, macro_f1.
    """
    if methods.empty:
        return nothing("There are no methods to compare")
    chosen, points = methods.iloc[-1], 100 * methods[["gain_low", "gain", "gain_high"]].to_numpy()
    ax = new_figure(6.0, height_of(len(methods))).subplots()
    colors = [BLUE if low > 0 else VERMILION if high < 0 else GREY for low, _, high in points]
    ax.axvline(0, color=BLACK, linewidth=1)
    for row, ((low, gain, high), color) in enumerate(zip(points, colors, strict=True)):
        ax.plot([low, high], [row, row], color=color)
        ax.plot(gain, row, "o", color=color)
    name_rows(ax, [f"{name} ({digits(score)})" for name, score in methods["macro_f1"].items()], "method (macro-F1)")
    ax.set_xlabel("points of macro-F1 over the best member, 95 % interval")
    ax.grid(True, axis="x")
    low, gain, high = points[-1]
    sure = f"gains {gain:.1f} points over the best member" if low > 0 else "is not above the best member beyond noise"
    return titled(ax.figure, f"Together macro-F1 {digits(chosen['macro_f1'])}: it {sure} ({low:.1f} to {high:.1f})")


@styled
def prediction_balance(train_labels: Sequence[int], test_predictions: Sequence[int], classes: list[str]) -> Figure:
    """Share of each class in train against its share among the test predictions.

    train_labels: (n,), test_predictions: (m,) class indices. Of more than 40 classes the 40 that shift most.
    """
    train, test = counts_of(train_labels, classes), counts_of(test_predictions, classes)
    if not train.sum() or not test.sum():
        return nothing("There are no predictions to compare with train")
    names, before, after = names_of(classes), train / train.sum(), test / test.sum()
    shift = np.abs(after - before)
    worst = int(shift.argmax())
    shares = f"{percent(before[worst])} of train, {percent(after[worst])} of the test predictions"
    title = f"{names[worst]} shifts most: {shares}" if shift[worst] >= 0.0005 else "Class shares are those of train"
    never = int(((test == 0) & (train > 0)).sum())
    title += f"; {count(never, 'class', 'classes')} never predicted" if never else ""
    chosen = np.argsort(-shift, kind="stable")[:MAX_ROWS]
    shown = chosen[np.argsort(-before[chosen], kind="stable")]
    ax, rows = new_figure(height=height_of(len(shown)) + 0.3).subplots(), np.arange(len(shown))
    ax.hlines(rows, before[shown], after[shown], color=GREY, linewidth=1.2)
    ax.plot(before[shown], rows, "o", color=BLUE, markersize=6, label="train")
    ax.plot(after[shown], rows, "D", color=VERMILION, markersize=4.5, label="test predictions")
    what = "class" if len(shown) == len(classes) else f"{MAX_ROWS} of {len(classes)} classes, those that shift most"
    name_rows(ax, [names[index] for index in shown], what)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.grid(True, axis="x")
    ax.set_xlabel(f"share of products ({train.sum():,} in train, {test.sum():,} in test)")
    ax.legend()
    return titled(ax.figure, title)
