"""Figures of all folds together, of blends, of embeddings and of the predictions for the test set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.special import softmax
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from goods.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MAX_ROWS,
    MODALITIES,
    ORANGE,
    PURPLE,
    SKY,
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
    styled,
    titled,
)
from goods.metrics import METRICS, calibration_error, confidence_bins


@styled
def modality_scores(scores: pd.DataFrame, metric: str = "macro_f1") -> Figure:
    """Score of the fused, the image and the text prediction, by fold.

    scores: one row per fold (index: its number, or "oof" for all folds together), columns fused, image, text (those the
    model has), in `metric`, a name of METRICS. The title takes the row "oof", or else the mean of the folds.
    """
    scores = scores[[name for name in MODALITIES if name in scores]].astype(float).dropna(axis=1, how="all")
    if scores.empty:
        return nothing("There are no scores to compare")
    rows = [str(name) for name in scores.index]
    pooled = scores[[row == "oof" for row in rows]].dropna(axis=1)
    by = METRICS[metric]
    level = (scores if pooled.empty else pooled).mean().sort_values(ascending=by.sign < 0, kind="stable")
    folds = f"mean of {len(rows)} folds" if len(rows) > 1 else f"fold {rows[0]}"
    where = folds if pooled.empty else "out of fold"
    ahead = " and of ".join(f"{name} by {digits(abs(level.iloc[0] - level[name]))}" for name in level.index[1:])
    ax = new_figure(max(6.0, 1.8 + 0.95 * len(rows))).subplots()
    for number, name in enumerate(scores):
        color, marker = MODALITIES[name]
        places = np.arange(len(rows)) + 0.27 * (number - (scores.shape[1] - 1) / 2)
        label = f"{name} ({digits(level[name])})" if name in level else name
        ax.plot(places, scores[name], marker, color=color, markersize=7, label=label)
        for place, value, row in zip(places, scores[name], scores.to_numpy(), strict=True):
            if len(rows) <= 8 and np.isfinite(value):  # the lowest of a fold below its marker: it hides no other's
                below = len(scores.columns) > 1 and value == np.nanmin(row)
                at = {"xytext": (0, -6 if below else 6), "va": "top" if below else "bottom"}
                ax.annotate(digits(value), (place, value), textcoords="offset points", ha="center", fontsize=7, **at)
    ax.set_xticks(range(len(rows)), [row if row == "oof" else f"fold {row}" for row in rows])
    ax.set(xlim=(-0.6, len(rows) - 0.4), ylabel=by.shown_as)
    ax.margins(y=0.15)
    ax.grid(True, axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=where)
    title = f"{level.index[0].capitalize()} leads with {by.shown_as} {digits(level.iloc[0])} ({where})"
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
    # Only the corner where the curves differ: up to where the worst of them has found nearly all.
    far = max([0.02, *(false[np.searchsorted(true, 0.98)] for false, true in roc)])
    low = min(float(np.interp(0.02 * far, false, true)) for false, true in roc)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, its upper left corner",
             xlim=(-0.01 * far, min(1.0, 1.1 * far)), ylim=(0.9 * low, 1 + 0.02 * (1.1 - low)))  # fmt: skip
    right.set(xlabel="recall", ylabel="precision", title="precision-recall", ylim=(0, 1.02))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="average precision")
    return titled(fig, f"Average precision {digits(macro)} over the classes; "
                       f"{names[ranked[-1]]} is found worst ({digits(area[ranked[-1]])})")  # fmt: skip


@styled
def reliability(labels: Sequence[int], outputs: dict[str, np.ndarray]) -> Figure:
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
        counts, rate, mean = confidence_bins(labels, logits)
        errors[name] = calibration_error(labels, logits)
        used = counts > 0
        top.plot(mean[used], rate[used], "o-", color=color, label=f"{name} ({digits(errors[name])})")
        bottom.step(np.linspace(0, 1, len(counts) + 1), [*counts / len(labels), 0], where="post", color=color)
    top.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.03))
    bottom.set(xlabel="probability of the predicted class", ylabel="share")
    top.legend(title="calibration error")
    first, last = next(iter(errors)), list(errors)[-1]
    finding = f"The probabilities are {digits(errors[last])} off on average"
    return titled(fig, finding if first == last else f"{finding}; {first}: {digits(errors[first])}")


@styled
def method_gains(methods: pd.DataFrame, metric: str = "macro_f1") -> Figure:
    """Gain in the metric of each way to combine members over the best one of them, with its 95 % interval.

    methods: one row per way, the one that is taken last; gain, gain_low, gain_high and metric, a name of METRICS.
    """
    if methods.empty:
        return nothing("There are no methods to compare")
    taken, points = methods.iloc[-1], 100 * methods[["gain_low", "gain", "gain_high"]].to_numpy()
    ax = new_figure(6.0, height_of(len(methods))).subplots()
    colors = [BLUE if low > 0 else VERMILION if high < 0 else GREY for low, _, high in points]
    ax.axvline(0, color=BLACK, linewidth=1)
    for row, ((low, gain, high), color) in enumerate(zip(points, colors, strict=True)):
        ax.plot([low, high], [row, row], color=color)
        ax.plot(gain, row, "o", color=color)
    by = METRICS[metric]
    name_rows(ax, [f"{name} ({digits(score)})" for name, score in methods[metric].items()], f"method ({by.shown_as})")
    over, above = ("over", "above") if by.sign > 0 else ("below", "below")
    ax.set_xlabel(f"points of {by.shown_as} {over} the best member, 95 % interval")
    ax.grid(True, axis="x")
    low, gain, high = points[-1]
    unsure = f"is not {above} the best member beyond noise"
    sure = f"gains {gain:.1f} points over the best member" if low > 0 else unsure
    return titled(ax.figure, f"Together {by.shown_as} {digits(taken[metric])}: it {sure} ({low:.1f} to {high:.1f})")


@styled
def acceptance(curve: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """How often the surest predictions are right, by the share of all that they are: what needs no person's look.

    curve: share, precision and its lower bound `low`, out of fold, the surest first. chosen: one row per wanted
    precision (index): share accepted and precision, each fold under the thresholds of the other folds, and the
    threshold on all rows; where that is nan nothing new is accepted, and the row is not drawn.
    """
    if curve.empty:
        return nothing("There are no predictions to accept")
    ax = new_figure().subplots()
    settled = curve[curve["share"] >= 0.02]  # the first few rows say nothing yet
    ax.plot(settled["share"], settled["precision"], color=BLUE, label="precision")
    ax.fill_between(settled["share"], settled["low"], settled["precision"], color=BLUE, alpha=0.15, linewidth=0)
    taken = chosen[(chosen["share"] > 0) & chosen["threshold"].notna()]
    ax.plot(taken["share"], taken["precision"], "o", color=VERMILION)
    for near in _near_ones(taken["share"]):  # their labels below the curve, which ends there
        at = taken.loc[near, ["share", "precision"]]
        said = ", ".join(percent(wanted).removesuffix(" %") for wanted in sorted(near)) + " %"
        ax.annotate(said, (at["share"].mean(), at["precision"].min()), (0, -7), textcoords="offset points",
                    ha="center", va="top", fontsize=7.5, color=VERMILION)  # fmt: skip
    ax.plot([], [], "o", color=VERMILION, label="accepted at a wanted precision of")
    ax.set(xlabel="share of the products accepted", ylabel="share of them that is right", xlim=(0, 1.08))
    ax.margins(y=0.1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.grid(True, axis="y")
    ax.legend(loc="lower left")
    if taken.empty:
        return titled(
            ax.figure, f"All accepted, {percent(curve['precision'].iloc[-1])} are right; too few to promise more"
        )
    wanted = min(taken.index, key=lambda each: abs(each - 0.95))
    share, precision = (percent(taken.loc[wanted, name]) for name in ("share", "precision"))
    found = f"{share} need no look, and {precision} of them are right out of fold"
    return titled(ax.figure, f"At a wanted precision of {percent(wanted)}, {found}")


def _near_ones(shares: pd.Series, least: float = 0.07) -> list[list[float]]:
    """The index of `shares`, those in one list that lie too close for labels of their own."""
    groups: list[list[float]] = []
    for name, share in shares.sort_values().items():
        if groups and share - shares[groups[-1][-1]] < least:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


@styled
def sureness(new: np.ndarray, known: np.ndarray, threshold: float) -> Figure:
    """Probabilities of the predicted class of new products, (n,), beside those of the training ones out of fold, (m,).

    threshold: from which on a prediction is accepted; above 1 none is.
    """
    if not len(new) or not len(known):
        return nothing("There are no predictions to compare")
    ax, bins = new_figure(8.0).subplots(), np.linspace(0, 1, 21)
    for values, color, name in ((known, BLUE, "training products, out of fold"), (new, VERMILION, "new products")):
        share = np.histogram(values, bins)[0] / len(values)
        ax.stairs(share, bins, color=color, linewidth=1.6, label=f"{name} ({digits(float(np.median(values)))})")
    if threshold <= 1:
        ax.axvline(threshold, color=BLACK, linestyle="--", linewidth=1, label=f"accepted from {digits(threshold)} on")
    ax.set(xlabel="probability of the predicted class", ylabel="share of the products", xlim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.legend(title="median", loc="center left", bbox_to_anchor=(1, 0.5))
    less = float(np.median(known) - np.median(new))
    how = "as sure as" if abs(less) < 0.02 else "less sure than" if less > 0 else "surer than"
    return titled(ax.figure, f"On new products it is {how} out of fold; {percent(float((new >= threshold).mean()))} "
                             "are accepted")  # fmt: skip


@styled
def prediction_balance(
    train_labels: Sequence[int], test_predictions: Sequence[int], classes: list[str], what: str = "test predictions"
) -> Figure:
    """Share of each class in train against its share among the test predictions, or what else these are.

    train_labels: (n,), test_predictions: (m,) class indices. Of more than 40 classes the 40 that shift most.
    """
    train, test = counts_of(train_labels, classes), counts_of(test_predictions, classes)
    if not train.sum() or not test.sum():
        return nothing("There are no predictions to compare with train")
    names, before, after = names_of(classes), train / train.sum(), test / test.sum()
    shift = np.abs(after - before)
    worst = int(shift.argmax())
    shares = f"{percent(before[worst])} of train, {percent(after[worst])} of the {what}"
    title = f"{names[worst]} shifts most: {shares}" if shift[worst] >= 0.0005 else "Class shares are those of train"
    never = int(((test == 0) & (train > 0)).sum())
    title += f"; {count(never, 'class', 'classes')} never predicted" if never else ""
    chosen = np.argsort(-shift, kind="stable")[:MAX_ROWS]
    shown = chosen[np.argsort(-before[chosen], kind="stable")]
    ax, rows = new_figure(height=height_of(len(shown)) + 0.3).subplots(), np.arange(len(shown))
    ax.hlines(rows, before[shown], after[shown], color=GREY, linewidth=1.2)
    ax.plot(before[shown], rows, "o", color=BLUE, markersize=6, label="train", clip_on=False)
    ax.plot(after[shown], rows, "D", color=VERMILION, markersize=4.5, label=what, clip_on=False)
    rows_of = "class" if len(shown) == len(classes) else f"{MAX_ROWS} of {len(classes)} classes, those that shift most"
    name_rows(ax, [names[index] for index in shown], rows_of)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.grid(True, axis="x")
    ax.set_xlabel(f"share of products ({train.sum():,} in train, {test.sum():,} {what})")
    ax.legend()
    return titled(ax.figure, title)
