"""Metrics to choose and compare by, their noise, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import log_softmax, softmax

from goods.metric_names import SHOWN_AS, metric_first

RESAMPLES = 400  # of the rows, for the interval of a score or a gain
AT_ONCE = 50  # of them, so that memory stays small
MANY_ROWS = 20  # of a group, on average


# Scores of predicted classes, from counts of each class: (..., classes) right, given and predicted rows -----------


def macro_f1_of(right: np.ndarray, given: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(...) mean F1 of the classes that occur among given or predicted rows."""
    occurs = given + said
    return (2 * right / np.maximum(occurs, 1)).sum(-1) / np.maximum((occurs > 0).sum(-1), 1)


def weighted_f1_of(right: np.ndarray, given: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(...) mean F1 of the classes, each as often as it occurs among the given rows."""
    return (given * 2 * right / np.maximum(given + said, 1)).sum(-1) / given.sum(-1)


def accuracy_of(right: np.ndarray, given: np.ndarray, said: np.ndarray) -> np.ndarray:
    """(...) share of the rows that are right."""
    return right.sum(-1) / given.sum(-1)


def class_counts(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(classes,) right, given and predicted rows of each class, of (n,) labels and predictions."""
    classes = max(labels.max(), predictions.max()) + 1
    each = (labels[labels == predictions], labels, predictions)
    return tuple(np.bincount(rows, minlength=classes) for rows in each)


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes that occur among (n,) labels or predictions: scikit-learn's, thirty times as fast."""
    return float(macro_f1_of(*class_counts(labels, predictions)))


def weighted_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 of the classes, each as often as it occurs among the (n,) labels."""
    return float(weighted_f1_of(*class_counts(labels, predictions)))


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
    over: from labels and that, the score. sign: 1 where more is better, -1 where less is. of_counts: the score from
    counts of each class, None where it isn't one of predicted classes.
    """

    name: str
    sign: int
    sees: Callable[[np.ndarray, np.ndarray], np.ndarray]
    over: Callable[[np.ndarray, np.ndarray], float]
    of_counts: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None

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
        Metric("macro_f1", 1, predicted, macro_f1, macro_f1_of),
        Metric("accuracy", 1, predicted, accuracy, accuracy_of),
        Metric("weighted_f1", 1, predicted, weighted_f1, weighted_f1_of),
        Metric("log_loss", -1, losses, mean_loss),
    )
}


def score(labels: np.ndarray, logits: np.ndarray, first: str = "macro_f1") -> dict[str, float]:
    """All METRICS of (n, num_classes) logits for (n,) labels, by name; the F1 are over the classes that occur."""
    labels = np.asarray(labels)
    return {name: METRICS[name].of(labels, logits) for name in metric_first(first, *METRICS)}


# Over resamples of the rows -------------------------------------------------------------------------------------------


def resampled(labels: np.ndarray, *predictions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each of several (n,) predictions its class_counts, (RESAMPLES, classes), over the same resamples of the rows.

    Rows of one label and the same predictions are alike, so all that counts is how often each such group is drawn.
    """
    classes = int(max(labels.max(), *(each.max() for each in predictions))) + 1
    code = labels.astype(np.int64)
    for each in predictions:
        code = code * classes + each
    code, counts = np.unique(code, return_counts=True)
    label, *said = (code // classes**place % classes for place in range(len(predictions), -1, -1))
    found = [(label, np.flatnonzero(label == each)) for each in said] + [(each, slice(None)) for each in (label, *said)]
    made = []
    for drawn in _draws(counts):
        made.append([_by_class(drawn[rows], each[rows], classes) for each, rows in found])
    right, (given, *predicted) = np.split(np.concatenate(made, axis=1), [len(said)])
    return [(hits, given, rows) for hits, rows in zip(right, predicted, strict=True)]


def _draws(counts: np.ndarray) -> Iterator[np.ndarray]:
    """(groups, some) how often each group of `counts` rows is drawn in some of the RESAMPLES, all of them in turn."""
    rng, n = np.random.default_rng(0), counts.sum()
    of_row = np.repeat(np.arange(len(counts)), counts)
    for _ in range(RESAMPLES // AT_ONCE):
        if n > MANY_ROWS * len(counts):  # a draw for each group; else it is quicker to draw the rows
            yield rng.multinomial(n, counts / n, size=AT_ONCE).T.astype(np.float64)
        else:
            rows = (of_row[rng.integers(n, size=n)] for _ in range(AT_ONCE))
            yield np.stack([np.bincount(drawn, minlength=len(counts)) for drawn in rows], axis=1).astype(np.float64)


def _by_class(drawn: np.ndarray, class_of: np.ndarray, classes: int) -> np.ndarray:
    """(some, classes) sums of (groups, some) over the groups of each class."""
    onto = csr_array((np.ones(len(class_of)), (class_of, np.arange(len(class_of)))), shape=(classes, len(class_of)))
    return (onto @ np.ascontiguousarray(drawn)).T


def _worth_resampled(by: Metric, labels: np.ndarray, *seen: np.ndarray) -> list[np.ndarray]:
    """(RESAMPLES,) scores of what a metric `sees` of several predictions, over the same resamples of the rows."""
    if by.of_counts:
        return [by.of_counts(*counts) for counts in resampled(labels, *seen)]
    rng, scores = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(labels), size=len(labels))
        scores.append([by.over(labels, each[rows]) for each in seen])
    return list(np.array(scores).T)


def spread_of(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def interval(labels: np.ndarray, logits: np.ndarray, metric: str = "macro_f1") -> tuple[float, float, float]:
    """The metric of (n, num_classes) logits, and its 95 % interval over resamples of the rows."""
    by = METRICS[metric]
    seen = by.sees(labels, logits)
    return by.over(labels, seen), *spread_of(_worth_resampled(by, labels, seen)[0])


def paired_gain(
    labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray, metric: str = "macro_f1"
) -> tuple[float, float, float]:
    """What our (n, num_classes) logits gain over theirs, and its 95 % interval over resamples of the rows.

    Positive where ours are better, whether the metric's scores rise or fall by it.
    """
    by = METRICS[metric]
    ours, theirs = by.sees(labels, ours), by.sees(labels, theirs)
    gain = by.sign * (by.over(labels, ours) - by.over(labels, theirs))
    drawn = _worth_resampled(by, labels, ours, theirs)
    return gain, *spread_of(by.sign * (drawn[0] - drawn[1]))


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
