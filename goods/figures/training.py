"""Figures of a training."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from goods.figures.style import BLACK, ORANGE, digits, new_figure, nothing, span, styled, titled
from goods.metrics import METRICS


@styled
def learning_curves(logs: pd.DataFrame, metric: str = "macro_f1") -> Figure:
    """Losses and the metric by epoch, one colour per fold.

    logs: one row per epoch with fold, epoch (from 1), train_loss, valid_loss, and the metric, a name of METRICS.
    """
    if logs.empty or logs[metric].isna().all():
        return nothing("No epoch has been logged")
    by = METRICS[metric]
    logs = logs.dropna(subset=[metric]).sort_values(["fold", "epoch"])
    worth = by.sign * logs[metric]
    best, last = logs.loc[worth.groupby(logs["fold"]).idxmax()], int(logs["epoch"].max())
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
        right.plot(log["epoch"], log[metric], marker=marker, color=line.get_color())
    right.scatter(best["epoch"], best[metric], s=70, facecolor="none", edgecolor=BLACK, zorder=3, label="best")
    left.set_ylabel("loss (solid: validation, dashed: training)" if many else "loss")
    right.set_ylabel(f"{by.shown_as} on validation")
    for ax in (left, right):
        ax.set(xlabel="epoch", xlim=(logs["epoch"].min() - 0.4, last + 0.4))
        ax.xaxis.set_major_locator(MultipleLocator(max(1, -(-last // 8))))
        ax.grid(True, axis="y")
        if ax is right or len(best) <= 10:
            ax.legend()
    reached = f"at epoch{'s' * (' ' in epochs)} {epochs} of {last}{f' ({len(best)} folds)' * many}"
    return titled(fig, f"Best {by.shown_as} {span(best[metric].tolist(), digits)} {reached}")


@styled
def rates_and_gradients(logs: pd.DataFrame) -> Figure:
    """Learning rate at the end of each epoch, and the mean norm of its gradients before they are clipped.

    logs: one row per epoch with fold, epoch (from 1), learning_rate, gradient_norm.
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
