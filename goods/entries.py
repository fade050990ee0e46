"""A run as its files tell it: what it scores and took, whether it is finished. Reads, changes nothing.

Whatever lies in an outputs folder is read as far as it can be: unfinished, damaged and foreign runs, too.
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
from goods.errors import listing
from goods.files import held_since, read_frame, read_json_if_whole
from goods.metrics import interval
from goods.params import Params
from goods.predictions import frame_logits
from goods.run import Run


class Score(NamedTuple):
    """A metric out of fold, and its 95 % interval."""

    value: float
    low: float
    high: float


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

    @property
    def unscored(self) -> str:
        """Why it has no honest score, as a sentence."""
        return f"{self.name} has no honest score: {self.trouble}"

    def score(self, metric: str) -> Score:
        """Its score out of fold, computed once."""
        if metric not in self.scores:
            self.scores[metric] = Score(*interval(self.oof.labels, self.oof.logits, metric))
        return self.scores[metric]


# One run -------------------------------------------------------------------------------------------------------------


def read_entry(run: Run) -> Entry:
    """What a run's files tell, whatever of them is there and whole."""
    record, metrics = read_json_if_whole(run.record_file), read_json_if_whole(run.metrics)
    parameters, damaged = _parameters(record.get("parameters"))
    classes = tuple(map(str, _list(read_json_if_whole(run.labels).get("classes"))))
    oof, trouble = _predictions(run, classes)
    if damaged:
        oof, trouble = None, f"{run.record_file.name} is damaged, so nobody knows what made it"
    folds = [fold for fold in (*run.folds(), run.refit) if fold.scores()]
    took = [each for fold in folds if isinstance(each := fold.scores().get("resources"), dict)]
    steps = [_number(read_json_if_whole(path).get("seconds")) for path in run.steps_done()]
    status, complete = _status(run, parameters, metrics, oof)
    return Entry(
        run=run, parameters=parameters, status=status, when=_last_change(run), complete=complete,
        oof=oof, trouble=trouble, classes=classes,
        verdict=verdict(metrics, parameters["metric"]),
        seconds=_total(took, "seconds"), step_seconds=sum(filter(None, steps)) or None,
        peak_ram=_most(took, "peak_ram_gib"), peak_gpu=_most(took, "peak_gib"), size=size_of(run.folder),
    )  # fmt: skip


def _parameters(known: Any) -> tuple[dict[str, Any], bool]:
    """All parameters, those that it doesn't know at their defaults, and whether what it says can't be used."""
    try:
        own = {name: value for name, value in known.items() if name in Params.model_fields}
        return Params(**own).model_dump(mode="json"), False
    except (AttributeError, ValueError):  # no object at all; values of another type
        return Params().model_dump(mode="json"), True


def _predictions(run: Run, classes: Sequence[str]) -> tuple[Predictions | None, str]:
    """The run's out-of-fold predictions, or why there are none."""
    if not run.oof.is_file():
        return None, "its pipeline has not come to its end"
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
    n_folds, lost = parameters["n_folds"], _list(metrics.get("missing_folds"))
    scored = sorted(set(oof.folds.tolist())) if oof else run.trained()
    complete = bool(oof) and not lost and len(scored) >= n_folds
    folds = f"{len(scored)} of {n_folds} folds" + (f" ({listing(scored)})" if 0 < len(scored) < n_folds else "")
    if since := held_since(run.pipeline_lock):
        return f"under way since {since}, {folds}", complete
    if run.exported:
        return f"exported, {folds}", complete
    if oof is None or not run.put_together:
        return f"unfinished, {folds}", complete
    return f"finished, {folds}" if run.submission.is_file() else f"no submission yet, {folds}", complete


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


def when_shown(when: float | None) -> str:
    """A moment as people read it, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) if when else ""
