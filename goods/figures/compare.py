"""Figures of runs side by side."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from goods.figures.style import (
    BLACK,
    BLUE,
    GREY,
    MAX_ROWS,
    VERMILION,
    count,
    digits,
    height_of,
    name_rows,
    names_of,
    new_figure,
    nothing,
    short,
    styled,
    titled,
)


@styled
def run_scores(scores: pd.DataFrame, finding: str, metric: str) -> Figure:
    """The score of each run (index: its name) with its interval: value, low, high; the finding is the title.

    metric: its name for people.
    """
    if scores.empty:
        return nothing("No run has an honest score yet")
    shown = scores.head(MAX_ROWS)
    ax = new_figure(height=height_of(len(shown))).subplots()
    for row, (value, low, high) in enumerate(shown[["value", "low", "high"]].to_numpy()):
        color = BLUE if row == 0 else GREY
        ax.plot([low, high], [row, row], color=color)
        ax.plot(value, row, "o", color=color)
        ax.annotate(digits(value), (value, row), (0, 5), textcoords="offset points", ha="center", fontsize=7)
    name_rows(ax, [short(name, 28) for name in shown.index], "run")
    ax.set_xlabel(f"{metric} out of fold, 95 % interval")
    ax.grid(True, axis="x")
    return titled(ax.figure, finding)


@styled
def class_gains(classes: pd.DataFrame, ours: str, theirs: str) -> Figure:
    """What one run gains over another in each class's F1, with its interval: gain, gain_low, gain_high (index: names).

    Of more than 40 classes those that gain and those that lose most.
    """
    if classes.empty:
        return nothing("There are no classes to compare")
    half = MAX_ROWS // 2
    shown = classes if len(classes) <= MAX_ROWS else pd.concat([classes.head(half), classes.tail(half)])
    ax = new_figure(height=height_of(len(shown))).subplots()
    ax.axvline(0, color=BLACK, linewidth=1)
    for row, (gain, low, high) in enumerate(shown[["gain", "gain_low", "gain_high"]].to_numpy()):
        color = BLUE if low > 0 else VERMILION if high < 0 else GREY
        ax.plot([low, high], [row, row], color=color)
        ax.plot(gain, row, "o", color=color)
    what = "class" if len(shown) == len(classes) else f"{len(shown)} of {len(classes)} classes, those that change most"
    name_rows(ax, names_of(list(shown.index)), what)
    ax.set_xlabel(f"F1 of {short(ours, 24)} less that of {short(theirs, 24)}, 95 % interval")
    ax.grid(True, axis="x")
    better, worse = int((classes["gain_low"] > 0).sum()), int((classes["gain_high"] < 0).sum())
    found = f"{count(better, 'class is', 'classes are')} better, {count(worse, 'is', 'are')} worse beyond noise"
    return titled(ax.figure, f"Of {len(classes)} classes with {ours} in place of {theirs}: {found}")
