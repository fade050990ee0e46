"""Names of the metrics, for what starts without numpy; goods.metrics says how each is computed."""

from __future__ import annotations

from typing import Literal

MetricName = Literal["macro_f1", "accuracy", "weighted_f1", "log_loss"]

SHOWN_AS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "weighted_f1": "weighted F1", "log_loss": "log-loss"}
COUNT_CLASSES_ALIKE = ("macro_f1",)  # a product of a rare class counts for more; for the others all count alike


def metric_first(metric: str, *others: str) -> list[str]:
    """Names of scores in the order to show them: the metric, then the others."""
    return list(dict.fromkeys((metric, *others)))
