"""Which predictions may be accepted unseen by a person: those as sure as what was right often enough out of fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta

from goods.errors import GoodsError
from goods.files import read_frame
from goods.predictions import frame_logits
from goods.run import Run
from goods.words import digits, percent

CONFIDENCE = 0.95  # that the precision is at least its lower bound
NEVER = 2.0  # a threshold that no probability reaches


@dataclass(frozen=True)
class Acceptance:
    """What is accepted at a wanted precision, and what came of it out of fold.

    threshold: the least probability that is accepted, from all rows; NEVER where nothing is. The rest is honest, each
    fold under the threshold of the other folds: the share of `rows` accepted, and how many of them are right
    (`precision`, nan where none is accepted).
    """

    wanted: float
    threshold: float
    share: float
    precision: float
    rows: int

    def sentence(self) -> str:
        """What it means, in a sentence."""
        if self.threshold == NEVER:
            return (f"nothing is accepted: of {self.rows:,} out-of-fold products no threshold leaves enough to tell "
                    f"that {percent(self.wanted)} are right")  # fmt: skip
        right = "" if np.isnan(self.precision) else f", and {percent(self.precision)} of them were right"
        accepted = f"accepted from a probability of {digits(self.threshold)} on"
        return (f"{accepted}, so that {percent(self.wanted)} are right: out of fold, each fold under the other folds' "
                f"threshold, {percent(self.share)} of {self.rows:,} products were{right}")  # fmt: skip


def precision_bound(right: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """The lower bound of a precision of `right` among `accepted` (Clopper and Pearson, 1934; one-sided, 95 %)."""
    return np.where(right > 0, beta.ppf(1 - CONFIDENCE, np.maximum(right, 1), accepted - right + 1), 0.0)


def acceptance_curve(labels: np.ndarray, log_probabilities: np.ndarray) -> pd.DataFrame:
    """threshold, share accepted, precision and its lower bound `low`, the surest rows first; rows alike go together.

    labels: (n,); log_probabilities: (n, num_classes), out of fold and calibrated.
    """
    sure = np.exp(log_probabilities.max(1))
    order = np.argsort(-sure, kind="stable")
    accepted = np.arange(1, len(sure) + 1)
    right = np.cumsum(log_probabilities.argmax(1)[order] == np.asarray(labels)[order])
    columns = {"threshold": sure[order], "share": accepted / max(1, len(sure)), "precision": right / accepted}
    table = pd.DataFrame(columns | {"low": precision_bound(right, accepted)})
    return table.groupby("threshold", sort=False).tail(1).reset_index(drop=True)


def fit_threshold(curve: pd.DataFrame, wanted: float) -> float:
    """The least threshold whose precision is, by its lower bound, at least the wanted one; NEVER where none is."""
    enough = curve["threshold"][curve["low"] >= wanted]
    return float(enough.iloc[-1]) if len(enough) else NEVER


def fit_acceptance(oof: pd.DataFrame, wanted: float) -> Acceptance:
    """The threshold of a run's out-of-fold predictions (label, fold, calibrated log-probabilities), honestly scored.

    Raises GoodsError for a wanted precision that is none.
    """
    if not 0 < wanted < 1:
        raise GoodsError(f"precision {wanted} must lie between 0 and 1, such as 0.95")
    labels, fold, logits = oof["label"].to_numpy(), oof["fold"].to_numpy(), frame_logits(oof)
    sure, right = np.exp(logits.max(1)), logits.argmax(1) == labels
    accepted = np.zeros(len(labels), dtype=bool)
    for k in np.unique(fold):
        others = acceptance_curve(labels[fold != k], logits[fold != k])
        accepted[fold == k] = sure[fold == k] >= fit_threshold(others, wanted)
    precision = float(right[accepted].mean()) if accepted.any() else float("nan")
    # With one fold there is nothing that could tell whether a threshold holds.
    threshold = fit_threshold(acceptance_curve(labels, logits), wanted) if len(np.unique(fold)) > 1 else NEVER
    return Acceptance(wanted, threshold, float(accepted.mean()), precision, len(labels))


def acceptance_of(run: Run, wanted: float) -> Acceptance:
    """fit_acceptance of a run's own out-of-fold predictions; raises DamagedFileError where they aren't there."""
    again = "copy it from the run, or put the run together again; what may be accepted is learned from it"
    return fit_acceptance(read_frame(run.oof, ["id", "label", "fold"], again), wanted)


def acceptance_table(oof: pd.DataFrame, wanted: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)) -> pd.DataFrame:
    """threshold, share and precision (out of fold, under the other folds' thresholds) of several wanted precisions.

    The threshold is nan where nothing is accepted.
    """
    rows = {each: fit_acceptance(oof, each) for each in wanted}
    columns = ("threshold", "share", "precision")
    table = pd.DataFrame({name: [getattr(row, name) for row in rows.values()] for name in columns}, index=list(rows))
    return table.replace({"threshold": {NEVER: np.nan}}).rename_axis("wanted")
