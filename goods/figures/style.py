"""What all figures share: the style, titles and counts as words, rows of names, photos."""

from __future__ import annotations

import functools
import html
import math
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from goods.data.photos import open_upright
from goods.figures.fonts import FONTS, written
from goods.files import atomic_path
from goods.words import count, digits, percent, span  # noqa: F401

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: told apart with every common colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
BLACK, GREY, PALE = "#000000", "#6E6E6E", "#E4E4E4"
MODALITIES = {"fused": (BLUE, "o"), "image": (ORANGE, "s"), "text": (GREEN, "^")}
GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
MAX_ROWS = 40  # class names on one figure; of more classes both ends or the largest are drawn, and the axis says so
MAX_GRID_CLASSES = 24
MOST_CHARACTERS = 1000  # of a text that a figure could show; some are megabytes
LABEL_BOX = {"facecolor": "w", "edgecolor": "none", "pad": 0.8}
STYLE = {
    "font.size": 8.5, "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "figure.titlesize": 10.5, "figure.dpi": 110, "text.usetex": False,
    "figure.facecolor": "w", "axes.facecolor": "w", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": False, "grid.color": PALE, "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "axes.prop_cycle": plt.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
}  # fmt: skip


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a figure function under our style, and leave pyplot and rcParams as they were."""

    @functools.wraps(draw)
    def styled(*args, **kwargs) -> Figure:
        # The first figure of a session loads the backend, which sets rcParams of its own (IPython's turns interactive
        # on); inside rc_context they would be undone, and the user's own plots would stay hidden.
        plt.close(plt.figure())
        fonts = []
        while fonts != FONTS:  # again where its texts have made us look for a font
            fonts = list(FONTS)
            with plt.rc_context(STYLE | {"font.family": fonts}):
                fig = draw(*args, **kwargs)
                if fonts == FONTS:
                    fig.draw_without_rendering()  # makes the ticks: have that while the style holds
        return fig

    return styled


def save_figure(path: Path, figure: Figure) -> Figure:
    """Keeps a figure as a PNG for report.html and gives it back, for the notebook to show."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return figure


def new_figure(width: float = 6.0, height: float = 3.5, layout: str | None = "constrained") -> Figure:
    """An empty figure of so many inches, closed for pyplot."""
    fig = plt.figure(figsize=(width, height), layout=layout)
    plt.close(fig)
    return fig


def titled(fig: Figure, finding: str) -> Figure:
    """Sets what the figure shows as its title, at its upper left, in as many lines as it takes."""
    width, height = fig.get_size_inches()
    top = {} if fig.get_layout_engine() else {"y": 1 - 0.08 / height}  # a given y takes the title out of the layout
    text = textwrap.fill(finding.replace(" %", "\xa0%"), int(width * 13)).replace("\xa0", " ")  # no line begins with %
    fig.suptitle(text, x=0.08 / width, ha="left", va="top", **top)
    return fig


def nothing(reason: str) -> Figure:
    """The figure for data that there is nothing of to draw, titled with the reason."""
    ax = new_figure(height=1.4).subplots()  # a Figure without axes would be no picture to IPython
    ax.set_axis_off()
    ax.text(0.5, 0.5, "nothing to show", ha="center", va="center", color=GREY)
    return titled(ax.figure, reason)


def clean(value: object) -> str:
    """One line, entities read, without control characters; in letters that can be drawn here."""
    text = unicodedata.normalize("NFC", " ".join(html.unescape(str(value)[:MOST_CHARACTERS]).split()))
    kept = (c for c in text if unicodedata.category(c) not in ("Cc", "Cf") and not "\ufe00" <= c <= "\ufe0f")
    return written("".join(kept))


def short(value: object, width: int = 30, lines: int = 1) -> str:
    """A name to put into a figure: cleaned, cut with an ellipsis, in at most `lines` lines, `$` kept from mathtext."""
    text = clean(value)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)  # these take the room of two letters
    wide += 0.25 * max(0, sum(map(str.isupper, text)) - len(text) // 4)  # a few capitals are room enough for
    width = max(2, int(width * len(text) / max(1, len(text) + wide)))
    rows = textwrap.wrap(text, width, max_lines=lines, placeholder="…") if lines > 1 else [text]
    rows = [row if len(row) <= width else row[: width - 1].rstrip() + "…" for row in rows]
    return "\n".join(rows).replace("$", r"\$")


def names_of(classes: Sequence[str], width: int = 30, lines: int = 1) -> list[str]:
    """The names of all classes, short enough for a figure, in at most so many lines of so many letters."""
    # A name of which only boxes are left says nothing: its index does.
    said = [any(c.isalnum() for c in clean(name)) for name in classes]
    return [short(name, width, lines) if said[index] else f"class {index}" for index, name in enumerate(classes)]


def counts_of(labels: Sequence[int], classes: Sequence[str]) -> np.ndarray:
    """(classes,) rows of each class; raises ValueError for a label that no class has."""
    labels = np.asarray(labels, dtype=int)
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} class names")
    return np.bincount(labels, minlength=len(classes))


def confusion_of(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> np.ndarray:
    """Number of products by given class (rows) and predicted class (columns)."""
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels):,} labels but {len(predictions):,} predictions")
    table = np.zeros((len(classes), len(classes)), dtype=int)
    if counts_of(labels, classes).sum() and counts_of(predictions, classes).sum():
        np.add.at(table, (np.asarray(labels, dtype=int), np.asarray(predictions, dtype=int)), 1)
    return table


def mistaken(confusion: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (given, predicted) of different classes that occur, most frequent first."""
    errors = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-errors, axis=None, kind="stable")[: np.count_nonzero(errors)]
    return [divmod(int(cell), len(errors)) for cell in order]


def height_of(rows: int) -> float:
    """Inches that a figure with so many rows of names takes."""
    return max(1.9, 1.2 + 0.2 * rows)


def name_rows(ax: Axes, names: Sequence[str], what: str) -> None:
    """Names down the y axis, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set(ylabel=what, ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)


def draw_bars(ax: Axes, values: np.ndarray, texts: Sequence[str], color: str = BLUE) -> None:
    """Horizontal bars, the first on top, each with its text at its end."""
    bars = ax.barh(range(len(values)), values, height=0.72, color=color)
    ax.bar_label(bars, labels=texts, padding=3, fontsize=7.5, bbox=LABEL_BOX)
    ax.set_xlim(0, max(float(max(values)), 1e-9) * (1.04 + 0.016 * max(map(len, texts))))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def class_bars(
    names: list[str], order: np.ndarray, values: np.ndarray, form: Callable[[float], str], first: str, last: str
) -> tuple[Axes, np.ndarray]:
    """A bar per class in the given order, of too many only the `first` and the `last`; also the classes drawn."""
    half, shown, what = MAX_ROWS // 2, order, "class"
    if len(order) > MAX_ROWS:
        shown = np.concatenate([order[:half], order[-half:]])
        what = f"{half} {first} and {half} {last} of {len(order)} classes"
    ax = new_figure(height=height_of(len(shown))).subplots()
    draw_bars(ax, values[shown], [form(value) for value in values[shown]])
    name_rows(ax, [names[index] for index in shown], what)
    if len(order) > MAX_ROWS:
        ax.axhline(half - 0.5, color=GREY, linestyle=":", linewidth=1)
    return ax, shown


def photos_shown(product: Any) -> str | tuple[str, ...]:
    """The photos of a row of products: a path, "" without one, or a tuple of several."""
    return getattr(product, "images", None) or product.image


def read_photos(paths: str | tuple[str, ...], side: int) -> np.ndarray | None:
    """One photo as read_photo gives it, or several in a grid, (side, side, 3) uint8; None if none can be read."""
    found = [pixels for path in ([paths] if isinstance(paths, str) else paths)
             if (pixels := read_photo(path, side)) is not None]  # fmt: skip
    if len(found) < 2:
        return found[0] if found else None
    across = math.ceil(math.sqrt(len(found)))
    square = Image.new("RGB", (side, side), "white")
    edges = [round(place * side / across) for place in range(across + 1)]
    for place, pixels in enumerate(found):
        row, column = divmod(place, across)
        box = edges[column], edges[row], edges[column + 1], edges[row + 1]
        square.paste(Image.fromarray(pixels).resize((box[2] - box[0], box[3] - box[1])), box)
    return np.asarray(square)


def read_photo(path: str, side: int) -> np.ndarray | None:
    """The photo centred on a white square, (side, side, 3) uint8; None if there is none or it cannot be read."""
    try:
        image = open_upright(path, side)
    except Exception:  # Pillow raises anything on broken files, and no photo is worth losing the figure
        return None
    size = tuple(max(1, round(length * side / max(image.size))) for length in image.size)
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    square = Image.new("RGB", (side, side), "white")
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def square_axes(fig: Figure, corner: tuple[float, float], side: float) -> Axes:
    """Bare axes `side` inches wide and high, their corner so many inches right and down of the figure's."""
    (left, top), (width, height) = corner, fig.get_size_inches()
    ax = fig.add_axes((left / width, 1 - (top + side) / height, side / width, side / height), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def photo_axes(
    fig: Figure,
    corner: tuple[float, float],
    side: float,
    path: str | tuple[str, ...],
    below: str,
    gap: str = "no photo",
) -> Axes:
    """A photo or a grid of several on square_axes, or a grey box that says `gap` for none, and the text below it."""
    ax = square_axes(fig, corner, side)
    pixels = read_photos(path, round(side * fig.dpi)) if isinstance(path, str | tuple) and path else None
    if pixels is None:
        ax.set_facecolor(PALE)
        ax.text(0.5, 0.5, gap, ha="center", va="center", color=GREY, transform=ax.transAxes)
    else:
        ax.imshow(pixels)
    ax.set_xlabel(below, fontsize=6.5, loc="left", labelpad=2, color=GREY)
    return ax
