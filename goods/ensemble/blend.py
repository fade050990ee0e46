"""Predictions of many members made one: ways to combine them, each scored on rows that its fit never saw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from os import cpu_count
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from goods.ensemble.combine import AVERAGE, BEST, Combiner, average_of, mean_at, side_by_side
from goods.metric_names import metric_first
from goods.metrics import METRICS, Metric, calibration_error, fit_temperature, paired_gain, score
from goods.processes import in_parallel, on_one_thread

GREEDY_PICKS = 20
BIASES = np.linspace(-1, 1, 9)  # tried for each class, in turn
COSTS = (1e-4, 1e-3, 1e-2)  # of the stacked regression: scikit-learn's C, one over the strength of L2; rising
REGRESSION_STEPS = 20  # of L-BFGS for each cost
INNER_PARTS = 3
PARALLEL_SIZE = 100_000  # log-probabilities from which on it pays to start processes
DEFAULT = METRICS["macro_f1"]


def mean_of_probabilities(members: np.ndarray, *_: Any) -> Combiner:
    """Each counts alike."""
    return Combiner("mean", np.full(len(members), 1 / len(members)))


def best_alone(members: np.ndarray, labels: np.ndarray, metric: Metric = DEFAULT) -> Combiner:
    """The one that the metric scores best, the others left out: the blend abstains."""
    worth = [metric.worth_calibrated(labels, member) for member in members]
    return Combiner(BEST, np.eye(len(members))[int(np.argmax(worth))])


def mean_of_logits(members: np.ndarray, *_: Any) -> Combiner:
    """Each counts alike, on the log scale: a member that is sure something is not so is heard."""
    return Combiner("logits", np.full(len(members), 1 / len(members)))


def mean_at_temperature(members: np.ndarray, labels: np.ndarray, *_: Any) -> Combiner:
    """Each is calibrated by a temperature of its own, then the mean of probabilities."""
    temperatures = np.array([fit_temperature(member, labels) for member in members])
    return Combiner("temperatures", 1 / temperatures / (1 / temperatures).sum(), {"temperatures": temperatures})


def greedy_selection(members: np.ndarray, labels: np.ndarray, metric: Metric = DEFAULT) -> Combiner:
    """Member after member is added, each as often as it helps the metric (Caruana et al., ICML 2004)."""
    probabilities, total = np.exp(members), np.zeros_like(members[0])
    counts, best, kept = np.zeros(len(members)), -np.inf, np.zeros(len(members))
    for _ in range(GREEDY_PICKS):
        scores = [metric.worth_mixed(labels, total + each) for each in probabilities]
        pick = int(np.argmax(scores))
        counts[pick] += 1
        total += probabilities[pick]
        if scores[pick] > best:
            best, kept = scores[pick], counts / counts.sum()
    return Combiner("greedy", kept)


def weights_by_log_loss(members: np.ndarray, labels: np.ndarray, *_: Any) -> Combiner:
    """A weighted sum of log-probabilities, as fit_weights finds it."""
    return Combiner("weights", fit_weights(members, labels))


def weights_by_metric(members: np.ndarray, labels: np.ndarray, metric: Metric = DEFAULT) -> Combiner:
    """The same sum, its weights moved one by one as long as the metric gets better."""
    weights = fit_weights(members, labels)
    logits = np.tensordot(weights, members, 1)
    best, step = metric.worth(labels, logits), 0.4 * weights.max()
    while step > 0.05 * weights.max():
        better = False
        for member, sign in ((m, s) for m in range(len(members)) for s in (1, -1)):
            change = max(sign * step, -weights[member])
            scored = metric.worth(labels, logits + change * members[member])
            if change and scored > best:
                best, better = scored, True
                weights[member] += change
                logits = logits + change * members[member]
        step = step if better else step / 2
    return Combiner("metric_weights", weights / fit_temperature(logits, labels))


def stacking(members: np.ndarray, labels: np.ndarray, *_: Any) -> Combiner:
    """Multinomial logistic regression on all members' log-probabilities, its L2 chosen by cross-validation."""
    warnings.filterwarnings("ignore", module="sklearn")  # few steps on purpose, and few rows of a class
    x = side_by_side(members)
    part = np.arange(len(labels)) % INNER_PARTS
    held_out = np.zeros((len(COSTS), *members[0].shape))
    for i in range(INNER_PARTS):
        for number, classifier in enumerate(_regressions(x[part != i], labels[part != i], COSTS)):
            held_out[number, part == i] = _stacked(classifier, members).predict(members[:, part == i])
    best = int(np.argmin([METRICS["log_loss"].of(labels, logits) for logits in held_out]))
    *_, classifier = _regressions(x, labels, COSTS[: best + 1])
    return _stacked(classifier, members)


def class_bias(members: np.ndarray, labels: np.ndarray, metric: Metric = DEFAULT) -> Combiner:
    """weights_by_log_loss, and for each class a constant on its log-probability, chosen in turn for the metric."""
    weights = fit_weights(members, labels)
    logits = log_softmax(np.tensordot(weights, members, 1), axis=1)
    bias = np.zeros(members.shape[2])
    for k in np.argsort(np.bincount(labels, minlength=len(bias)), kind="stable"):  # the rarest first
        tried = [logits + bias + value * (np.arange(len(bias)) == k) for value in BIASES]
        scores = np.array([metric.worth(labels, each) for each in tried])
        best = np.flatnonzero(scores == scores.max())
        bias[k] = BIASES[best[np.abs(BIASES[best]).argmin()]]
    return Combiner("bias", weights, {"bias": bias})


# From the simplest on: of two that score alike, the first is taken.
METHODS: dict[str, Callable[[np.ndarray, np.ndarray, Metric], Combiner]] = {
    "mean": mean_of_probabilities,
    BEST: best_alone,
    "logits": mean_of_logits,
    "temperatures": mean_at_temperature,
    "weights": weights_by_log_loss,
    "greedy": greedy_selection,
    "metric_weights": weights_by_metric,
    "bias": class_bias,
    "stacking": stacking,
}
FITTED = ("weights", "greedy", "metric_weights", "bias", "stacking")  # what "average" is the mean of


def fit_weights(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(members,) weights >= 0 of (members, n, num_classes) log-probabilities whose weighted sum has the least log-loss.

    A member that adds nothing drops out, and the weights' sum sets the temperature.
    """
    rows = np.arange(len(labels))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.tensordot(weights, members, 1), axis=1)
        error = np.exp(log_p)
        error[rows, labels] -= 1  # (n, num_classes), the gradient by the summed logits
        return float(-log_p[rows, labels].mean()), np.tensordot(members, error, 2) / len(labels)

    start = np.full(len(members), 1 / len(members))
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(members)).x


def _regressions(x: np.ndarray, labels: np.ndarray, costs: Sequence[float]) -> Iterator[LogisticRegression]:
    """One classifier after the other of rising costs, each from where the one before ended: fewer steps do."""
    classifier = LogisticRegression(max_iter=REGRESSION_STEPS, warm_start=True)
    for cost in costs:
        yield classifier.set_params(C=cost).fit(x, labels)


def _stacked(classifier: LogisticRegression, members: np.ndarray) -> Combiner:
    size = np.abs(classifier.coef_).reshape(len(classifier.coef_), len(members), -1).mean((0, 2))
    arrays = {"coefficients": classifier.coef_, "intercepts": classifier.intercept_, "classes": classifier.classes_}
    return Combiner("stacking", size / size.sum(), arrays)


# Fitted without the rows they predict ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blend:
    """Members put together.

    oof: (n, num_classes) logits of each row, by the method that is taken, fitted and calibrated on the other folds.
    methods: the same for each method alone. method, combiner and temperature: what all rows take, for the test set.
    """

    method: str
    combiner: Combiner
    temperature: float
    oof: np.ndarray
    methods: dict[str, np.ndarray]
    uncalibrated: np.ndarray  # oof before its temperature
    picked: dict[int, str]  # where the method is chosen: the one of each fold, chosen on the others

    @property
    def taken(self) -> str:
        """What scores the blend: the method, or "chosen" where some fold chose another."""
        return "chosen" if set(self.picked.values()) - {self.method} else self.method


@on_one_thread
def blend_members(
    members: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    methods: Sequence[str] = (*METHODS, AVERAGE),
    metric: str = "macro_f1",
) -> Blend:
    """Nested cross-validation of the methods over the folds that the members were trained on.

    members: (members, n, num_classes) out-of-fold log-probabilities. Each fold is predicted by fits on all of the
    others, at a temperature fitted on predictions of the others by fits that saw neither. "average" is the mean of the
    probabilities of all FITTED, each calibrated like that; it gets no temperature of its own, which would make it too
    sure.

    Of several methods each fold takes the one that those predictions score best by the metric, of equals the first, and
    new rows the one that all folds' predictions score best. With "average" among them it is but that or "best", to put
    the members together or to abstain: what the metric can't tell beyond noise, log-loss does. With fewer than three
    folds there are no such predictions: no fold is calibrated, the average is of probabilities as they are, and the
    first method is taken, or the average.
    """
    parts, averaged = np.unique(folds).tolist(), AVERAGE in methods
    needed = tuple(dict.fromkeys((*methods, *(FITTED if averaged else ()))))
    fits = _fits(members, labels, folds, needed, metric)
    picked: dict[int, str] = {}
    nested, choose = len(parts) > 2, [name for name in (AVERAGE, BEST) if name in methods] if averaged else methods
    raw, scaled = ({name: np.zeros_like(members[0]) for name in names} for names in (needed, methods))
    for k in parts:
        fold, rows = _left_out(k, fits, members, labels, folds, averaged), folds == k
        for name in raw:
            raw[name][rows] = fold.logits[name]
        for name in methods:
            scaled[name][rows] = fold.logits[name] / fold.temperatures[name]
        if len(choose) > 1:
            picked[k] = _pick(choose, fold.labels, fold.others, metric)
    method = _pick(choose, labels, raw if nested else {}, metric)
    if method == AVERAGE:
        temperatures = {name: fit_temperature(raw[name], labels) if nested else 1.0 for name in FITTED}
        combiner = average_of({name: fits[name, ()] for name in FITTED}, temperatures)
    else:
        combiner = fits[method, ()]
    oof, uncalibrated = np.zeros_like(members[0]), np.zeros_like(members[0])
    for k in parts:
        name, rows = picked.get(k, method), folds == k
        oof[rows], uncalibrated[rows] = scaled[name][rows], raw[name][rows]
    temperature = 1.0 if method == AVERAGE else fit_temperature(raw[method], labels)
    return Blend(method, combiner, temperature, oof, scaled, uncalibrated, picked)


def _fits(
    members: np.ndarray, labels: np.ndarray, folds: np.ndarray, methods: Sequence[str], metric: str
) -> dict[tuple[str, tuple[int, ...]], Combiner]:
    """Each of METHODS among the methods fitted without no fold, each one and, of three or more, each two of them."""
    parts = np.unique(folds).tolist()
    left_out = [(), *((k,) for k in parts), *(combinations(parts, 2) if len(parts) > 2 else ())]
    tasks = [(name, out) for name in methods if name != AVERAGE for out in left_out]
    seen = {out: ~np.isin(folds, out) for out in left_out}
    arguments = ((name, members[:, seen[out]], labels[seen[out]], metric) for name, out in tasks)  # not all at once
    jobs = cpu_count() if members.size > PARALLEL_SIZE else 1
    return dict(zip(tasks, in_parallel(_fitted, arguments, jobs), strict=True))


@dataclass(frozen=True)
class _LeftOut:
    """A fold under fits without it, by method.

    logits: (rows, num_classes) of the fold. others: the same of all other rows, each by a fit that saw neither its own
    fold nor this one, and labels (other rows,): empty with two folds. temperatures: fitted on others.
    """

    logits: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    labels: np.ndarray
    temperatures: dict[str, float]


def _left_out(
    k: int,
    fits: Mapping[tuple[str, tuple[int, ...]], Combiner],
    members: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    averaged: bool,
) -> _LeftOut:
    """Fold k by each method that is fitted and, where `averaged`, by their mean, which makes do with their fits."""
    names = tuple(dict.fromkeys(name for name, _ in fits))
    others = [j for j in np.unique(folds).tolist() if j != k]
    known = np.concatenate([labels[folds == j] for j in others])

    def without_both(name: str) -> np.ndarray:
        pairs = ((j, fits[name, tuple(sorted((j, k)))]) for j in others)
        return np.concatenate([fit.predict(members[:, folds == j]) for j, fit in pairs])

    logits = {name: fits[name, (k,)].predict(members[:, folds == k]) for name in names}
    seen = {name: without_both(name) for name in names} if len(others) > 1 else {}
    temperatures = {name: fit_temperature(seen[name], known) if seen else 1.0 for name in names}
    if averaged:
        each = [temperatures[name] for name in FITTED]
        for part in (logits, seen) if seen else (logits,):
            part[AVERAGE] = mean_at([part[name] for name in FITTED], each)
        temperatures[AVERAGE] = 1.0
    return _LeftOut(logits, seen, known, temperatures)


@on_one_thread
def _fitted(name: str, members: np.ndarray, labels: np.ndarray, metric: str) -> Combiner:
    return METHODS[name](members, labels, METRICS[metric])


def _pick(names: Sequence[str], labels: np.ndarray, logits: Mapping[str, np.ndarray], metric: str) -> str:
    """The method to take of these, by their (n, num_classes) logits, see blend_members; without any the first."""
    if len(names) == 1 or not logits:
        return names[0]
    if AVERAGE in names:
        _, low, high = paired_gain(labels, logits[AVERAGE], logits[BEST], metric)
        metric = "log_loss" if low <= 0 <= high else metric
    worth = {name: METRICS[metric].worth_calibrated(labels, logits[name]) for name in names}
    return max(worth, key=lambda name: worth[name])  # the first of equals


@on_one_thread
def method_table(
    made: Blend, labels: np.ndarray, folds: np.ndarray, best_member: np.ndarray, metric: str = "macro_f1"
) -> pd.DataFrame:
    """All metrics, the first one's spread over the folds, and calibration_error of each method; the last is taken.

    Where folds chose another method than all rows do, the last is "chosen": each fold by the choice of the others.
    gain: what the metric is better than that of the best member, (n, num_classes) logits, with its 95 % interval;
    `noise` where that holds 0.
    """
    each = {name: logits for name, logits in made.methods.items() if name != made.taken} | {made.taken: made.oof}
    rows = {name: row_of(labels, folds, logits, best_member, metric) for name, logits in each.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def row_of(
    labels: np.ndarray, folds: np.ndarray, logits: np.ndarray, against: np.ndarray, metric: str = "macro_f1"
) -> dict[str, float | bool]:
    """One line of method_table: logits against others."""
    spread = np.std([METRICS[metric].of(labels[folds == k], logits[folds == k]) for k in np.unique(folds)])
    gain, low, high = paired_gain(labels, logits, against, metric)
    return score(labels, logits, metric) | {
        "spread": float(spread), "calibration_error": calibration_error(labels, logits),
        "gain": gain, "gain_low": low, "gain_high": high, "noise": bool(low <= 0 <= high),
    }  # fmt: skip


@on_one_thread
def added_by(
    members: dict[str, np.ndarray], labels: np.ndarray, folds: np.ndarray, metric: str = "macro_f1"
) -> pd.DataFrame:
    """What each member adds: metric and log-loss of the blend without it, and the gain by it with its interval.

    The last line is for all that see the photo, against the texts alone. All by weights_by_log_loss.
    """
    whole = _nested_weights(list(members.values()), labels, folds)
    texts = [name for name in members if name.endswith("/text")]
    without = {name: [other for other in members if other != name] for name in members} if len(members) > 1 else {}
    without |= {"all but texts": texts} if 0 < len(texts) < len(members) else {}
    rows = {}
    for name, others in without.items():
        less = _nested_weights([members[other] for other in others], labels, folds)
        row, alone = row_of(labels, folds, whole, less, metric), score(labels, less)
        rows[name] = {f"{shown}_without": alone[shown] for shown in metric_first(metric, "log_loss")}
        rows[name] |= {key: row[key] for key in ("gain", "gain_low", "gain_high", "noise")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("member")


def _nested_weights(members: list[np.ndarray], labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    stacked = np.stack(members)
    oof = np.zeros_like(stacked[0])
    for k in np.unique(folds):
        weights = fit_weights(stacked[:, folds != k], labels[folds != k])
        oof[folds == k] = np.tensordot(weights, stacked[:, folds == k], 1)
    return oof
