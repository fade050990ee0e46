"""Runs side by side: which is best, and what one gains over another on the products that both predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from goods.data.mended import touched_ids
from goods.entries import Entry, Predictions, read_entry
from goods.errors import GoodsError, listing
from goods.files import resolve
from goods.metric_names import SHOWN_AS, metric_first
from goods.metrics import METRICS, paired_gain, resampled
from goods.params import RUNTIME_FIELDS, Params
from goods.run import runs_in
from goods.words import digits, duration, gib, signed, size

LEAST_ALIKE = 0.9  # the share of the products that both predict, and of their labels, for two runs to be comparable
PLACES = RUNTIME_FIELDS - {"refit", "label_fixes"}  # parameters that say where and how fast, not what


class Gain(NamedTuple):
    """What one run's metric is better than another's, positive where it is, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


# Two runs ------------------------------------------------------------------------------------------------------------


class Common(NamedTuple):
    """The products that two runs both predict, with the same label, and what was left out, as a sentence or ""."""

    ours: Predictions
    theirs: Predictions
    left_out: str


def common(ours: Entry, theirs: Entry) -> Common | str:
    """The products on which two runs can be compared, or a sentence that says why they can't be.

    Both must have learned from the same folds of the same products. Single products may be in one of them alone, and
    single labels may differ, as after they were mended: those are left out.
    """
    for entry in (ours, theirs):
        if entry.oof is None:
            return entry.unscored
    one, other = ours.oof, theirs.oof
    if ours.classes != theirs.classes or one.logits.shape[1] != other.logits.shape[1]:
        return f"{ours.name} and {theirs.name} have other classes"
    place = other.ids.get_indexer(one.ids)
    rows = np.flatnonzero(place >= 0)
    if len(rows) < LEAST_ALIKE * min(len(one.ids), len(other.ids)):
        return f"{ours.name} and {theirs.name} are of other products: they share {len(rows):,}"
    one, other = one.of(rows), other.of(place[rows])
    if differ := int((one.folds != other.folds).sum()):
        return (f"{ours.name} and {theirs.name} have other folds ({differ:,} of {len(rows):,} products lie in another "
                "one); take the same seed, n_folds and tables")  # fmt: skip
    alike = one.labels == other.labels
    if alike.mean() < LEAST_ALIKE:
        return f"{ours.name} and {theirs.name} have other labels ({int((~alike).sum()):,} of {len(rows):,} differ)"
    return Common(one.of(alike), other.of(alike), _left_out(ours, theirs, len(rows), int((~alike).sum())))


def _left_out(ours: Entry, theirs: Entry, shared: int, relabelled: int) -> str:
    alone = [f"{len(entry.oof.ids) - shared:,} that {entry.name} alone predicts" for entry in (ours, theirs)
             if len(entry.oof.ids) > shared]  # fmt: skip
    alone += [f"{relabelled:,} whose label differs"] if relabelled else []
    return f"left out: {listing(alone)}" if alone else ""


@dataclass(frozen=True)
class Pair:
    """One run against another on the products that both predict.

    scores: (ours, theirs) by metric, and gains. classes: one row per class (index: its name), rows, ours, theirs (F1),
    gain with gain_low and gain_high. counts: how many products only ours, only theirs, both, neither gets right, and of
    the last how many with different predictions. differ: the products that only one of them gets right, the surest
    differences first: id, label, ours, theirs (class indices), ours_sure, theirs_sure (probabilities of their own
    prediction), right ("ours" or "theirs"). touched: how many of the labels a person has changed, or whose product was
    dropped, in what either has learned; untouched: the gains on the others, empty where none was touched.
    """

    ours: Entry
    theirs: Entry
    scores: dict[str, tuple[float, float]]
    gains: dict[str, Gain]
    classes: pd.DataFrame
    counts: dict[str, int]
    differ: pd.DataFrame
    left_out: str
    touched: int
    untouched: dict[str, Gain]

    @property
    def products(self) -> int:
        """How many products both predict."""
        return sum(self.counts[name] for name in ("both", "neither", "only ours", "only theirs"))

    @property
    def counted(self) -> str:
        """How many products each gets right, in a sentence."""
        counts, ours, theirs = self.counts, self.ours.name, self.theirs.name
        return (f"Of {self.products:,} products both get {counts['both']:,} right, {ours} alone "
                f"{counts['only ours']:,}, {theirs} alone {counts['only theirs']:,}, neither {counts['neither']:,} "
                f"({counts['neither, differently']:,} of them with different classes).")  # fmt: skip


def compare(ours: Entry, theirs: Entry) -> Pair | str:
    """One run against another; a sentence where they can't be compared."""
    both = common(ours, theirs)
    if isinstance(both, str):
        return both
    labels, one, other = both.ours.labels, both.ours.logits, both.theirs.logits
    scores = {name: (metric.of(labels, one), metric.of(labels, other)) for name, metric in METRICS.items()}
    gains = {name: Gain(*paired_gain(labels, one, other, name)) for name in METRICS}
    said = [logits.argmax(1) for logits in (one, other)]
    right = [each == labels for each in said]
    counts = {
        "only ours": int((right[0] & ~right[1]).sum()), "only theirs": int((right[1] & ~right[0]).sum()),
        "both": int((right[0] & right[1]).sum()), "neither": int((~right[0] & ~right[1]).sum()),
        "neither, differently": int((~right[0] & ~right[1] & (said[0] != said[1])).sum()),
    }  # fmt: skip
    classes = list(ours.classes) or [str(k) for k in range(one.shape[1])]
    table = by_class(labels, *said, classes)
    touched = both.ours.ids.isin(list(_touched(ours) | _touched(theirs)))
    untouched = {name: Gain(*paired_gain(labels[~touched], one[~touched], other[~touched], name))
                 for name in METRICS} if touched.any() and not touched.all() else {}  # fmt: skip
    return Pair(
        ours, theirs, scores, gains, table, counts, differing(both), both.left_out, int(touched.sum()), untouched
    )


def _touched(entry: Entry) -> set[str]:
    """The products whose label a run has learned otherwise; none where its files don't tell any more."""
    try:
        return touched_ids(entry.run)
    except GoodsError:
        return set()


def by_class(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """rows, F1 of ours and theirs, gain and its 95 % interval of each class that occurs; those that gain most first."""
    whole, drawn = [], []
    for (right, given, said), each in zip(resampled(labels, ours, theirs), (ours, theirs), strict=True):
        drawn.append(2 * right / np.maximum(given + said, 1))
        hits, rows, predicted = (np.bincount(of, minlength=given.shape[1]) for of in (
            labels[each == labels], labels, each))  # fmt: skip
        whole.append(2 * hits / np.maximum(rows + predicted, 1))
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5], axis=0)
    columns = {"rows": rows, "ours": whole[0], "theirs": whole[1], "gain": whole[0] - whole[1]}
    table = pd.DataFrame(columns | {"gain_low": low, "gain_high": high}, index=pd.Index(classes[: len(rows)]))
    return table[table["rows"] > 0].sort_values("gain", ascending=False, kind="stable")


def differing(both: Common) -> pd.DataFrame:
    """The products that only one of the two gets right, by how much surer it was of the truth; see Pair."""
    labels, columns = both.ours.labels, {"id": both.ours.ids, "label": both.ours.labels}
    truth = []
    for name, of in (("ours", both.ours), ("theirs", both.theirs)):
        probabilities = np.exp(of.logits - of.logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        columns |= {name: probabilities.argmax(1), f"{name}_sure": probabilities.max(1)}
        truth.append(probabilities[np.arange(len(labels)), labels])
    table = pd.DataFrame(columns | {"by": truth[0] - truth[1]})
    hits = [table[name] == table["label"] for name in ("ours", "theirs")]
    table = table.assign(right=np.where(hits[0], "ours", "theirs"))[hits[0] != hits[1]]
    return table.sort_values("by", key=lambda by: -by.abs(), kind="stable").drop(columns="by").reset_index(drop=True)


# All of them ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """The runs of a folder, the best first, under one metric.

    best: the best of the runs that can be compared with most others and have all their folds; None without any.
    behind: {run: what the best gains over it}, and `apart` {run: why it can't be compared with the best}.
    """

    folder: Path
    metric: str
    entries: list[Entry]
    best: Entry | None
    behind: dict[str, Gain]
    apart: dict[str, str]

    @property
    def shown_as(self) -> str:
        """The metric's name for people."""
        return SHOWN_AS[self.metric]

    def entry(self, name: str) -> Entry:
        """The run of that name; raises GoodsError where there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        there = listing([entry.name for entry in self.entries]) or "none"
        raise GoodsError(f"there is no run '{name}' in {self.folder}; there are: {there}")

    def comparable(self) -> list[Entry]:
        """The best and those that it was compared with, in order."""
        return [entry for entry in self.entries if entry is self.best or entry.name in self.behind]


def read_comparison(outputs: str | Path, metric: str | None = None) -> Comparison:
    """All runs of an outputs folder; the metric is by default the one that most of them are chosen by.

    Raises GoodsError where the folder holds no run, or for a metric that there isn't.
    """
    folder = resolve(outputs)
    entries = [read_entry(run) for run in runs_in(folder)]
    if not entries:
        raise GoodsError(f"there is no run in {folder}; run pipeline.py first, or name another folder")
    metric = metric or max(METRICS, key=[entry.parameters["metric"] for entry in entries].count)
    if metric not in METRICS:
        raise GoodsError(f"there is no metric '{metric}'; there are: {listing(METRICS)}")
    sign = METRICS[metric].sign
    ranked = sorted((e for e in entries if e.oof), key=lambda e: (not e.complete, -sign * e.score(metric).value))
    best = _best_of(ranked)
    behind, apart = {}, {entry.name: entry.unscored for entry in entries if not entry.oof}
    for entry in ranked:
        both = common(best, entry)
        if isinstance(both, str):
            apart[entry.name] = both
        elif entry is not best:
            gain = paired_gain(both.ours.labels, both.ours.logits, both.theirs.logits, metric)
            behind[entry.name] = Gain(*gain)
    ranked.sort(key=lambda entry: (entry.name in apart, not entry.complete))
    rest = [entry for entry in entries if not entry.oof]
    return Comparison(folder, metric, ranked + rest, best, behind, apart)


def _best_of(ranked: Sequence[Entry]) -> Entry | None:
    """The first of the runs that can be compared with one another, where they fall into several groups the largest."""
    groups: list[list[Entry]] = []
    for entry in ranked:
        group = next((group for group in groups if not isinstance(common(group[0], entry), str)), None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    return max(groups, key=len)[0] if groups else None  # of equals the one with the best run


def differing_parameters(entries: Sequence[Entry]) -> list[str]:
    """The parameters that say what was made and aren't the same in all of these runs, in their order."""
    names = [name for name in Params.model_fields if name not in PLACES and name != "run"]
    return [name for name in names if len({repr(entry.parameters.get(name)) for entry in entries}) > 1]


# In words, and as tables ----------------------------------------------------------------------------------------------


def finding(all_runs: Comparison) -> str:
    """Which run is best, and which it doesn't beat beyond noise."""
    best, shown = all_runs.best, all_runs.shown_as
    if best is None:
        runs = len(all_runs.entries)
        return f"{runs} run{'s' * (runs > 1)}, none with an honest score yet"
    score = best.score(all_runs.metric)
    of = f" of the {1 + len(all_runs.behind)} that can be compared" if all_runs.apart else ""
    said = f"{best.name} is best{of}: {shown} {digits(score.value)}"
    if not all_runs.behind:
        return f"{best.name}: {shown} {digits(score.value)}, and no other run to compare it with"
    level = [name for name, gain in all_runs.behind.items() if gain.noise]
    if not level:
        return f"{said}; better than {listing(list(all_runs.behind))} beyond noise"
    more = f" and {len(level) - 3} more" if len(level) > 3 else ""
    return f"{said}; not better than {' and '.join(level[:3])}{more} beyond noise"


def pair_finding(pair: Pair, metric: str) -> str:
    """Which of two runs is better, with the interval."""
    gain, shown = pair.gains[metric], SHOWN_AS[metric]
    ahead, other = (pair.ours, pair.theirs) if gain.value >= 0 else (pair.theirs, pair.ours)
    if gain.value < 0:
        gain = turned(gain)
    how = "not better than" if gain.noise else "better than"
    beyond = " beyond noise" if gain.noise else ""
    return f"{ahead.name} is {how} {other.name}{beyond}: {shown} {with_interval(gain)}"


def untouched_finding(pair: Pair, metric: str) -> str:
    """What the first run gains on the labels that nobody has touched; "" where none was."""
    if not pair.untouched:
        return ""
    gain = pair.untouched[metric]
    noise = ", which is noise" if gain.noise else ""
    return (f"On the {pair.products - pair.touched:,} labels that nobody touched {pair.ours.name} gains "
            f"{with_interval(gain)} of {SHOWN_AS[metric]} over {pair.theirs.name}{noise}; the {pair.touched:,} that "
            "were changed, or whose products were dropped, count above by the table's label")  # fmt: skip


def turned(gain: Gain) -> Gain:
    """The gain of the other run over this one."""
    return Gain(-gain.value, -gain.high, -gain.low)


def with_interval(gain: Gain) -> str:
    """+.008 (-.003 to +.019)"""
    return f"{signed(gain.value)} ({signed(gain.low)} to {signed(gain.high)})"


def two_runs(all_runs: Comparison, named: Sequence[str] = ()) -> tuple[str, str]:
    """The two runs that are named, or the best and the next; raises GoodsError where that makes no two."""
    names = list(named) or [entry.name for entry in all_runs.comparable()[:2]]
    if len(names) != 2:
        raise GoodsError(f"two runs are compared, not {len(names)} ({listing(names) or 'none'}); name two that have "
                         "the same folds and tables")  # fmt: skip
    return names[0], names[1]


def pair_table(pair: Pair, metric: str = "macro_f1") -> pd.DataFrame:
    """All metrics of two runs, the given one first: both scores, the gain, its interval, whether that leaves 0 out."""
    rows, ours, theirs = {}, pair.ours.name, pair.theirs.name
    for name in metric_first(metric, *METRICS):
        shown = SHOWN_AS[name] + (" (lower is better)" if METRICS[name].sign < 0 else "")
        gain, scores = pair.gains[name], dict(zip((ours, theirs), pair.scores[name], strict=True))
        told = {f"gain of {ours}": gain.value, "from": gain.low, "to": gain.high, "beyond noise": not gain.noise}
        rows[shown] = scores | told
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def score_table(all_runs: Comparison) -> pd.DataFrame:
    """value, low and high of the runs that can be compared, the best first."""
    scores = {entry.name: entry.score(all_runs.metric) for entry in all_runs.comparable()}
    return pd.DataFrame.from_dict(scores, orient="index", columns=["value", "low", "high"])


def summary(all_runs: Comparison) -> pd.DataFrame:
    """The table of all runs for a console or a notebook, the best first."""
    rows = []
    for entry in all_runs.entries:
        score = entry.score(all_runs.metric) if entry.oof else None
        row = {"run": entry.name, all_runs.shown_as: digits(score.value) if score else "",
               "95 % interval": f"{digits(score.low)} to {digits(score.high)}" if score else ""}  # fmt: skip
        gain = all_runs.behind.get(entry.name)
        row["against the best"] = with_interval(turned(gain)) if gain else "the best" if entry is all_runs.best else ""
        row |= {"training": duration(entry.seconds), "memory": gib(entry.peak_gpu or entry.peak_ram)}
        rows.append(row | {"size": size(entry.size), "status": entry.status})
    return pd.DataFrame(rows).set_index("run")
