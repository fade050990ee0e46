"""Runs side by side: what each scores and took, and what one gains over another. Reads their files, changes none.

Whatever lies in an outputs folder is shown as far as it can be read: unfinished, damaged and foreign runs, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from goods.ensemble.verdict import verdict
from goods.errors import GoodsError, listing
from goods.files import is_alive, read_frame, read_json_if_whole, resolve
from goods.metrics import METRICS, interval, paired_gain, resampled
from goods.params import RUNTIME_FIELDS, Params
from goods.predictions import frame_logits
from goods.run import Run, runs_in

LEAST_ALIKE = 0.9  # the share of the products that both predict, and of their labels, for two runs to be comparable
PLACES = RUNTIME_FIELDS - {"refit"}  # parameters that say where and how fast, not what


class Score(NamedTuple):
    """A metric out of fold, and its 95 % interval."""

    value: float
    low: float
    high: float


class Gain(NamedTuple):
    """What one run's metric is better than another's, positive where it is, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Predictions:
    """A run's out-of-fold predictions: ids, class indices (n,), folds (n,), logits (n, num_classes)."""

    ids: pd.Index
    labels: np.ndarray
    folds: np.ndarray
    logits: np.ndarray

    def of(self, rows: np.ndarray) -> Predictions:
        """Some rows of it."""
        return Predictions(self.ids[rows], self.labels[rows], self.folds[rows], self.logits[rows])


@dataclass(frozen=True)
class Entry:
    """A run as its files tell it; `oof` is None where it has no honest score, and `trouble` says why.

    seconds: of training, all folds together; step_seconds: of all its notebooks. peak_ram, peak_gpu: GiB, of the
    process that trained a fold. size: bytes on disk.
    """

    run: Run
    parameters: Mapping[str, Any]
    status: str
    when: float | None
    complete: bool
    oof: Predictions | None
    trouble: str
    classes: tuple[str, ...]
    verdict: str
    seconds: float | None
    step_seconds: float | None
    peak_ram: float | None
    peak_gpu: float | None
    size: int
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    def score(self, metric: str) -> Score:
        """Its score out of fold, computed once."""
        if metric not in self.scores:
            self.scores[metric] = Score(*interval(self.oof.labels, self.oof.logits, metric))
        return self.scores[metric]


# One run -------------------------------------------------------------------------------------------------------------


def read_entry(run: Run) -> Entry:
    """What a run's files tell, whatever of them is there and whole."""
    record, metrics = read_json_if_whole(run.record_file), read_json_if_whole(run.metrics)
    known = record.get("parameters")
    parameters = Params().model_dump(mode="json") | (known if isinstance(known, dict) else {})
    classes = tuple(map(str, _list(read_json_if_whole(run.labels).get("classes"))))
    oof, trouble = _predictions(run, classes)
    if not isinstance(known, dict):
        trouble = f"{run.record_file.name} is damaged, so nobody knows what made it"
    folds = [fold for fold in (*run.folds(), run.refit) if fold.scores()]
    took = [each for fold in folds if isinstance(each := fold.scores().get("resources"), dict)]
    steps = [_number(read_json_if_whole(path).get("seconds")) for path in run.notebooks.glob("*.done.json")]
    status, complete = _status(run, parameters, metrics, oof)
    return Entry(
        run=run, parameters=parameters, status=status, when=_last_change(run), complete=complete,
        oof=oof if isinstance(known, dict) else None, trouble=trouble, classes=classes,
        verdict=verdict(metrics, str(parameters["metric"])),
        seconds=_total(took, "seconds"), step_seconds=sum(filter(None, steps)) or None,
        peak_ram=_most(took, "peak_ram_gib"), peak_gpu=_most(took, "peak_gib"), size=size_of(run.folder),
    )  # fmt: skip


def _predictions(run: Run, classes: Sequence[str]) -> tuple[Predictions | None, str]:
    """The run's out-of-fold predictions, or why there are none."""
    if not run.oof.is_file():
        return None, "no ensemble yet: its pipeline has not come to its end"
    try:
        frame = read_frame(run.oof, ["id", "label", "fold"])
        logits, labels = frame_logits(frame), frame["label"].to_numpy(dtype=np.int64)
        ids, folds = pd.Index(frame["id"].astype(str)), frame["fold"].to_numpy(dtype=np.int64)
        whole = len(frame) and ids.is_unique and np.isfinite(logits).all() and labels.min() >= 0
        if whole and labels.max() < logits.shape[1] and len(classes) in (0, logits.shape[1]):
            return Predictions(ids, labels, folds, logits), ""
    except Exception:  # a damaged table raises anything
        pass
    return None, "its out-of-fold predictions are damaged; run its pipeline again with --steps ensemble --force"


def _status(
    run: Run, parameters: Mapping[str, Any], metrics: Mapping[str, Any], oof: Predictions | None
) -> tuple[str, bool]:
    """Finished or not and which folds, in words; whether all of its folds are in its score."""
    n_folds = parameters.get("n_folds") if isinstance(parameters.get("n_folds"), int) else 0
    lost = _list(metrics.get("missing_folds"))
    scored = sorted(set(oof.folds.tolist())) if oof else run.trained()
    complete = bool(oof) and not lost and len(scored) >= n_folds
    folds = f"{len(scored)} of {n_folds} folds" + (f" ({listing(scored)})" if 0 < len(scored) < n_folds else "")
    if since := _under_way(run):
        return f"under way since {since}, {folds}", complete
    if run.exported:
        return f"exported, {folds}", complete
    if oof is None or not run.put_together:
        return f"unfinished, {folds}", complete
    return f"finished, {folds}" if run.submission.is_file() else f"no submission yet, {folds}", complete


def _under_way(run: Run) -> str:
    """Since when a process of this machine, or any of another one, is at work on the run; "" where none is."""
    import socket

    held = read_json_if_whole(run.locks / "pipeline.json")
    here = held.get("host") == socket.gethostname()
    if not held or (here and not (isinstance(held.get("process"), int) and is_alive(held["process"]))):
        return ""
    return str(held.get("since", "?"))


def _last_change(run: Run) -> float | None:
    """When its newest result was written, in seconds since 1970."""
    files = [run.submission, run.metrics, run.record_file, *(fold.metrics for fold in run.folds())]
    times = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder; links are not followed."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _most(took: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return max((value for each in took if (value := _number(each.get(name))) is not None), default=None)


def _total(took: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for each in took if (value := _number(each.get(name))) is not None]
    return sum(values) if values else None


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
            return f"{entry.name} has no honest score: {entry.trouble}"
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

    gains: by metric. classes: one row per class (index: its name), rows, ours, theirs (F1), gain with gain_low and
    gain_high. counts: how many products only ours, only theirs, both, neither gets right, and of the last how many
    with different predictions. differ: the products on which one of them is right, the surest differences first: id,
    label, ours, theirs (class indices), ours_sure, theirs_sure (probabilities of their own prediction), right.
    """

    ours: Entry
    theirs: Entry
    gains: dict[str, Gain]
    classes: pd.DataFrame
    counts: dict[str, int]
    differ: pd.DataFrame
    left_out: str


def compare(ours: Entry, theirs: Entry) -> Pair | str:
    """One run against another; a sentence where they can't be compared."""
    both = common(ours, theirs)
    if isinstance(both, str):
        return both
    labels, one, other = both.ours.labels, both.ours.logits, both.theirs.logits
    gains = {metric: Gain(*paired_gain(labels, one, other, metric)) for metric in METRICS}
    said = [logits.argmax(1) for logits in (one, other)]
    right = [each == labels for each in said]
    counts = {
        "only ours": int((right[0] & ~right[1]).sum()), "only theirs": int((right[1] & ~right[0]).sum()),
        "both": int((right[0] & right[1]).sum()), "neither": int((~right[0] & ~right[1]).sum()),
        "neither, differently": int((~right[0] & ~right[1] & (said[0] != said[1])).sum()),
    }  # fmt: skip
    classes = list(ours.classes) or [str(k) for k in range(one.shape[1])]
    return Pair(ours, theirs, gains, by_class(labels, *said, classes), counts, differing(both), both.left_out)


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
    named = [entry.parameters["metric"] for entry in entries if entry.parameters["metric"] in METRICS]
    metric = metric or max(METRICS, key=named.count)
    if metric not in METRICS:
        raise GoodsError(f"there is no metric '{metric}'; there are: {listing(METRICS)}")
    sign = METRICS[metric].sign
    ranked = sorted((e for e in entries if e.oof), key=lambda e: (not e.complete, -sign * e.score(metric).value))
    best = _best_of(ranked)
    behind, apart = {}, {entry.name: entry.trouble for entry in entries if not entry.oof}
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


def when_shown(when: float | None) -> str:
    """A moment as people read it, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if when else ""
