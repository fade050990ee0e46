"""Metrics to choose and compare by, their noise, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from goods.metric_names import SHOWN_AS, metric_first

RESAMPLES = 400  # of the rows, for the interval of a score or a gain


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur among (n,) labels or predictions: scikit-learn's, thirty times as fast."""
    of_class = np.bincount(labels[labels == predictions], minlength=max(labels.max(), predictions.max()) + 1)
    occurs = np.bincount(labels, minlength=len(of_class)) + np.bincount(predictions, minlength=len(of_class))
    return float(np.mean(2 * of_class[occurs > 0] / occurs[occurs > 0]))


def weighted_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes, each as often as it occurs among the (n,) labels."""
    of_class = np.bincount(labels[labels == predictions], minlength=max(labels.max(), predictions.max()) + 1)
    rows = np.bincount(labels, minlength=len(of_class))
    occurs = rows + np.bincount(predictions, minlength=len(of_class))
    return float(np.sum(rows * 2 * of_class / np.maximum(occurs, 1)) / len(labels))


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The share of (n,) predictions that are right."""
    return float((labels == predictions).mean())


def predicted(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,) classes that (n, num_classes) logits predict."""
    return logits.argmax(1)


def losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,) log-losses of (n, num_classes) logits."""
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


def mean_loss(_: np.ndarray, of_rows: np.ndarray) -> float:
    """Their mean."""
    return float(of_rows.mean())


# To choose by ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A score that is chosen and compared by, in two steps, so that rows can be drawn again between them.

    sees: from (n,) labels and (n, num_classes) logits what counts of each row, (n,): its predicted class, or its loss.
    over: from labels and that, the score. sign: 1 where more is better, -1 where less is.
    """

    name: str
    sign: int
    sees: Callable[[np.ndarray, np.ndarray], np.ndarray]
    over: Callable[[np.ndarray, np.ndarray], float]

    @property
    def shown_as(self) -> str:
        """Its name in a sentence."""
        return SHOWN_AS[self.name]

    def of(self, labels: np.ndarray, logits: np.ndarray) -> float:
        """The score of (n, num_classes) logits for (n,) labels."""
        return self.over(labels, self.sees(labels, logits))

    def worth(self, labels: np.ndarray, logits: np.ndarray) -> float:
        """The score to choose by: the higher the better, whatever the metric."""
        return self.sign * self.of(labels, logits)

    def worth_mixed(self, labels: np.ndarray, mixed: np.ndarray) -> float:
        """worth() of (n, num_classes) sums of probabilities."""
        return self.worth(labels, mixed if self.sees is predicted else np.log(np.maximum(mixed, 1e-300)))

    def worth_calibrated(self, labels: np.ndarray, logits: np.ndarray) -> float:
        """worth() at the temperature of the least log-loss, which changes no predicted class."""
        cooled = logits if self.sees is predicted else logits / fit_temperature(logits, labels)
        return self.worth(labels, cooled)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("macro_f1", 1, predicted, macro_f1),
        Metric("accuracy", 1, predicted, accuracy),
        Metric("weighted_f1", 1, predicted, weighted_f1),
        Metric("log_loss", -1, losses, mean_loss),
    )
}


def score(labels: np.ndarray, logits: np.ndarray, first: str = "macro_f1") -> dict[str, float]:
    """All METRICS of (n, num_classes) logits for (n,) labels, by name; the F1 are over the classes that occur."""
    labels = np.asarray(labels)
    return {name: METRICS[name].of(labels, logits) for name in metric_first(first, *METRICS)}


def interval(labels: np.ndarray, logits: np.ndarray, metric: str = "macro_f1") -> tuple[float, float, float]:
    """The metric of (n, num_classes) logits, and its 95 % interval over resamples of the rows."""
    by = METRICS[metric]
    seen, rng = by.sees(labels, logits), np.random.default_rng(0)
    rows = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    low, high = np.percentile([by.over(labels[drawn], seen[drawn]) for drawn in rows], [2.5, 97.5])
    return by.over(labels, seen), float(low), float(high)


def paired_gain(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, metric: str = "macro_f1"
) -> tuple[float, float, float]:
    """What our (n, num_classes) logits gain over theirs, and its 95 % interval over resamples of the rows.

    Positive where ours are better, whether the metric's scores rise or fall by it.
    """
    by = METRICS[metric]
    ours, theirs = by.sees(labels, ours), by.sees(labels, theirs)

    def gain(rows: np.ndarray) -> float:
        return by.sign * (by.over(labels[rows], ours[rows]) - by.over(labels[rows], theirs[rows]))

    rng = np.random.default_rng(0)
    drawn = [gain(rng.integers(len(labels), size=len(labels))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return gain(np.arange(len(labels))), float(low), float(high)


# Calibration ----------------------------------------------------------------------------------------------------------


def confidence_bins(
    labels: np.ndarray, logits: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by how sure their prediction is, in equal bins: how many, the share that is right, the mean probability."""
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == np.asarray(labels)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    rate, mean = (np.bincount(bin_of, weights=v, minlength=bins) / np.maximum(counts, 1) for v in (right, confidence))
    return counts, rate, mean


def calibration_error(labels: np.ndarray, logits: np.ndarray) -> float:
    """Expected calibration error (Guo et al., arXiv 1706.04599): mean gap of confidence and accuracy, in equal bins."""
    counts, rate, mean = confidence_bins(labels, logits)
    return float(np.sum(counts * np.abs(rate - mean)) / len(labels))


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


def neighbour_purity(points: np.ndarray, labels: Sequence[int]) -> float:
    """The share of products that lie next to one of their own class; points: (n, 2), of two products or more."""
    labels = np.asarray(labels)
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)  # (n, n)
    np.fill_diagonal(distance, np.inf)
    return float((labels[distance.argmin(1)] == labels).mean())
