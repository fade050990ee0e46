"""Figures of embeddings: the products on a map, and which lie nearest to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from goods.figures.style import (
    BLACK,
    BLUE,
    MAX_ROWS,
    PALE,
    VERMILION,
    count,
    digits,
    names_of,
    new_figure,
    nothing,
    percent,
    photo_axes,
    short,
    styled,
    titled,
)
from goods.metrics import neighbour_purity

MARKERS = "osD^vP*X"  # told apart where colours are not


@styled
def embedding_map(points: np.ndarray, labels: Sequence[int], classes: list[str], shown: int = MAX_ROWS) -> Figure:
    """Places (n, 2) of products on a map, each class in its colour with its name where it lies densest.

    labels: (n,) class indices; of more than `shown` classes the smaller ones are grey. The title says how pure
    neighbourhoods are.
    """
    labels, points = np.asarray(labels), np.asarray(points)
    if len(points) < 2:
        return nothing("There are too few products for a map")
    fig = new_figure(7.6, 6.4)
    ax, names = fig.subplots(), names_of(classes, 30)
    sizes = np.bincount(labels, minlength=len(classes))
    largest = [k for k in np.argsort(-sizes, kind="stable")[:shown] if sizes[k]]
    rest = ~np.isin(labels, largest)
    ax.scatter(*points[rest].T, s=8, color=PALE)
    places = []
    for number, k in enumerate(sorted(largest)):
        colour = hsv_to_rgb((number * 0.381966 % 1, 0.85, (0.85, 0.62)[number % 2]))  # hues a golden angle apart
        own = points[labels == k]
        ax.scatter(*own.T, s=14, color=colour, marker=MARKERS[number % len(MARKERS)], linewidth=0, alpha=0.8)
        near = ((own[:, None] - own[None]) ** 2).sum(-1)
        densest = own[np.sort(near, axis=1)[:, : 1 + len(own) // 4].mean(1).argmin()]
        places.append((densest, names[k], colour))
    _name_clusters(ax, places)
    ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    left_out = f"; {rest.sum():,} of smaller classes grey" if rest.any() else ""
    return titled(
        fig, f"{percent(neighbour_purity(points, labels))} of the products lie next to one of their own class{left_out}"
    )


def _name_clusters(ax: Axes, places: list[tuple[np.ndarray, str, Any]]) -> None:
    """Names at their places, moved up or down so that none hides another."""
    low, high = np.array(ax.dataLim.get_points())
    width, height = (high - low) / (62, 26)  # of a letter and of a line
    taken: list[tuple[float, float, float]] = []
    for (x, y), name, colour in sorted(places, key=lambda place: -place[0][1]):
        half = 0.5 * width * len(name)
        x = float(np.clip(x, low[0] + half, high[0] - half))
        steps = sorted(range(-12, 13), key=abs)
        at = next((y + step * height for step in steps if not any(
            abs(y + step * height - other) < height and abs(x - middle) < half + room for middle, other, room in taken
        )), y)  # fmt: skip
        taken.append((x, at, half))
        box = {"facecolor": "w", "edgecolor": colour, "pad": 1.2, "alpha": 0.85, "linewidth": 0.8}
        ax.text(x, at, name, fontsize=7.5, color=BLACK, ha="center", va="center", bbox=box, zorder=4)


@styled
def nearest_photos(rows: Sequence[pd.DataFrame], own: str = "class") -> Figure:
    """Products, one per row, each with those nearest to it: photos, classes and cosines.

    rows: of each product a table with cosine, class (a name, "" where it isn't known), title, image; itself first. A
    neighbour of another class than the product's is orange.
    """
    rows = [table for table in rows if len(table)]
    if not rows:
        return nothing("There are no products to look at")
    side, gap, row = 1.15, 0.14, 1.86
    fig = new_figure(max(len(table) for table in rows) * (side + gap) + 3 * gap, 0.5 + len(rows) * row, layout=None)
    other = total = 0
    for line, table in enumerate(rows):
        first = table["class"].iloc[0]
        for place, product in enumerate(table.itertuples()):
            corner = (gap + place * (side + gap) + (2 * gap if place else 0), 0.85 + line * row)
            ax = photo_axes(fig, corner, side, product.image, short(product.title, 22, lines=3))
            name = table["class"].iloc[place]
            wrong = bool(place and first and name and name != first)
            head = short(name or "test", 22, lines=2)
            ax.set_title(head, fontsize=6.5, loc="left", pad=2, color=VERMILION if wrong else BLUE)
            if place:
                ax.text(0.97, 0.03, digits(product.cosine), fontsize=6.5, ha="right", transform=ax.transAxes,
                        bbox={"facecolor": "w", "edgecolor": "none", "pad": 0.8})  # fmt: skip
                total, other = total + bool(first and name), other + wrong
    alone = f"{count(len(rows), 'product')}, each at the left of its nearest ones"
    return titled(fig, f"{alone}: {other} of {total} neighbours have another {own} (orange)" if total else alone)
