"""Figures of where a model errs, and why."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, PowerNorm
from matplotlib.figure import Figure

from goods.data.photos import load_photo, open_upright
from goods.figures.fonts import FONTS
from goods.figures.style import (
    BLACK,
    BLUE,
    GREY,
    LABEL_BOX,
    PALE,
    VERMILION,
    class_bars,
    confusion_of,
    count,
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
    photos_shown,
    short,
    square_axes,
    styled,
    titled,
)


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
    names, size, support = names_of(classes), len(classes), confusion.sum(axis=1, keepdims=True)
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
    ax, shown = class_bars(names, order, scores, lambda _: "", "hardest", "easiest")
    for row, index in enumerate(shown):  # in columns of their own: at the bars' ends the dashed line would cross them
        ax.text(1.11, row, digits(scores[index]), ha="right", va="center", fontsize=7.5)
        ax.text(1.27, row, f"{support[index]:,}", ha="right", va="center", fontsize=7.5, color=GREY)
    ax.set(xlim=(0, 1.27), xticks=np.arange(0, 1.1, 0.2))
    ax.axvline(macro, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
    ax.xaxis.set_major_formatter("{x:.1f}")
    left_out = len(classes) - len(present)
    without = f"\n{count(left_out, 'class', 'classes')} without products left out" if left_out else ""
    ax.set_xlabel(f"F1 (dashed: macro-F1), and at the right the number of products{without}")
    return titled(ax.figure, title)


@styled
def confused_pairs(labels: Sequence[int], predictions: Sequence[int], classes: list[str], top: int = 10) -> Figure:
    """The pairs of classes most often mistaken, given → predicted, by number of products.

    labels, predictions: (n,) class indices.
    """
    confusion = confusion_of(labels, predictions, classes)
    names, support, shown = names_of(classes, 26), confusion.sum(axis=1), mistaken(confusion)[:top]
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
def worst_errors(frame: pd.DataFrame, classes: list[str], top: int = 8, what: str = "error") -> Figure:
    """Photos of the wrong predictions the model was surest of, with the given and the predicted class.

    frame: id, title, image (path or ""), label, prediction (class indices), probability (of the prediction, 0 to 1);
    right predictions are passed over. `what` the title calls them, such as "doubtful label".
    """
    errors = frame[frame["label"] != frame["prediction"]].sort_values("probability", ascending=False, kind="stable")
    if errors.empty or top < 1:
        return nothing("There are no mistakes" if len(frame) else "There are no predictions to compare")
    names, shown = names_of(classes, 26), errors.head(top)
    across, side, gap, row = 4, 1.75, 0.2, 2.6
    fig = new_figure(across * (side + gap) + gap, 0.45 + -(-len(shown) // across) * row, layout=None)
    for place, error in enumerate(shown.itertuples()):
        corner = (gap + place % across * (side + gap), 0.85 + place // across * row)
        ax = photo_axes(fig, corner, side, photos_shown(error), short(error.title, 36, lines=2) or short(error.id))
        given, taken, sure = names[error.label], names[error.prediction], percent(error.probability)
        ax.text(0, 1.12, f"given: {given}", color=BLUE, fontsize=6.5, transform=ax.transAxes)
        ax.text(0, 1.03, f"predicted: {taken}", color=VERMILION, fontsize=6.5, transform=ax.transAxes)
        ax.text(0.98, 0.03, sure, color=VERMILION, fontsize=7.5, ha="right", bbox=LABEL_BOX, transform=ax.transAxes)
        if place == 0:
            title = f"Surest of {count(len(errors), what)}: {given} taken for {taken} at {sure}"
    return titled(fig, title)


@styled
def least_sure(frame: pd.DataFrame, top: int = 8) -> Figure:
    """Photos of the predictions to look at first: the least sure, with the two classes they lie between.

    frame: id, title, image (path or ""), first, second (names of classes), probability (of the first).
    """
    if frame.empty or top < 1:
        return nothing("There are no predictions to look at")
    shown = frame.sort_values("probability", kind="stable").head(top)
    across, side, gap, row = 4, 1.75, 0.2, 2.6
    fig = new_figure(across * (side + gap) + gap, 0.45 + -(-len(shown) // across) * row, layout=None)
    for place, product in enumerate(shown.itertuples()):
        corner = (gap + place % across * (side + gap), 0.85 + place // across * row)
        ax = photo_axes(fig, corner, side, product.image, short(product.title, 36, lines=2) or short(product.id))
        ax.text(0, 1.12, short(product.first, 30), color=BLUE, fontsize=7.5, transform=ax.transAxes)
        ax.text(0, 1.03, f"or {short(product.second, 28)}", color=GREY, fontsize=7.5, transform=ax.transAxes)
        sure = percent(product.probability)
        ax.text(0.98, 0.03, sure, color=BLUE, fontsize=7.5, ha="right", bbox=LABEL_BOX, transform=ax.transAxes)
    first = next(shown.itertuples())
    return titled(fig, f"Least sure: {short(first.first)} or {short(first.second)} at {percent(first.probability)}")


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
    if patches is None:
        photo_axes(fig, (0.2, 0.5), 2.3, image, "")
    else:
        _draw_heat_map(square_axes(fig, (0.2, 0.5), 2.3), image, patches, shade)
    room = fig.add_axes((2.8 / 8, 0.03, 5.1 / 8, 2.57 / 3.1), xlim=(0, 80), ylim=(11, -0.5))
    room.set_axis_off()
    _draw_words(room, words, shade)
    rest = [f"{digits(value)} {what}" for what, value in probabilities.items() if what != "all"]
    return titled(fig, f"{short(name)} with probability {digits(probabilities['all'])}: {' and '.join(rest)}")


def _draw_heat_map(ax: Axes, path: str, patches: np.ndarray, shade: Colormap) -> None:
    """What the model reads of a photo, in the photo's own proportions, and over it what each patch is worth."""
    size = round(ax.get_window_extent().width)
    whole, pixels = open_upright(path, size).size, load_photo(path, size).permute(1, 2, 0).numpy()  # (size, size, 3)
    right, low = (length / max(whole) / 2 for length in whole)
    place = {"extent": (-right, right, low, -low), "aspect": "equal"}
    limit = max(0.01, np.abs(patches).max())
    ax.imshow(pixels, **place)
    ax.imshow(patches, cmap=shade, vmin=-limit, vmax=limit, alpha=0.55, **place)
    ax.set(xlim=(-0.5, 0.5), ylim=(0.5, -0.5))
    ax.set_xlabel(f"darkest patch: {limit:.2f} of probability", fontsize=6.5, loc="left", color=GREY)


def _draw_words(ax: Axes, words: pd.DataFrame, shade: Colormap) -> None:
    """Words in lines of 79 letters, each on the shade of what it is worth; as many as the axes have lines for."""
    limit, x, y = max(0.01, words["lost"].abs().max() if len(words) else 0), 0.0, 0.0
    for word, lost in words[["word", "lost"]].itertuples(index=False):
        shown = short(word, 30) or "…"  # an emoji that no font here has
        if x + len(shown) > 79:
            x, y = 0.0, y + 1
        if y > 10:
            break
        box = {"facecolor": shade(0.5 + lost / limit / 2), "edgecolor": "none", "pad": 1.2, "alpha": 0.7}
        ink = "white" if abs(lost) > 0.7 * limit else BLACK
        ax.text(x, y, shown, fontsize=7.5, color=ink, family=["DejaVu Sans Mono", *FONTS], bbox=box, va="center")
        x += len(shown) + 1.2
