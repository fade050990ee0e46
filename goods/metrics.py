"""Scores and their noise, calibration, and the tables that predictions are kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from goods_data import Goods, titles_of
from goods_params import OUTPUTS, atomic_path

RESAMPLES = 400  # of the rows, for the interval of a gain


# ---------------------------------------------------------------------------------------------------------------------
# 10 Metrics
# ---------------------------------------------------------------------------------------------------------------------


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """accuracy, macro_f1 (over the classes that occur) and log_loss of (n, num_classes) logits for (n,) labels."""
    labels, predictions = np.asarray(labels), logits.argmax(1)
    return {
        "accuracy": float((labels == predictions).mean()),
        "macro_f1": macro_f1(labels, predictions),
        "log_loss": float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()),
    }


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur among (n,) labels or predictions: scikit-learn's, thirty times as fast."""
    of_class = np.bincount(labels[labels == predictions], minlength=max(labels.max(), predictions.max()) + 1)
    occurs = np.bincount(labels, minlength=len(of_class)) + np.bincount(predictions, minlength=len(of_class))
    return float(np.mean(2 * of_class[occurs > 0] / occurs[occurs > 0]))


def calibration_error(labels: np.ndarray, logits: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): mean gap of confidence and accuracy, in equal bins."""
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def paired_gain(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Macro-F1 of ours less that of theirs, and its 95 % interval over resamples of the rows."""

    def gain(rows: np.ndarray) -> float:
        return macro_f1(labels[rows], ours[rows]) - macro_f1(labels[rows], theirs[rows])

    rng = np.random.default_rng(0)
    drawn = [gain(rng.integers(len(labels), size=len(labels))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gain(np.arange(len(labels))), float(low), float(high)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of (n, num_classes) logits at which their log-loss is least (Guo et al., arXiv 1706.04599)."""

    def log_loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(-5, 5), method="bounded").x))


def calibrated(logits: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, num_classes) logits, each fold's at the temperature of the other folds, and the temperature of all rows."""
    if len(np.unique(folds)) < 2:  # nothing to learn a temperature from that isn't scored
        return logits, 1.0
    scaled = np.zeros_like(logits)
    for k in np.unique(folds):
        scaled[folds == k] = logits[folds == k] / fit_temperature(logits[folds != k], labels[folds != k])
    return scaled, fit_temperature(logits, labels)


# Prediction tables ---------------------------------------------------------------------------------------------------


def main_of(outputs: dict[str, Any]) -> Any:
    """Of a model's outputs the main one, which comes first: fused where there is one."""
    return next(iter(outputs.values()))


def logits_frame(logits: dict[str, np.ndarray]) -> pd.DataFrame:
    """{"fused": (n, num_classes), ...} as columns fused_0 ... fused_{K-1}, image_0 ..."""
    columns = {f"{name}_{k}": values[:, k] for name, values in logits.items() for k in range(values.shape[1])}
    return pd.DataFrame(columns)


def outputs_of(frame: pd.DataFrame) -> list[str]:
    """The outputs that a prediction table has, the main one first: fused where there is one."""
    return [name for name in OUTPUTS if f"{name}_0" in frame]


def frame_logits(frame: pd.DataFrame, output: str | None = None) -> np.ndarray:
    """(n, num_classes) logits of one output, by default the main one, from a prediction table's columns."""
    output = output or outputs_of(frame)[0]
    return frame.filter(regex=rf"^{output}_\d+$").to_numpy(dtype=np.float64)


def prediction_table(frame: pd.DataFrame, goods: Goods, output: str | None = None) -> pd.DataFrame:
    """Out-of-fold rows with their product: id, title, text, image, label, prediction (class indices), probability."""
    logits = frame_logits(frame, output)
    table = frame[["id", "label"]].assign(
        prediction=logits.argmax(1), probability=np.exp(log_softmax(logits, axis=1)).max(1)
    )
    table = table.merge(goods.train[["id", "title", "text", "image"]], on="id", validate="1:1")
    return table.assign(title=titles_of(table))


def write_predictions(path: Path, head: pd.DataFrame, logits: dict[str, np.ndarray]) -> None:
    """Writes a prediction table: the columns of `head`, then logits_frame's."""
    with atomic_path(path) as temporary:
        pd.concat([head.reset_index(drop=True), logits_frame(logits)], axis=1).to_parquet(temporary, index=False)
