"""What a training, an ensemble, embeddings or a prediction has come to, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from goods.findings.of_goods import doubted_share
from goods.metrics import METRICS, calibration_error
from goods.words import count, digits, duration, joined, percent, signed, span

# One fold ------------------------------------------------------------------------------------------------------------


def planned(plan: Any, folds: int) -> str:
    """How long a run is planned to take, of a goods.cost.plan.Plan; nothing where there is none."""
    if not (hours := getattr(plan, "hours", {})):
        return ""
    most = max(hours, key=lambda name: hours[name])
    return f"Here {count(folds, 'fold')} should take about {duration(3600 * sum(hours.values()))}, mostly for {most}."


def held_back(folds: pd.DataFrame, fold: int) -> str:
    """How many products the fold learns from and holds back."""
    own = folds["fold"] == fold
    return f"fold {fold}: {(~own).sum():,} products to learn from, {own.sum():,} held back"


def converged(logs: pd.DataFrame, metric: str) -> str:
    """Whether a training was still getting better at its end, or had begun to learn by heart; one fold's log."""
    by, logs = METRICS[metric], logs.sort_values("epoch")
    if len(logs) < 2:
        return "One epoch shows no direction."
    worth = by.sign * logs[metric].to_numpy()
    best, last = int(worth.argmax()), len(worth) - 1
    third = max(1, len(worth) // 3)
    gain = worth[-1] - worth[-1 - third]
    loss = logs["valid_loss"].to_numpy()
    heart = loss[-1] > 1.05 * loss.min()
    if best == last and gain > 0.01:
        return f"It gained {digits(gain)} of {by.shown_as} in its last {count(third, 'epoch')}: more epochs may help."
    rest = (
        "the validation loss rises again, so it begins to learn by heart" if heart else "the validation loss is level"
    )
    return f"Its best epoch was {logs['epoch'].iloc[best]:.0f} of {logs['epoch'].iloc[-1]:.0f}, and {rest}."


def gradients(logs: pd.DataFrame, most: float) -> str:
    """Whether gradients were clipped; logs: gradient_norm per epoch, before clipping at `most`."""
    norms = logs["gradient_norm"].dropna() if "gradient_norm" in logs else pd.Series(dtype=float)
    if norms.empty:
        return ""
    over = int((norms > most).sum())
    if not over:
        return f"No epoch's mean gradient was longer than max_grad_norm {most:g}."
    return (
        f"In {over} of {count(len(norms), 'epoch')} the mean gradient was longer than max_grad_norm {most:g}: clipped."
    )


def outputs(scores: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """Which of a model's outputs is best, and what putting image and text together gains; scores by output."""
    by = METRICS[metric]
    values = {name: float(of[metric]) for name, of in scores.items()}
    if len(values) < 2:
        name, value = next(iter(values.items()))
        return f"There is one output, {name}: {by.shown_as} {digits(value)}."
    alone = {name: value for name, value in values.items() if name != "fused"}
    best = max(alone, key=lambda name: by.sign * alone[name])
    gain = by.sign * (values.get("fused", alone[best]) - alone[best])
    verb = f"gains {digits(gain)} over" if gain > 0 else f"loses {digits(-gain)} against"
    return (
        f"Together they have {by.shown_as} {digits(values.get('fused', alone[best]))}, which {verb} the {best} alone."
    )


def errors(table: pd.DataFrame) -> str:
    """How many predictions are wrong, and how many of those were sure; table: label, prediction, probability."""
    wrong = table[table["label"] != table["prediction"]]
    if wrong.empty:
        return f"None of {len(table):,} products is mistaken."
    sure = int((wrong["probability"] >= 0.9).sum())
    first = f"{sure:,} of them at a probability of .900 or more: look there for wrong labels first"
    rest = first if sure else "none of them at a probability of .900 or more"
    return f"{len(wrong):,} of {len(table):,} products are mistaken ({percent(len(wrong) / len(table))}), {rest}."


def hard_classes(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> str:
    """Which classes have the lowest F1, and what macro-F1 would be without them."""
    scores = class_scores(labels, predictions, len(classes))
    low = scores.sort_values(kind="stable").head(3)
    if low.iloc[0] == 1:
        return "No class has a mistake."
    named = joined([f"{classes[k]} ({digits(value)})" for k, value in low.items()])
    rest = scores.drop(low.index)
    without = f"; the other {len(rest)} have {digits(rest.mean())} on average" if len(rest) else ""
    return f"Hardest are {named}{without}."


def class_scores(labels: Sequence[int], predictions: Sequence[int], classes: int) -> pd.Series:
    """F1 of each class that is given or predicted, by its index."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    both = np.bincount(labels, minlength=classes) + np.bincount(predictions, minlength=classes)
    hits = np.bincount(labels[labels == predictions], minlength=classes)
    return pd.Series(2 * hits / np.maximum(both, 1))[both > 0]


def mistaken(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> str:
    """Which two classes are taken for each other most often, both ways together."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    wrong = labels != predictions
    if not wrong.any():
        return "Nothing is mistaken."
    pairs = pd.Series([tuple(sorted(pair)) for pair in zip(labels[wrong], predictions[wrong], strict=True)])
    (a, b), number = pairs.value_counts().index[0], int(pairs.value_counts().iloc[0])
    share = f"{percent(number / wrong.sum())} of {count(int(wrong.sum()), 'mistake')}"
    return f"{classes[a]} and {classes[b]} are taken for each other {count(number, 'time')}: {share}."


def one_way(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> str:
    """Which class draws most mistakes to itself."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    wrong = predictions[labels != predictions]
    if not len(wrong):
        return ""
    drawn = np.bincount(wrong, minlength=len(classes))
    k = int(drawn.argmax())
    return f"{classes[k]} draws most mistakes to itself: {drawn[k]:,} of {len(wrong):,}."


def why(probabilities: Mapping[str, float], words: pd.DataFrame) -> str:
    """What the prediction rests on; probabilities: "all", "without image", "without text"; words: word, lost."""
    lost = {what.removeprefix("without "): probabilities["all"] - value for what, value in probabilities.items()
            if what != "all"}  # fmt: skip
    rests = max(lost, key=lambda name: lost[name]) if lost else ""
    word = ""
    if len(words):
        strongest = words.loc[words["lost"].abs().idxmax()]
        way = "for" if strongest["lost"] > 0 else "against"
        word = f" The strongest word, “{strongest['word']}”, speaks {way} it ({signed(float(strongest['lost']))})."
    return f"Without the {rests} {digits(lost[rests])} of its probability is gone.{word}" if lost else word.strip()


def after_fold(
    fold: int, scores: Mapping[str, Any], metric: str, table: pd.DataFrame, classes: Sequence[str]
) -> list[str]:
    """The answer of train.ipynb; scores: the fold's metrics by output."""
    by = METRICS[metric]
    main = next(iter(scores.values()))
    labels, predictions = table["label"].to_numpy(), table["prediction"].to_numpy()
    return [
        f"fold {fold} has {by.shown_as} {digits(main[metric])} on {len(table):,} products that it didn't see.",
        mistaken(labels, predictions, classes),
    ]


# All folds -----------------------------------------------------------------------------------------------------------


def fold_scores(scores: pd.DataFrame, metric: str) -> str:
    """How far the folds are apart; scores: one row per fold with the metric."""
    values, by = scores[metric].dropna(), METRICS[metric]
    if len(values) < 2:
        return f"One fold, {by.shown_as} {digits(float(values.iloc[0]))}: nothing to compare it with yet."
    apart = digits(values.max() - values.min())
    folds = f"{count(len(values), 'fold')} ({span(values.tolist(), digits)})"
    return f"{by.shown_as} {digits(values.mean())} on average over {folds}: {apart} apart, so judge by all of them."


def honest(scores: Mapping[str, float], rows: int, missing: Sequence[int]) -> str:
    """The scores out of fold, and whether all folds are in."""
    named = ", ".join(f"{METRICS[name].shown_as} {digits(value)}" for name, value in scores.items())
    lacking = f" Not trained yet: fold {joined([str(number) for number in missing])}." if missing else ""
    return f"Out of fold, on {rows:,} products: {named}.{lacking}"


def ways(table: pd.DataFrame, metric: str) -> str:
    """Whether members together are better than the best of them; table: methods, the one that is taken last."""
    row, by = table.iloc[-1], METRICS[metric]
    low, gain, high = (100 * row[name] for name in ("gain_low", "gain", "gain_high"))
    points = f"{gain:.1f} points of {by.shown_as} over the best member ({low:.1f} to {high:.1f})"
    return f"“{table.index[-1]}” gains {points}{', which is beyond noise' if low > 0 else ': not beyond noise'}."


def added(table: pd.DataFrame) -> str:
    """Which member adds beyond noise, which takes away, and which would hardly be missed; table: gain and its interval
    by member."""
    if "gain_low" not in table:
        return ""
    adds, takes = table["gain_low"] > 0, table["gain_high"] < 0
    sure, against, rest = ([str(name) for name in table.index[of]] for of in (adds, takes, ~adds & ~takes))
    said = ["beyond noise, no member adds anything"]
    if sure:
        said = [f"beyond noise, {joined(sure)} add{'s' * (len(sure) == 1)} to the whole"]
    if against:
        said.append(f"{joined(against)} take{'s' * (len(against) == 1)} from it")
    if sure and rest:
        said.append(f"leaving out {rest[0] if len(rest) == 1 else f'one of {joined(rest)}'} would hardly be seen")
    return f"{'; '.join(said)}."


def gained(table: pd.DataFrame) -> str:
    """What a choice, or a teacher, has gained, where the table has an interval of it."""
    found = [name for name in ("gain", "gain_low", "gain_high") if name in table]
    if len(found) < 3 or table.empty:
        return ""
    gain, low, high = (100 * float(table[name].iloc[-1]) for name in found)
    noise = "noise, since the interval holds 0" if low <= 0 <= high else "more than noise"
    return f"That is {gain:+.1f} points ({low:.1f} to {high:.1f}): {noise}."


def believed(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Whether probabilities can be believed, before and after calibration; (n, num_classes) logits each."""
    was, now = calibration_error(labels, before), calibration_error(labels, after)
    sure, right = np.exp(after - np.logaddexp.reduce(after, axis=1, keepdims=True)).max(1), after.argmax(1) == labels
    gap = float(sure.mean() - right.mean())
    how = "too sure" if gap > 0.01 else "not sure enough" if gap < -0.01 else "about as sure as it is right"
    return f"Calibration took the error from {digits(was)} to {digits(now)}; it is {how} ({100 * gap:+.1f} points)."


def accepted(table: pd.DataFrame) -> str:
    """How many need no look, and at what precision none can be promised; table: goods.accept.acceptance_table."""
    near, none = _promised(table), table.index[table["threshold"].isna()]
    if near is None:
        return f"No threshold promises even {100 * min(table.index):g} %: every prediction needs a look."
    row, never = table.loc[near], joined([f"{100 * each:g} %" for each in none])
    never = f" At {never} nothing can be promised: no threshold holds on all rows." if len(none) else ""
    return (f"At {100 * near:g} % wanted, {percent(row['share'])} need no look and {percent(row['precision'])} of them "
            f"are right; {percent(1 - row['share'])} go to a person.{never}")  # fmt: skip


def _promised(table: pd.DataFrame, wanted: float = 0.95) -> float | None:
    """The precision next to the wanted one at which something is accepted; None where nothing is at any."""
    held = table.index[table["threshold"].notna() & (table["share"] > 0)]
    return min(held, key=lambda each: abs(each - wanted), default=None)


def found(labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> str:
    """Which class is found worst among the others, by average precision."""
    from sklearn.metrics import average_precision_score

    present = [k for k in np.unique(labels) if (labels != k).any()]
    if not present:
        return ""
    probabilities = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    area = {int(k): average_precision_score(labels == k, probabilities[:, k]) for k in present}
    low = [k for k in area if area[k] < 0.9]
    worst = min(area, key=lambda k: area[k])
    below = f"{len(low)} of {len(area)} classes have" if low else f"none of {len(area)} classes has"
    return f"{below} an average precision below .900; {classes[worst]} is lowest ({digits(area[worst])})."


def doubts(issues: pd.DataFrame, rows: int) -> str:
    """How many labels the predictions contradict, and which way most often; issues: given, suggested."""
    if issues.empty:
        return f"The predictions contradict none of {rows:,} labels."
    return f"The predictions contradict {doubted_share(issues, rows)}; ensemble/label_issues.csv lists them."


def doubted(issues: pd.DataFrame) -> str:
    """Which class the doubtful labels shown were given most often; issues: given, suggested."""
    if issues.empty:
        return ""
    given = issues["given"].value_counts()
    if given.iloc[0] == 1 < len(issues):
        return f"Each of the {len(issues)} shown is given as another class."
    return f"Of the {len(issues)} shown, {count(int(given.iloc[0]), 'is', 'are')} given as {given.index[0]}."


def refitted(metrics: Mapping[str, Any], folds: pd.DataFrame, metric: str) -> list[str]:
    """The answer of refit.ipynb; metrics: of the refit; folds: a row of scores per fold."""
    choice, scores = metrics["made_from"].get("choice") or "the end, as the folds were", folds[metric]
    return [
        f"one model of {metrics['rows']:,} rows, trained to {choice}; it has no score of its own.",
        f"expect the {METRICS[metric].shown_as} of the folds, {digits(scores.mean())} on average "
        f"({span(scores.tolist(), digits)}).",
    ]


def together(
    scores: Mapping[str, float], rows: int, metric: str, wanted: pd.DataFrame, issues: pd.DataFrame
) -> list[str]:
    """The answer of ensemble.ipynb."""
    by, near = METRICS[metric], _promised(wanted)
    look = "each of such products needs a person's look."
    if near is not None:
        share = percent(wanted.loc[near, "share"])
        look = f"{share} of such products need no person's look, if {100 * near:g} % right is enough."
    return [
        f"{by.shown_as} {digits(scores[metric])} out of fold on {rows:,} products; that is what to expect of new ones.",
        look,
        f"{count(len(issues), 'label is', 'labels are')} worth another look before anything else is tuned.",
    ]


def heaviest(words: pd.DataFrame) -> str:
    """How many words speak for more than one class; words: a list of words by class."""
    each = words["words"].str.split(", ").explode().value_counts()
    several = each[each > 1]
    if several.empty:
        return f"Each of the {len(each):,} words speaks for one class alone."
    most = f"“{several.index[0]}” for {several.iloc[0]}"
    return f"{len(several):,} of {len(each):,} words speak for more than one class, {most}."


def baseline(scores: Mapping[str, float], metric: str, table: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """The answer of baseline.ipynb."""
    by = METRICS[metric]
    return [
        f"{by.shown_as} {digits(scores[metric])} out of fold: what any other model has to beat.",
        mistaken(table["label"].to_numpy(), table["prediction"].to_numpy(), classes),
    ]
